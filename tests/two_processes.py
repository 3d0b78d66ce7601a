"""What test_processes.py runs twice, as the two processes of one run: `python -m tests.two_processes FOLDER`.

Each has two devices. It trains under several meshes and writes down what came to each of its devices.
"""

import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from cptjax import sharding
from cptjax.config import Phase, Run
from cptjax.data import Batches, Data, held_out_batches
from cptjax.files import write_json
from cptjax.model import ModelConfig, Precision
from cptjax.objectives import mlm
from cptjax.schedules import Schedule
from cptjax.sharding import Mesh
from cptjax.train import train

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
        model=ModelConfig(
            vocab_size=320, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4
        ),
        precision=Precision(compute="float32"),
        held_out=f"{store}_held_out",
        held_out_rows=5,
        checkpoint_every=SAVED,
        device_batch_size=2,
    )


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


def main(folder: Path) -> None:
    """Everything, one after the other."""
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_disable_most_optimizations", True)
    sharding.start_processes()
    store = folder / "store"
    meshes = [ordered_mesh(order, mesh) for order in ORDERS for mesh in MESHES]
    write_json(folder / f"process{jax.process_index()}.json", {"placed": [placed(store, mesh) for mesh in meshes]})
    for name, (order, mesh) in TRAINED.items():
        with mock.patch.object(sharding, "make_mesh", return_value=ordered_mesh(order, mesh)):
            train(replace(small_run(store), mesh=mesh), folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
