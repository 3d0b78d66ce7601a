"""Whether what lies on a disk is what was written there: run folders, token stores, released models."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from cptjax.command.bar import bar
from cptjax.command.errors import reason
from cptjax.data import store
from cptjax.files import changed, check_inside, read_json, typed
from cptjax.run import checkpoint


class Verdict(NamedTuple):
    """A thing, what was read of it, and what is wrong with what; None: it is what was written."""

    path: Path
    read: str
    damage: str | None


def kind_of(folder: Path) -> Callable[[Path], Iterator[Verdict]]:
    """How a folder is verified, known by any of some names in it. Raises ValueError for one that holds none of them."""
    kinds = {
        _run: (checkpoint.MODEL, checkpoint.CHECKPOINTS),
        _store: (store.MANIFEST, *store.FILES),
        _release: ("parity.json",),
    }
    for kind, names in kinds.items():
        if any((folder / name).exists() for name in names):
            return kind
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    raise ValueError(f"{folder} is no run folder, token store or released model: nothing in it has a hash")


def _run(folder: Path) -> Iterator[Verdict]:
    steps = checkpoint.survey(folder)
    model, damage = folder / checkpoint.MODEL, None
    try:
        checkpoint.read_model(folder)
    except (ValueError, OSError) as error:
        damage = reason(error) if model.exists() else f"{model} is missing"
    yield Verdict(folder, "its model and tokenizer" if steps.whole else "no whole checkpoint says what it was", damage)
    for name, damage in steps.damaged.items():
        yield Verdict(folder / checkpoint.CHECKPOINTS / name, "its facts", damage)
    for step, facts in steps.whole.items():
        arrays = sum(map(len, facts["checksums"].values()))
        path = folder / checkpoint.CHECKPOINTS / str(step)
        damaged = []
        with bar(arrays, " arrays", str(path)) as shown:
            for fault in checkpoint.faults(folder, step, facts):
                damaged += [fault] if fault else []
                shown.update()
        yield Verdict(path, f"{arrays:,} arrays", f"checkpoint {path}: {'; '.join(damaged)}" if damaged else None)


def _store(folder: Path) -> Iterator[Verdict]:
    for path, damage in store.faults(folder):
        yield Verdict(path, "its bytes", damage)


def _release(folder: Path) -> Iterator[Verdict]:
    path = folder / "parity.json"
    try:
        hashes = typed(dict[str, str], read_json(path).get("weights_sha256"), f"{path}: weights_sha256")
        check_inside(folder, hashes)
        if not hashes:
            raise ValueError(f"{path} has no hash of a weight file: release the model anew")
    except (ValueError, OSError) as error:
        yield Verdict(path, "its hashes", reason(error))
        return
    for name, sha256 in hashes.items():
        damage = changed(folder / name, sha256)
        yield Verdict(folder / name, "its bytes", damage and f"{folder / name} {damage}")
