"""How long a run is, measured on its text: phases to a number of passes or tokens, and what to say of it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cptjax.config import Run
from cptjax.data.batches import Batches
from cptjax.data.store import Store

MOST_PASSES = 4  # over text that a model learns from nearly as from new text (arXiv:2305.16264)
MANY_STEPS = 10**6  # over which the rows of a step are counted


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
                f"phase {phase.name} would have {own:,} tokens, and a step has {run.tokens_per_step:,}: give more "
                f"--passes or --tokens, or a smaller --data.global-batch-size than {run.data.global_batch_size}"
            )
        warmup = min(own, round(phase.schedule.warmup_tokens * scale))
        phases.append(replace(phase, tokens=own, schedule=replace(phase.schedule, warmup_tokens=warmup)))
    return replace(run, phases=tuple(phases))


def in_words(run: Run, batches: Batches) -> Sequence[str]:
    """How long a run is, a line for each thing to know; what is unlikely to be meant comes with what would do."""
    last = run.stretches[-1].last
    passes = batches.epochs(last)
    phases = ", ".join(f"{s.phase.name} {s.last - s.first:,}" for s in run.stretches)
    read = ", ".join(f"{path} {times:.3g} times" for path, times in passes.items())
    lines = [f"steps: {last:,} of {run.tokens_per_step:,} tokens ({phases}); reads {read}"]
    most, often = max(passes.items(), key=lambda item: item[1])
    if often > MOST_PASSES + 0.5:
        lines.append(
            f"{most} is read {often:.3g} times: more than about {MOST_PASSES} teach little more; --passes "
            f"{MOST_PASSES} would make {last * MOST_PASSES / often:,.0f} steps"
        )
    if often > last:  # a step reads more than all of it
        text = Store(most).manifest.tokens
        rows = max(1, text // run.data.sequence_length // 10)
        lines.append(
            f"a step of {run.tokens_per_step:,} tokens is more than {most} holds ({text:,}): "
            f"--data.global-batch-size {rows} would do"
        )
    return lines


def where(run: Run, step: int, folder: Path) -> Sequence[str]:
    """Where a run that has made steps goes on, in words."""
    last = run.stretches[-1].last
    if step == last:
        longer = f"to train longer, begin a run with --init {folder} and another --workdir"
        return [f"all {last:,} steps were made before: nothing is left to do; {longer}"]
    return [f"goes on from step {step:,}: {last - step:,} of {last:,} steps are left"] if step else []
