"""What test_processes.py runs twice, as the two processes of one run: `python -m tests.machine.two_processes FOLDER`.

Each has two devices. It trains under several meshes and writes down what came to each of its devices.
"""

import contextlib
import hashlib
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

from cptjax import sharding
from cptjax import train as train_module
from cptjax.command.errors import DamageWarning
from cptjax.command.signals import Signals
from cptjax.config import Phase, Run
from cptjax.data.batches import Batches, Data, held_out_batches
from cptjax.files import locked, write_json
from cptjax.machine import processes
from cptjax.objectives import mlm
from cptjax.run import agreement, checkpoint
from cptjax.run.branch import branched
from cptjax.run.set_up import open_inputs, set_up
from cptjax.run.start import start
from cptjax.schedules import Schedule
from cptjax.shape import ModernBertConfig, Precision
from cptjax.sharding import Mesh
from cptjax.train import train
from tests.fixtures_run import largest_read

STEPS, SAVED, LENGTH = 4, 2, 32
ROWS, HELD_OUT_ROWS = 8, 8
# Devices 0 and 1 are of the first process, 2 and 3 of the second.
ORDERS = ([0, 1, 2, 3], [0, 2, 1, 3], [2, 1, 3, 0])
MESHES = (Mesh(4, 1, 1), Mesh(2, 2, 1), Mesh(2, 1, 2), Mesh(1, 2, 2), Mesh(1, 1, 4))
TRAINED = {
    "in turns": ([0, 2, 1, 3], Mesh(2, 2, 1)),
    "tensor across": ([0, 2, 1, 3], Mesh(2, 1, 2)),
}


def small_run(store: Path) -> Run:
    """Four steps of masked words, saved after two, with held-out rows that do not fill a batch."""
    return Run(
        name="small",
        data=Data(((str(store), 1.0),), LENGTH, ROWS),
        phases=(Phase("mlm", mlm(0.3), STEPS * ROWS * LENGTH, Schedule(1e-2)),),
        model=ModernBertConfig(
            vocab_size=320, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4
        ),
        precision=Precision(compute="float32"),
        held_out=f"{store}_held_out",
        held_out_rows=5,
        sentences=("the [MASK] is a muscle", "a [MASK]", "blood and [MASK]"),
        checkpoint_every=SAVED,
        device_batch_size=2,
    )


def second_half(store: Path, parent: Path) -> Run:
    """The last steps of that run, branched off it in its middle; a constant rate, so that its clock does not matter."""
    run = small_run(store)
    phase = replace(run.phases[0], tokens=(STEPS - SAVED) * ROWS * LENGTH)
    data = replace(run.data, first_batch=SAVED)
    return branched(replace(run, phases=(phase,), data=data), parent, SAVED)


def row_hashes(batch) -> list[str]:
    """Of the tokens and segments of each row."""
    rows = zip(np.asarray(batch["token_BL"]), np.asarray(batch["segment_BL"]), strict=True)
    return [hashlib.sha256(token_L.tobytes() + segment_L.tobytes()).hexdigest() for token_L, segment_L in rows]


def ordered_mesh(order: list[int], mesh: Mesh) -> jax.sharding.Mesh:
    """A mesh whose devices stand in an order of their own."""
    return sharding.make_mesh(mesh, [jax.devices()[i] for i in order])


def held(batch) -> dict[int, list[str]]:
    """Hashes of the rows on each device of this process."""
    shards = zip(*(batch[name].addressable_shards for name in ("token_BL", "segment_BL")), strict=True)
    return {
        jax.devices().index(one.device): row_hashes({"token_BL": one.data, "segment_BL": two.data})
        for one, two in shards
    }


