"""One training step as the trainer makes it: seconds, tokens per second, MFU, memory, time to compile.

Rows are whole documents of random tokens, or packed ones; AdamW and clipping are part of the step. `compare.py` sets it
beside PyTorch's.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cptjax import sharding
from cptjax.attention.check import packed
from cptjax.command.errors import reason
from cptjax.config import Phase, Run
from cptjax.data.batches import Data
from cptjax.machine import devices, host
from cptjax.masks import document_bounds
from cptjax.model import init_params
from cptjax.objectives import CLM, Vocabulary, mlm
from cptjax.run.memory import flops_per_token
from cptjax.run.set_up import without_text
from cptjax.run.update import compile_update, loss_of, state_shardings
from cptjax.schedules import Schedule
from cptjax.shape import ModelConfig, Precision
from cptjax.step import TrainState, batch_key, init_state
from eval.bench.command import ModelBench, StepBench
from eval.bench.measure import SIZES, check_names, compute_dtype, fitted, in_turns, record

OBJECTIVES = {"mlm": mlm(0.15), "clm": CLM}  # the recipe's own, of the decay and of the detour (arXiv:2605.12438)
RATE = 1e-4  # learning rate
SEED = 0
SPECIAL = 4  # special tokens at the end of the vocabulary; the first is the mask


class Case(NamedTuple):
    """What a step is made of; `objective` is one of OBJECTIVES."""

    config: ModelConfig
    objective: str
    rows: int
    tokens: int  # of a row
    forward: bool = False  # the loss alone, without gradients and update
    packed: bool = False  # several documents in a row, and padding

    @property
    def vocabulary(self) -> Vocabulary:
        """Ordinary tokens, then the special ones."""
        size = self.config.vocab_size - SPECIAL
        return Vocabulary(size, size, tuple(range(size, size + SPECIAL)))


def batch_of(case: Case) -> dict[str, jax.Array]:
    """Random tokens, every row a document of its own or, packed, as kernels are checked on."""
    shape = (case.rows, case.tokens)
    token_BL = jax.random.randint(jax.random.key(1), shape, 0, case.vocabulary.size, jnp.int32)
    segment_BL = jnp.asarray(packed(*shape)) if case.packed else jnp.ones(shape, jnp.int32)
    return {"token_BL": token_BL, "segment_BL": segment_BL}


class Step:
    """The trainer's own update of a case, compiled; each call makes one and returns its loss and gradient norm. Of a
    forward case, the loss alone."""

    def __init__(self, case: Case):
        host.keep_freed_memory()  # as `cptjax train` does on a CPU
        compute: Any = compute_dtype()
        run = Run(
            "bench",
            Data((("random", 1.0),), sequence_length=case.tokens, global_batch_size=case.rows),
            (Phase("bench", OBJECTIVES[case.objective], case.rows * case.tokens, Schedule(RATE)),),
            model=case.config,
            precision=Precision(compute=compute),
            device_batch_size=case.rows,
            seed=SEED,
        )
        setting = without_text(run, case.config, sharding.make_mesh(run.mesh, jax.devices()[:1]), case.vocabulary)
        init = partial(init_params, setting.model, jax.random.key(SEED))
        with jax.set_mesh(setting.mesh):
            self.state: Any = jax.jit(lambda: init_state(init(), setting.tx), out_shardings=state_shardings(setting))()
        self.batch, self._mesh = batch_of(case), setting.mesh
        self._jitted: Any = compile_update(setting, run.stretches[0])
        if case.forward:
            self.state = self.state._replace(opt_state=None)
            forward = partial(_forward, loss_of(setting, run.phases[0].objective))
            self._jitted = jax.jit(forward, donate_argnums=0)  # or the parameters would be copied

    def compile(self) -> dict[str, float]:
        """Make the program; the seconds that takes and the program's temporary memory. Raises MemoryError."""
        began = time.perf_counter()
        with jax.set_mesh(self._mesh):
            self._update, temporary = fitted(self._jitted, self.state, self.batch)
        return {"compile_seconds": time.perf_counter() - began, "temporary_mib": temporary}

    def __call__(self) -> dict[str, float]:
        self.state, metrics = jax.block_until_ready(self._update(self.state, self.batch))
        return {name: float(metrics[name]) for name in ("loss", "grad_norm") if name in metrics}


