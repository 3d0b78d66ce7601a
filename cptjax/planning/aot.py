"""What a training step will need on devices that are not here: it is compiled for them ahead of time.

TPUs need only the package libtpu, and no TPU.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cptjax import sharding
from cptjax.command import errors
from cptjax.config import Phase, Run
from cptjax.objectives import Vocabulary
from cptjax.planning import hlo
from cptjax.run.set_up import without_text
from cptjax.run.update import compile_update, state_shapes
from cptjax.shape import ModelConfig


@dataclass(frozen=True)
class Executable:
    """One compiled step: bytes of one device, FLOPs of all devices per token, exchanges in order of size."""

    argument_bytes: int
    temporary_bytes: int
    flops: float | None  # of matrix products, recomputation included; see `hlo.product_flops`
    rematerialised: tuple[str, ...]  # what the partitioner says of arrays it copied whole to split them anew
    collectives: tuple[hlo.Collective, ...]


def topology_devices(name: str) -> list[Any]:
    """The devices of a TPU topology such as v5e:4x4. ValueError when libtpu is missing or knows none of that name."""
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no TPU here: nobody to ask about it
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except Exception as error:  # jaxlib raises many types
        raise ValueError(
            f"no TPU topology {name} ({errors.reason(error)}): names are KIND:XxY[xZ], such as v4:2x2x2, v5e:4x4, "
            "v5e:16x16, v5p:2x2x4, v6e:4x4, tpu7x:2x2x2, and the package libtpu is needed"
        ) from None


def compile_step(run: Run, config: ModelConfig, phase: Phase, devices: list[Any]) -> Executable:
    """Compile one optimiser step of a phase for these devices, which need not be here, as `train` would.

    Raises ValueError when jax cannot read the executable of a compiler of another version.
    """
    mesh = sharding.make_mesh(run.mesh, devices)
    vocabulary = Vocabulary(config.vocab_size, 0, ())  # the ids decide no shape
    setting = without_text(run, config, mesh, vocabulary)
    state = state_shapes(setting)
    tokens = jax.ShapeDtypeStruct(
        (run.data.global_batch_size, run.data.sequence_length),
        jnp.int32,
        sharding=NamedSharding(mesh, P(sharding.ROWS)),
    )
    with jax.set_mesh(mesh), run.precision.products():
        step: Any = compile_update(setting, run.stretches[run.phases.index(phase)])
        lowered = step.lower(state, {"token_BL": tokens, "segment_BL": tokens})
        with _said() as said:
            compiled = lowered.compile()
    memory = compiled.memory_analysis()
    try:
        program = hlo.parse(compiled.as_text())
    except jax.errors.JaxRuntimeError:
        raise ValueError(
            f"jax {jax.__version__} cannot read what this compiler made: "
            "pip install 'jax[tpu]' brings the libtpu that fits"
        ) from None
    flops = hlo.product_flops(program)
    return Executable(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        None if flops is None else flops * mesh.size / run.tokens_per_step,
        tuple(line for line in said if "nvoluntary full remat" in line),
        tuple(hlo.collectives(program)),
    )


@contextlib.contextmanager
def _said() -> Iterator[list[str]]:
    """The lines that the compiler, which is no Python, writes to stderr meanwhile; they are not shown."""
    lines: list[str] = []
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            lines += file.read().decode(errors="replace").splitlines()