def placed(store: Path, mesh: jax.sharding.Mesh) -> dict:
    """What the devices hold of the second training batch and of the held-out batches."""
    run = small_run(store)
    stream = Batches(run.data).stream(1, sharding.own_rows(mesh, ROWS))
    batch = sharding.put(next(stream), mesh, ROWS)
    stream.close()
    held_out = held_out_batches(
        run.held_out, LENGTH, HELD_OUT_ROWS, run.held_out_rows, sharding.own_rows(mesh, HELD_OUT_ROWS)
    )
    return {
        "training": held(batch),
        "held_out": [held(sharding.put(one, mesh, HELD_OUT_ROWS)) for one in held_out],
    }


@contextlib.contextmanager
def other_code(folder: Path):
    """A copy of the package in which one file is another."""
    copy = folder / f"package{jax.process_index()}"
    shutil.copytree(agreement.PACKAGE, copy)
    (copy / "step.py").write_text("")
    with mock.patch.object(agreement, "PACKAGE", copy):
        yield


def disagreements(folder: Path) -> dict[str, tuple[Run, Run]]:
    """What must be said of two processes, and the run of each."""
    run = small_run(folder / "store")
    phase, data = run.phases[0], run.data
    again = replace(phase, name="again")

    def reading(store: str) -> Run:
        return replace(run, data=replace(data, stores=((str(folder / store), 1.0),)))

    others = {
        "phases.0.schedule.peak is 0.01 in process 0, 0.02 in process 1": replace(
            run, phases=(replace(phase, schedule=Schedule(2e-2)),)
        ),
        "phases.1.name is absent in process 0, again in process 1": replace(run, phases=(phase, again)),
        "seed is 17 in process 0, 18 in process 1": replace(run, seed=18),
        "data.seed is 42": replace(run, data=replace(data, seed=43)),
        "checkpoint_every is 2": replace(run, checkpoint_every=3),
        "device_batch_size is 2": replace(run, device_batch_size=1),
        "mesh.fsdp is 1": replace(run, mesh=Mesh(2, 2, 1)),
        "attention is auto in process 0": replace(run, attention="reference"),
        "data.stores.0.0.fingerprint": reading("store_held_out"),
        "data.stores.0.0.tokens-00000.array_record": reading("store_reversed"),  # of one manifest
        "held_out.fingerprint": replace(run, held_out=str(folder / "store")),
        "held_out is absent in process 0, null in process 1": replace(run, held_out=None),
        "process 1: .*nowhere is not a token store": reading("nowhere"),
    }
    return {words: (run, other) for words, other in others.items()}


def mishaps(folder: Path) -> dict[str, contextlib.AbstractContextManager]:
    """What must be said of a run whose second process does not work as the first."""
    return {
        "code.step.py is": other_code(folder),
        "commit is .* in process 0, another in process 1": mock.patch(
            "cptjax.machine.provenance.git_commit", return_value="another"
        ),
        "versions.optax is .* 0 in process 1": mock.patch(
            "cptjax.machine.provenance.versions", return_value={"optax": "0"}
        ),
        "jax.jax_default_matmul_precision is None in process 0": jax.default_matmul_precision("float32"),
        "attention_backend is blockwise in process 0, reference in process 1": mock.patch(
            "cptjax.run.set_up.choose_attention", return_value={"backend": "reference", "reason": "", "errors": {}}
        ),
        "^process 1: unforeseen RuntimeError": mock.patch.object(train_module, "set_up", side_effect=RuntimeError),
    }


def refused(folder: Path) -> dict[str, str]:
    """What this process said to each of these."""
    run, second, said = small_run(folder / "store"), jax.process_index() == 1, {}

    def attempt(words: str, run: Run) -> None:
        try:
            train(run, folder / "refused")
        except ValueError as error:
            said[words] = str(error)
        assert not (folder / "refused").exists()

    for words, runs in disagreements(folder).items():
        attempt(words, runs[second])
    for words, mishap in mishaps(folder).items():
        with mishap if second else contextlib.nullcontext():
            attempt(words, run)
    start = folder / ("tensor across" if second else "alone")
    with mock.patch("cptjax.run.set_up.starting_folder", return_value=start):
        begins = replace(run, model=None, init=str(folder / "alone"))
        attempt("weights.4 is .* in process 0, absent in process 1", begins)
    with (
        locked(folder) if not second else contextlib.nullcontext(),
        mock.patch.object(train_module, "locked", lambda _: locked(folder)),
    ):
        attempt(r"^process 0: process \d+ of .+ is at work", run)
    return said