def _forward(loss_fn: Callable, state: TrainState, batch: dict) -> tuple[TrainState, dict[str, jax.Array]]:
    """The loss that `train_step` would begin with."""
    key = batch_key(SEED, state.step)
    row_B = jnp.arange(batch["token_BL"].shape[0], dtype=jnp.int32)
    loss, counts = loss_fn(state.params, batch["token_BL"], batch["segment_BL"], row_B, key)
    return state, {"loss": loss / counts["targets"]}


def speed(case: Case, seconds: float) -> dict[str, float | None]:
    """Tokens and model FLOPs per second, and the share of the device's peak, None where that is not known."""
    objective, segment_BL = OBJECTIVES[case.objective], batch_of(case)["segment_BL"]
    start_BL, end_BL = document_bounds(segment_BL)
    keys = (end_BL - start_BL)[segment_BL > 0]  # of each token that is not padding
    tokens_per_s = keys.size / seconds
    flops = flops_per_token(case.config, objective.mask_mode, float(keys.mean()), objective.mask_rate or 1.0)
    flops_per_s = tokens_per_s * sum(flops.values()) / (3 if case.forward else 1)  # a backward pass is two forward
    peak = devices.peak_flops(jax.devices()[0].device_kind)
    return {
        "tokens_per_s": tokens_per_s,
        "model_tflops_per_s": flops_per_s / 1e12,
        "mfu": None if peak is None else flops_per_s / peak,
    }


def describe(size: str, case: Case) -> dict[str, Any]:
    """A case as the first columns of a row."""
    shape = {"rows": case.rows, "tokens": case.tokens, "packed": case.packed, "dtype": compute_dtype()}
    return {"size": size, "objective": case.objective, "forward": case.forward, **shape}


def bench(case: Case, rounds: int) -> dict[str, Any]:
    """What a step of this case costs, or the reason why it does not run."""
    try:
        step = Step(case)
        compiled = step.compile()
    except Exception as error:  # of any kind: a device without room says so in its own way
        return {"reason": reason(error)}

    def call() -> float:
        began = time.perf_counter()
        step()
        return time.perf_counter() - began

    took = in_turns({"step": call}, rounds)["step"]
    return compiled | took | ({} if "reason" in took else speed(case, took["median"]))


def check_models(asked: ModelBench) -> None:
    """Raise ValueError for a size or an objective that is not known."""
    check_names("size", asked.sizes, SIZES)
    check_names("objective", asked.objectives, OBJECTIVES)


def run(asked: StepBench) -> None:
    """Print the table and, if asked, write the JSON."""
    check_models(asked)
    print(f"{jax.devices()[0].device_kind}, {compute_dtype()}")
    heading = f"{'size':7}{'objective':11}{'rows x tokens':16}{'seconds':>16}{'tokens/s':>10}{'MFU':>7}"
    print(f"{heading}{'temp MiB':>10}{'compile s':>11}")
    rows = []
    for size, objective, shape in ((s, o, x) for s in asked.sizes for o in asked.objectives for x in asked.shapes):
        case = Case(SIZES[size], objective, *shape, packed=asked.packed)
        row = {**describe(size, case), **bench(case, asked.rounds)}
        rows.append(row)
        start = f"{size:7}{objective:11}{f'{case.rows} x {case.tokens}':16}"
        if "reason" in row:
            print(start + row["reason"], flush=True)
        else:
            mfu = "" if row["mfu"] is None else f"{row['mfu']:.1%}"
            print(
                f"{start}{row['median']:10.3f} ±{row['spread']:4.0%}{row['tokens_per_s']:10.0f}{mfu:>7}"
                f"{row['temporary_mib']:10.0f}{row['compile_seconds']:11.1f}",
                flush=True,
            )
        record(asked.out, asked.rounds, rows)
