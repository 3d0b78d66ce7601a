"""How long a run is, measured on its text: phases to a number of passes or tokens, and what to say of it; and how long
it takes, by what its devices do in a second."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax

from cptjax.config import Phase, Run
from cptjax.data.batches import Batches
from cptjax.data.store import Store
from cptjax.machine.devices import MFU, peak_flops
from cptjax.model import Mlp
from cptjax.run.memory import flops_per_token
from cptjax.shape import ModelConfig

MOST_PASSES = 4  # over text that a model learns from nearly as from new text (arXiv:2305.16264)
TOO_MANY_PASSES = MOST_PASSES + 0.5
STEPS_OF_A_PASS = 10  # at least, of a step that is advised
MANY_STEPS = 10**6  # over which the rows of a step are counted
MEASURED_TOKENS, CALLS = 1024, 3  # of what a CPU is timed on; the median of its calls counts
OF_A_LAYER = 0.6  # share that steps reach of what a layer does: 0.5 to 0.8, where it was measured (docs/performance.md)


def sized(run: Run, passes: float | None, tokens: int | None) -> Run:
    """The same run, its phases and their warm-ups longer or shorter in proportion: together they have so many `tokens`,
    or read the store that they read most so many times.

    Raises ValueError for both, for a number that is not positive, and where a phase would not have a whole step.
    """
    if passes is None and tokens is None:
        return run
    if passes is not None and tokens is not None:
        raise ValueError("--passes and --tokens both say how long the run is: give one of them")
    if passes is not None:
        if not passes > 0:
            raise ValueError(f"--passes is {passes}: it must be above 0")
        a_step = max(Batches(run.data).epochs(MANY_STEPS).values()) / MANY_STEPS
        tokens = round(passes / a_step * run.tokens_per_step)
    scale = (tokens or 0) / sum(phase.tokens for phase in run.phases)
    phases = []
    for phase in run.phases:
        if (own := round(phase.tokens * scale)) < run.tokens_per_step:
            raise ValueError(
                f"phase {phase.name} would have {own:,} tokens, and a step has {run.tokens_per_step:,}: {_longer(run)}"
            )
        warmup = min(own, round(phase.schedule.warmup_tokens * scale))
        phases.append(replace(phase, tokens=own, schedule=replace(phase.schedule, warmup_tokens=warmup)))
    return replace(run, phases=tuple(phases))


def in_words(run: Run, batches: Batches, micro_batches: int) -> Sequence[str]:
    """How long a run is, a line for each thing to know; what is unlikely to be meant comes with options that would do.
    Its devices make a step of so many `micro_batches`."""
    last = run.stretches[-1].last
    passes = batches.epochs(last)
    phases = ", ".join(f"{s.phase.name} {s.last - s.first:,}" for s in run.stretches)
    read = ", ".join(f"{path} {times:.3g} times" for path, times in passes.items())
    lines = [f"steps: {last:,} of {run.tokens_per_step:,} tokens ({phases}); reads {read}"]
    most, often = max(passes.items(), key=lambda item: item[1])
    smaller = _smaller(run, micro_batches, int(last * run.data.global_batch_size / often / STEPS_OF_A_PASS))
    if often > TOO_MANY_PASSES:
        lines.append(
            f"{most} is read {often:.3g} times: more than about {MOST_PASSES} teach little more; "
            f"{_fewer_passes(run) or _fewer_passes(smaller, _size(smaller)) or 'more text would'}"
        )
    if often > last and smaller != run:  # a step reads more than all of it
        lines.append(
            f"a step of {run.tokens_per_step:,} tokens is more than {most} holds ({Store(most).manifest.tokens:,}): "
            f"{_size(smaller)} would do"
        )
    return lines


def _smaller(run: Run, micro_batches: int, rows: int) -> Run:
    """The same run with steps of at most so many rows, at least one for each device that they are spread over."""
    spread = run.data.global_batch_size // (micro_batches * run.device_batch_size)
    each = min(run.device_batch_size, max(1, rows // spread))
    batch = max(1, rows // (each * spread)) * each * spread
    return replace(run, data=replace(run.data, global_batch_size=batch), device_batch_size=each)


def _size(run: Run) -> str:
    """The options of its step."""
    return f"--data.global-batch-size {run.data.global_batch_size} --device-batch-size {run.device_batch_size}"


def _fewer_passes(run: Run, *options: str) -> str:
    """The options of a run that reads its text no oftener than is worth it, in words; "" where it is too short."""
    with suppress(ValueError):
        steps = sized(run, MOST_PASSES, None).stretches[-1].last
        if max(Batches(run.data).epochs(steps).values()) < TOO_MANY_PASSES:  # phases of few steps are rounded up
            return f"{' '.join([f'--passes {MOST_PASSES}', *options])} would make {steps:,} steps"
    return ""


def few(run: Run) -> Sequence[str]:
    """A line for each phase with fewer steps than Adam's mean of gradients is over."""
    over = round(1 / (1 - run.optimizer.b1))
    return [
        f"phase {phase.name} has {last - first} step{'s' * (last - first > 1)}: too few for a warm-up or a schedule to "
        f"mean anything (Adam's mean of gradients is over about {over}); {_longer(run)}"
        for phase, first, last in run.stretches
        if last - first < over
    ]