def lose(path: Path) -> None:
    """The largest file of a part of a checkpoint that is read."""
    largest_read(path).unlink()


def cut(path: Path) -> None:
    """The largest file of a part of a checkpoint that is read to a few bytes."""
    largest_read(path).write_bytes(b"cut")


def close_off(path: Path) -> None:
    """The largest file of a part of a checkpoint that is read: a file that root, too, cannot read."""
    file = largest_read(path)
    file.unlink()
    file.mkdir()


def put_earlier(path: Path) -> None:
    """The arrays of an earlier step for these."""
    shutil.rmtree(path)
    shutil.copytree(path.parent.parent / str(SAVED) / path.name, path)


VIEWS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {  # what the second process alone sees, and where
    "lost": (lose, (f"{STEPS}/params",)),
    "cut": (cut, (f"{STEPS}/params",)),
    "closed off": (close_off, (f"{STEPS}/opt_state",)),
    "other bytes": (put_earlier, (f"{STEPS}/params",)),
    "nothing": (cut, (f"{STEPS}/params", f"{SAVED}/opt_state")),
    "weights": (lose, (f"{STEPS}/params",)),
}


def view_of(run: Path, name: str) -> Path:
    """A copy of a run, in the folder that this process is in, as this process sees it."""
    view = Path(shutil.copytree(run, name))
    if jax.process_index() == 1:
        damage, places = VIEWS[name]
        for place in places:
            damage(view / checkpoint.CHECKPOINTS / place)
    return view


def started(run: Run, folder: Path) -> dict[str, Any]:
    """Where a run starts and what is said of it, with and without `--strict`."""
    inputs, said = open_inputs(run, folder), {}
    setting = set_up(inputs)
    for strict in ("error", "always"):
        with jax.set_mesh(setting.mesh), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter(strict, DamageWarning)
            try:
                state, _, _ = start(inputs, setting)
                said[strict] = [int(state.step), checkpoint.checksums(state.params), *(str(x.message) for x in warned)]
            except ValueError as error:
                said[strict] = str(error)
    return said


def seen(folder: Path) -> dict[str, dict[str, Any]]:
    """What became of runs whose second process sees other files: that go on, and that start from weights."""
    run, own = small_run(folder / "store"), folder / f"seen by {jax.process_index()}"
    own.mkdir()
    with contextlib.chdir(own):
        said = {name: started(run, view_of(folder / "alone", name)) for name in VIEWS if name != "weights"}
        weights = replace(run, model=None, init=str(view_of(folder / "alone", "weights")))
        return said | {"weights": started(weights, Path("from weights"))}


def main(folder: Path) -> None:
    """Everything, one after the other."""
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_disable_most_optimizations", True)
    with processes.joined(Signals()):
        work(folder)


def work(folder: Path) -> None:
    """All that a process does of it."""
    store = folder / "store"
    meshes = [ordered_mesh(order, mesh) for order in ORDERS for mesh in MESHES]
    write_json(folder / f"process{jax.process_index()}.json", {"placed": [placed(store, mesh) for mesh in meshes]})
    write_json(folder / f"refused{jax.process_index()}.json", refused(folder))
    write_json(folder / f"seen{jax.process_index()}.json", seen(folder))
    for name, (order, mesh) in TRAINED.items():
        with mock.patch.object(sharding, "make_mesh", return_value=ordered_mesh(order, mesh)):
            train(replace(small_run(store), mesh=mesh), folder / name)
    train(second_half(store, folder / "alone"), folder / "branch")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
