"""Learning rates and phase clocks: pure functions of the optimiser step.

Budgets are given in tokens and become optimiser steps once the batch is known, so a run is the same
recipe whatever its batch. Every phase starts its own clock at 0.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up to `peak`, then constant, or the 1-sqrt decay to `final_ratio * peak`."""

    peak: float = 2e-4  # learning rate, arXiv:2605.12438
    warmup_tokens: int = 0
    shape: Literal["constant", "one_minus_sqrt"] = "constant"
    final_ratio: float = 0.1  # of the peak, reached at the last token of a one_minus_sqrt phase

    def __post_init__(self):
        if self.peak <= 0:
            raise ValueError(f"schedule peak {self.peak} must be a positive learning rate")
        if not 0 <= self.final_ratio <= 1:
            raise ValueError(f"schedule final_ratio {self.final_ratio} must lie between 0 and 1")


def num_steps(tokens: int, tokens_per_step: int) -> int:
    """Optimiser steps nearest to a token budget, at least one."""
    return max(1, round(tokens / tokens_per_step))


def phase_bounds(tokens: tuple[int, ...], tokens_per_step: int) -> tuple[tuple[int, int], ...]:
    """First and one-past-last step of each phase, phases one after the other."""
    bounds, start = [], 0
    for budget in tokens:
        bounds.append((start, start + num_steps(budget, tokens_per_step)))
        start = bounds[-1][1]
    return tuple(bounds)


def learning_rate(schedule: Schedule, step: jax.Array, total_steps: int, tokens_per_step: int) -> jax.Array:
    """Learning rate of the update made at `step` of its phase (0 <= step < total_steps), float32.

    Warm-up is linear from 0 and reaches the peak at its end. With x the share of the rest that is done,
    1-sqrt is peak * (final + (1 - final) * (1 - sqrt(x))): the peak at x = 0, final_ratio * peak at x = 1
    (arXiv:2405.18392; the same form as ModernBERT's OneMinusSqrtScheduler).
    """
    warmup = schedule.warmup_tokens / tokens_per_step
    step = jnp.asarray(step, jnp.float32)
    rise = jnp.minimum(step / warmup, 1.0) if warmup > 0 else jnp.ones_like(step)
    if schedule.shape == "constant":
        return schedule.peak * rise
    done = jnp.clip((step - warmup) / max(total_steps - warmup, 1e-9), 0.0, 1.0)
    fall = schedule.final_ratio + (1.0 - schedule.final_ratio) * (1.0 - jnp.sqrt(done))
    return schedule.peak * rise * fall