def _longer(run: Run) -> str:
    """How a run gets more steps, in words."""
    batch = run.data.global_batch_size
    return "give more --passes or --tokens" + f", or a smaller --data.global-batch-size than {batch}" * (batch > 1)


def where(run: Run, step: int, folder: Path) -> Sequence[str]:
    """Where a run that has made steps goes on, or one that has not is branched off, in words."""
    last = run.stretches[-1].last
    if step == 0 and run.branch:
        return [f"branched off {run.branch.folder} at its step {run.branch.step:,}"]
    if step == last:
        longer = f"to train longer, begin a run with --init {folder} and another --workdir"
        return [f"all {last:,} steps were made before: nothing is left to do; {longer}"]
    return [f"goes on from step {step:,}: {last - step:,} of {last:,} steps are left"] if step else []


def flops_of(run: Run, config: ModelConfig, phase: Phase) -> dict[str, float]:
    """Model FLOPs per token by part, one document per row: forward and backward, no recomputation."""
    predicted = 1.0 if phase.objective.kind == "clm" else phase.objective.mask_rate
    return flops_per_token(config, phase.objective.mask_mode, run.data.sequence_length, predicted)


class Pace(NamedTuple):
    """FLOP/s that a device is taken to reach in its steps, and why so many, in words."""

    flops: float
    reason: str


def pace_here(run: Run, config: ModelConfig) -> Pace | None:
    """That of each device here: by the peak of an accelerator, None where it is not known; of a CPU as measured now.
    Not for a place where a mesh is set: its devices would all measure at once."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        layer = _measured(run, config)
        reason = f"{OF_A_LAYER:.0%} of the {layer / 1e9:.3g} GFLOP/s that a layer reached on this CPU just now"
        return Pace(layer * OF_A_LAYER / jax.local_device_count(), reason)
    peak = peak_flops(device.device_kind)
    return None if peak is None else Pace(peak * MFU, f"{MFU:.0%} of the peak of a {device.device_kind}")


def time_left(run: Run, config: ModelConfig, step: int, devices: int, pace: Pace | None) -> Sequence[str]:
    """How long the steps of a run take that are left after `step`, in words; nothing where nobody knows."""
    flops = sum(
        max(0, last - max(first, step)) * sum(flops_of(run, config, phase).values())
        for phase, first, last in run.stretches
    )
    if not flops or pace is None:
        return []
    hours = flops * run.tokens_per_step / pace.flops / devices / 3600
    return [f"takes {duration(hours)}, beside compiling and evaluations, at {pace.reason}"]


def duration(hours: float) -> str:
    """Hours in words, as minutes where they are less than one."""
    minutes = round(hours * 60)
    if minutes < 1:
        return "less than a minute"
    return f"about {minutes} minute{'s' * (minutes > 1)}" if minutes < 60 else f"about {hours:,.1f} hours"


def _measured(run: Run, config: ModelConfig) -> float:
    """FLOP/s of this machine in a feed-forward of this shape, forward and backward."""
    layer, tokens = Mlp(config, run.precision), min(MEASURED_TOKENS, run.device_batch_size * run.data.sequence_length)
    x_BLD = jax.random.normal(jax.random.key(0), (1, tokens, config.hidden_size), run.precision.compute)

    def gradients(params, x_BLD):
        return jax.vjp(lambda *inputs: layer.apply(*inputs, None), params, x_BLD)[1](x_BLD)

    with run.precision.products():
        params = jax.jit(layer.init)(jax.random.key(0), x_BLD, None)
        compiled = jax.jit(gradients).lower(params, x_BLD).compile()
    seconds = []
    for _ in range(CALLS):
        began = time.perf_counter()
        jax.block_until_ready(compiled(params, x_BLD))
        seconds.append(time.perf_counter() - began)
    return 6 * tokens * (2 + config.gated) * config.hidden_size * config.intermediate_size / sorted(seconds)[CALLS // 2]
