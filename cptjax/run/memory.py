"""What a step needs of a device, by formula: FLOPs, and memory, as docs/performance.md compares with compiled steps."""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from cptjax.attention.backends import MOST_DOCUMENTS
from cptjax.attention.blockwise import query_block
from cptjax.config import Phase, Run
from cptjax.machine import devices
from cptjax.machine.devices import GIB
from cptjax.objectives import mask_budget
from cptjax.optim import AdamW, make_optimizer
from cptjax.run.checkpoint import parameter_shapes
from cptjax.shape import FULL, ModelConfig, layer_groups
from cptjax.sharding import LANES, AnyMesh, row_devices, shard_tree
from cptjax.step import chunk_positions, init_state

FLOAT = 4  # bytes of a float32
MARGIN = 1.2  # the formulas were up to 16 % below compiled steps
SCORES = 4  # arrays of them that attention has at a time


@dataclass(frozen=True)
class Place:
    """Where a step is made: the mesh, what its devices are, and the backend of attention."""

    mesh: AnyMesh
    platform: str  # cpu, gpu or tpu
    backend: str


def needed(run: Run, config: ModelConfig, place: Place, rows: int) -> dict[str, int]:
    """Bytes of one device by part when it handles so many rows at a time: those of the state exact, the others by
    formula."""
    mesh = place.mesh
    parameters, optimiser = _state(run.optimizer, config, mesh)
    tensor, compute = mesh.shape["tensor"], jnp.dtype(run.precision.compute).itemsize
    table = config.vocab_size * config.hidden_size * FLOAT // tensor
    kept, work = _activations(run, config, place, rows)
    chunk = min(chunk_positions(rows, config.vocab_size), max(_predicted(run, phase) for phase in run.phases)) * rows
    logits = chunk * config.vocab_size * (2 * FLOAT + compute) // tensor
    whole = parameters * compute // FLOAT if mesh.shape["fsdp"] == 1 else table + table * compute // FLOAT
    return {
        "parameters": parameters,
        "optimiser": optimiser,
        "gradients": parameters,
        "gradients of tables": 2 * table,  # of the lookup and of the loss
        "parameters to compute with": whole if compute != FLOAT or mesh.shape["fsdp"] > 1 else 0,
        "activations": kept,
        "work": max(work, logits),
    }


@functools.cache
def _state(optimizer: AdamW, config: ModelConfig, mesh: AnyMesh) -> tuple[int, int]:
    """Bytes of the parameters and of the optimiser's state on one device."""
    tx = make_optimizer(optimizer)
    shapes = jax.eval_shape(lambda params: init_state(params, tx), parameter_shapes(config))
    shardings = shard_tree(mesh, shapes)
    each = jax.tree.map(lambda x, where: math.prod(where.shard_shape(x.shape)) * x.dtype.itemsize, shapes, shardings)
    return sum(jax.tree.leaves(each.params)), sum(jax.tree.leaves(each.opt_state))


def _activations(run: Run, config: ModelConfig, place: Place, rows: int) -> tuple[int, int]:
    """Bytes that `rows` rows keep for the backward pass, and those in work meanwhile, in one layer or block, on one
    of the `tensor` devices that share heads and feed-forward."""
    tensor = place.mesh.shape["tensor"]
    tokens = rows * run.data.sequence_length
    compute, residual = (jnp.dtype(x).itemsize for x in (run.precision.compute, run.precision.residual))
    width, inner, folded = config.hidden_size, config.intermediate_size, layer_groups(config)
    halves = 1 + config.gated
    # q, k, v and what attention gives have the width of a head last, which a TPU fills up to its lanes.
    heads = 4 * width * max(1, LANES // config.head_dim if place.platform == "tpu" else 1)
    # Beside them: what enters the layer and its second half, in the stream's dtype, and both normed; what attention
    # gives, as an operand; of the feed-forward what enters its activation and what comes out of it; where it has a
    # gate, that and the product too.
    stream = tokens * residual * width
    layer = 2 * stream + tokens * compute * (2 * width + (heads + width + 2 * halves * inner) // tensor)
    drops, added = run.dropout_of(config), inner if config.gated else width
    layer += tokens * (width * bool(drops.attention_output) + added * bool(drops.mlp))  # what was kept, a byte each
    dots = tokens * compute * (2 * width + (heads + halves * inner) // tensor)
    block = folded.period * layer
    blocks = folded.repeats + len(folded.rest)
    length, of_heads = run.data.sequence_length, rows * config.num_attention_heads // tensor * FLOAT
    sums = of_heads * length * MOST_DOCUMENTS if place.backend == "cudnn" else 0  # of the scores of a global layer
    all_sums, entered = config.layer_types.count(FULL) * sums, blocks * stream
    kept = {
        "none": config.num_hidden_layers * layer + all_sums,
        "dots": layer + (config.num_hidden_layers - 1) * dots + all_sums + entered,
        "block": layer + sums + entered,
    }[run.remat]
    again = {"none": layer, "dots": block - folded.period * dots, "block": block + sums}[run.remat]
    if place.backend == "splash":
        scores = 2 * of_heads * length * LANES  # no scores, but their sums in tiles
    elif place.backend == "reference":
        scores = of_heads * length * length
    else:
        queries = query_block(rows, config.num_attention_heads, length)
        scores = of_heads * length * max(queries, 4 * config.sliding_window)  # of a global layer, of a local one
    return kept, again + SCORES * scores


def flops_per_token(config: ModelConfig, mask_mode: str, document: float, predicted: float) -> dict[str, float]:
    """Model FLOPs per token of a training step by part, in documents of so many tokens, a share of them `predicted`."""
    return devices.flops_per_token(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        gated=config.gated,
        vocab_size=config.vocab_size,
        keys=config.mean_keys(mask_mode, document),
        predicted=predicted,
    )


def _predicted(run: Run, phase: Phase) -> int:
    length = run.data.sequence_length
    return length if phase.objective.kind == "clm" else mask_budget(phase.objective, length)


def most_rows(run: Run, config: ModelConfig, place: Place, available: float) -> int:
    """The most rows at a time that fit a device by formula, with its margin, and divide the batch; 0 when not one
    does."""
    share = run.data.global_batch_size // row_devices(place.mesh)
    fits = (rows for rows in range(share, 0, -1) if share % rows == 0)
    return next((rows for rows in fits if MARGIN * sum(needed(run, config, place, rows).values()) < available), 0)


def shortage(run: Run, config: ModelConfig, place: Place, available: float, kind: str) -> str:
    """That a step may not fit the available bytes of a device, and what would, in one line."""
    total = sum(needed(run, config, place, run.device_batch_size).values())
    advice = "a larger --mesh.fsdp or more devices" if run.remat == "block" else "--remat block, a larger --mesh.fsdp"
    if most := most_rows(run, config, place, available):
        advice = f"--device_batch_size {most}"
    has = f"the {available / GIB:.3g} GiB of a {kind}"
    return f"{total / GIB:.3g} GiB by formula, and {MARGIN - 1:.0%} for its error, do not fit {has}: {advice}"
