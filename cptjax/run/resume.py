"""What a run goes on from: which of its checkpoints, and whether that one is of this run.

The facts of a checkpoint hold all that decided its numbers; a run goes on only where it decides them in the same
way. It may go back to an earlier step and take another course from there: then the facts tell of that, too.
"""

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cptjax.config import DEPARTING, ELASTIC, incompatible_fields
from cptjax.files import read_json
from cptjax.run import checkpoint

OR_ELSE = "--from-step goes back to an earlier step with another schedule or optimizer"


@dataclass(frozen=True)
class Resumption:
    """The checkpoints that a run may go on from, the last one first, with their facts; none: it starts anew.

    None of them is from before the step that it last departed from, and that one's facts tell of the departure here.
    `departure` is set when it goes back to the first of them and takes another course. A run has `begun` once its
    folder holds its config: its model is settled.
    """

    candidates: dict[int, dict[str, Any]]
    begun: bool
    departure: dict[str, Any] | None = None


def find_resumption(folder: Path, config: dict[str, Any], from_step: int | None) -> Resumption:
    """Where the run of this config goes on in `folder`, with `from_step` at that step.

    Raises ValueError when what is there is of another config or damaged; nothing is written.
    """
    steps = checkpoint.survey(folder)
    if steps.damaged and not steps.whole:
        raise ValueError(f"{folder} holds no whole checkpoint ({'; '.join(steps.damaged.values())})")
    if steps.latest is None:
        if from_step is not None:
            raise ValueError(f"--from-step {from_step}: {folder} holds no checkpoint")
        begun = (folder / "config.json").is_file()
        if begun:
            changed = incompatible_fields(read_json(folder / "config.json"), config)
            _refuse(folder, changed, "no step of it was saved, so the folder may be deleted")
        return Resumption({}, begun)
    for facts in steps.whole.values():
        if "opt_state" not in facts["checksums"]:
            raise ValueError(f"{folder} is a converted model, not a run: give it as --init, and another --workdir")
    latest = steps.whole[steps.latest]
    changed = incompatible_fields(latest["config"], config)
    departed = latest["departures"][-1]["step"] if latest["departures"] else None
    if from_step is not None and (changed or departed != from_step):  # else the same command goes on
        return _departure(folder, steps, config, from_step)
    _refuse(folder, changed, "; ".join([OR_ELSE, *steps.damaged.values()]))  # which may be of this very config
    # What came before the last departure is of another course. The step of the departure itself was saved before it:
    # it begins the course that the newest step tells of.
    course = {"departures": latest["departures"]}
    candidates = {step: x | course for step, x in steps.whole.items() if departed is None or step >= departed}
    return Resumption(dict(reversed(candidates.items())), begun=True)


def _departure(folder: Path, steps: checkpoint.Steps, config: dict[str, Any], step: int) -> Resumption:
    if step not in steps.whole:
        others = f"{folder} holds whole checkpoints of the steps {list(steps.whole)} only"
        raise ValueError("; ".join([f"--from-step {step}: {others}", *steps.damaged.values()]))
    before = steps.whole[step]["config"]
    _refuse(folder, incompatible_fields(before, config, ELASTIC | DEPARTING))
    departure = {
        "step": step,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "changed": incompatible_fields(before, config),
    }
    return Resumption({step: steps.whole[step]}, begun=True, departure=departure)


def _refuse(folder: Path, changed: list[str], or_else: str = OR_ELSE) -> None:
    if changed:
        raise ValueError(
            f"{folder} holds a run with another config ({'; '.join(changed)}): give the old values, or another "
            f"--workdir; {or_else}"
        )


def check_inputs_unchanged(folder: Path, step: int, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ValueError when the facts of a step and those of the run differ in what the run reads."""
    stores = zip(now["stores"].items(), then["stores"].values(), strict=True)
    changed = [path for (path, content), before in stores if content != before]
    if now["held_out"] != then["held_out"]:
        changed.append(f"held_out {now['config']['held_out']}")
    if changed:
        raise ValueError(
            f"{', '.join(changed)} changed since step {step} of {folder}: bring the old content back, or use "
            "another --workdir"
        )
    if now["packing"] != then["packing"]:
        raise ValueError(
            f"{folder} was begun by a version of this program that packs rows in another way: go on with that "
            "version, or use another --workdir"
        )


def leave_behind(folder: Path, steps: list[int]) -> None:
    """Set aside the checkpoints of these steps and what was written of them; the log of earlier ones is needed."""
    for step in steps:
        checkpoint.set_aside(folder / checkpoint.CHECKPOINTS / str(step), folder)
    for name, copy in (("run.json", False), ("events.jsonl", True)):
        if (folder / name).is_file():
            checkpoint.set_aside(folder / name, folder, copy=copy)
