"""Runs of one, two and four processes that are killed, stopped, told to end and damaged at random, until they have
ended: every loss must be that of a run that nobody touched, and a checkpoint that is damaged must be found.

    python -m tests.chaos --minutes 20 --seed 0 --out chaos.json

Bounded, on loopback, in a temporary folder. A fault is drawn for each attempt; the next attempt goes on, on as many
processes as are drawn for it.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from cptjax.run import checkpoint
from cptjax.run.events import read_events
from tests.fixtures_run import CONFIG, ROOT
from tests.fixtures_text import WORDS, make_store, make_tokenizer

DEVICES, STUCK_AFTER, LIMIT = 4, 10, 300  # devices of all processes together; seconds; of an attempt
STEPS, EVERY = 40, 4  # of the run, and between checkpoints
TOLERANCE = 1e-6  # relative, of a loss: sums over devices of several processes
SIGNALS = {
    "kill one": signal.SIGKILL,
    "kill all": signal.SIGKILL,
    "stop one": signal.SIGSTOP,
    "ask one": signal.SIGTERM,
}
DAMAGES = ("flip", "cut", "delete")  # of a file of the newest checkpoint
KINDS = (*SIGNALS, *DAMAGES)


@dataclass
class Tally:
    """What became of the faults, by kind."""

    faults: Counter = field(default_factory=Counter)
    found: Counter = field(default_factory=Counter)  # damage that was named, or that changed nothing
    slowest: dict[str, float] = field(default_factory=dict)  # seconds until the last process had ended
    most_lost: int = 0  # steps that were made again
    runs: int = 0  # that came to their end
    wrong: list[str] = field(default_factory=list)


def command(config: Path, folder: Path, count: int) -> list[subprocess.Popen]:
    """The processes of an attempt."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for index in range(count):
        place = f"127.0.0.1:{port},{count},{index}" if count > 1 else "off"
        words = ["train", str(config), "--workdir", str(folder), "--distributed", place]
        line = [sys.executable, "-m", "cptjax", *words, "--stuck-after", str(STUCK_AFTER)]
        env = os.environ | {
            "JAX_NUM_CPU_DEVICES": str(DEVICES // count),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(config.with_name("compiled")),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(ROOT),
        }
        said = open(folder.with_name(f"said_{index}"), "w")
        started.append(subprocess.Popen(line, cwd=ROOT, env=env, stdout=said, stderr=subprocess.STDOUT))
    return started


def step_of(folder: Path) -> int:
    """The last step that the log has, -1 before the first."""
    return max((event["step"] for event in read_events(folder / "events.jsonl") if "loss" in event), default=-1)


def harm(path: Path, how: str, draws: random.Random) -> str:
    """Damage one file of a checkpoint; its name."""
    file = draws.choice(sorted(file for file in path.rglob("*") if file.is_file()))
    content = file.read_bytes()
    if how == "delete":
        file.unlink()
    elif how == "cut":
        file.write_bytes(content[: draws.randrange(max(1, len(content)))])
    elif content:
        at = draws.randrange(len(content))
        file.write_bytes(content[:at] + bytes([content[at] ^ (1 << draws.randrange(8))]) + content[at + 1 :])
    return str(file.relative_to(path))


def attempt(config: Path, folder: Path, kind: str, draws: random.Random, tally: Tally) -> None:
    """Go on with the run, and meet one fault."""
    steps = checkpoint.survey(folder)
    if kind in DAMAGES and steps.latest is not None and len(steps.whole) > 1:
        name = harm(folder / "checkpoints" / str(steps.latest), kind, draws)
        tally.faults[kind] += 1
        before = steps.latest
    else:
        name, before = "", None
    began_at = step_of(folder)
    tally.most_lost = max(tally.most_lost, began_at + 1 - (steps.latest or 0))
    count = draws.choice((1, 2, 4))
    processes = command(config, folder, count)
    target = draws.randrange(max(0, began_at), STEPS)
    began = time.monotonic()
    while kind in SIGNALS and all(p.poll() is None for p in processes) and time.monotonic() - began < LIMIT:
        if step_of(folder) >= target:
            tally.faults[kind] += 1
            struck = time.monotonic()
            for process in processes if kind == "kill all" else [draws.choice(processes)]:
                process.send_signal(SIGNALS[kind])
            break
        time.sleep(0.02)
    else:
        struck = time.monotonic()
    stopped = kind == "stop one"
    while any(p.poll() is None for p in processes) and time.monotonic() - began < LIMIT:
        if stopped and sum(p.poll() is None for p in processes) <= 1:
            break
        time.sleep(0.05)
    took = time.monotonic() - struck
    late = [p for p in processes if p.poll() is None]
    for process in late:
        process.kill()
        process.wait()
    if kind in SIGNALS:
        tally.slowest[kind] = max(tally.slowest.get(kind, 0.0), took)
    if len(late) > (1 if stopped else 0):
        tally.wrong.append(f"{kind}: {len(late)} of {count} processes did not end in {LIMIT} s")
    said = "".join(folder.with_name(f"said_{i}").read_text() for i in range(count))
    codes = [p.returncode for p in processes if p not in late]
    if any(code not in (0, 75, -signal.SIGKILL) for code in codes):
        tally.wrong.append(f"{kind}: exit codes {codes}: {said.strip().splitlines()[-1:]}")
    if before is not None:
        named = f"checkpoints/{before}" in said and "damaged" in said or "cannot read" in said
        whole = before in checkpoint.survey(folder).whole or step_of(folder) >= before  # it changed nothing
        tally.found[kind] += bool(named or whole)
        if not named and not whole:
            tally.wrong.append(f"{kind} of {name} at step {before}: neither named nor harmless")


def main() -> int:
    """Run until the minutes are over; 1 where anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    draws, tally, end = random.Random(asked.seed), Tally(), time.monotonic() + 60 * asked.minutes
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        texts = [" ".join(draws.choices(WORDS, k=draws.randrange(3, 60))) for _ in range(400)]
        store = make_store(work / "store", make_tokenizer(work / "tokenizer"), texts)
        config = work / "chaos.py"
        text = CONFIG.format(store=str(store))
        config.write_text(text.replace("small_run", "chaos_run").replace("tests.fixtures_run", "tests.chaos"))
        (work / "alone").mkdir()
        for process in command(config, work / "alone" / "run", 1):
            assert process.wait() == 0, (work / "alone" / "said_0").read_text()
        expected = losses(work / "alone" / "run")
        assert len(expected) == STEPS
        folder = work / "runs" / "run"
        while time.monotonic() < end:
            folder.parent.mkdir(exist_ok=True)
            attempt(config, folder, draws.choice(KINDS), draws, tally)
            tally.wrong += wrong_losses(expected, losses(folder))
            if step_of(folder) == STEPS - 1 and (folder / "run.json").is_file():
                tally.runs += 1
                shutil.rmtree(folder.parent)
    report = {"seed": asked.seed, "faults": dict(tally.faults), "found": dict(tally.found), "runs": tally.runs}
    report |= {"slowest_seconds": tally.slowest, "most_steps_lost": tally.most_lost, "wrong": tally.wrong}
    print(json.dumps(report, indent=2))
    if asked.out is not None:
        asked.out.write_text(json.dumps(report, indent=2))
    return 1 if tally.wrong else 0


def chaos_run(store: Path):
    """The run that is disturbed: four rows at a time on four devices, a phase boundary inside."""
    from cptjax.sharding import Mesh
    from tests.fixtures_run import small_run

    run = small_run(store, held_out=None, checkpoint_every=EVERY, device_batch_size=1, mesh=Mesh(DEVICES, 1, 1))
    tokens = STEPS // 2 * run.tokens_per_step
    return replace(run, phases=tuple(replace(phase, tokens=tokens) for phase in run.phases))


def losses(folder: Path) -> dict[int, float]:
    """The loss of each step of the log."""
    return {event["step"]: event["loss"] for event in read_events(folder / "events.jsonl") if "loss" in event}


def wrong_losses(expected: dict[int, float], made: dict[int, float]) -> list[str]:
    """Steps whose loss is another one."""
    return [
        f"loss of step {step} is {loss}, undisturbed {expected[step]}"
        for step, loss in made.items()
        if abs(loss - expected[step]) > TOLERANCE * abs(expected[step])
    ]


if __name__ == "__main__":
    sys.exit(main())
