"""Composer's decoupled AdamW, what it decays, and freezing by parameter name.

The transformation here gives a direction; the step multiplies it by the learning rate. So the schedule
clock can restart between phases while the moments live on, and the state has one shape in all phases.
A mask, as `freeze_mask` makes it, is a tree like the parameters of scalars or, for stacked layers, of vectors over
the layer axis.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cptjax.sharding import is_stacked, parameter_path


@dataclass(frozen=True)
class AdamW:
    """Decoupled AdamW as in Composer's DecoupledAdamW: at the peak rate a step shrinks weights by
    `weight_decay` itself, not by learning rate times weight decay (arXiv:1711.05101, arXiv:2605.12438)."""

    weight_decay: float = 1e-5
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-6
    clip_norm: float | None = 1.0  # the paper is silent; ModernBERT's decoupled-AdamW recipe uses 1.0

    def __post_init__(self):
        if min(self.b1, self.b2) < 0 or max(self.b1, self.b2) >= 1:
            raise ValueError(f"optimizer b1 {self.b1} and b2 {self.b2} must be at least 0 and below 1")
        if self.weight_decay < 0 or self.eps <= 0:
            raise ValueError(f"optimizer weight_decay {self.weight_decay} must be at least 0, eps {self.eps} above it")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"optimizer clip_norm {self.clip_norm} must be above 0, or None")


def decays(path: tuple[Any, ...]) -> bool:
    """Norm scales and biases are not decayed; everything else is, the tied embedding too.

    Decided by name: stacked norm scales are matrices, so counting dimensions would decay them.
    """
    name = path[-1].key
    return name != "scale" and not name.endswith("bias")


def make_optimizer(optimizer: AdamW) -> optax.GradientTransformationExtraArgs:
    """Gradients -> descent direction without decay, to be multiplied by minus the learning rate; its `update` takes, as
    `trains`, the mask of what trains: everything without it."""
    clip = optax.clip_by_global_norm(jnp.inf if optimizer.clip_norm is None else optimizer.clip_norm)
    return optax.chain(
        optax.GradientTransformation(clip.init, jax.named_scope("clip")(clip.update)),
        adam(optimizer.b1, optimizer.b2, optimizer.eps),
    )


@jax.named_scope("decay")
def add_decay(directions: Any, params: Any, decay: float) -> Any:
    """The directions with `decay` times what `decays` of the parameters: where Composer multiplies `weight_decay` by
    rate / peak, it is weight_decay / peak here, and the rate comes later."""

    def decayed(path, direction, parameter):
        return direction + decay * parameter if decays(path) else direction

    return jax.tree_util.tree_map_with_path(decayed, directions, params)


class AdamState(NamedTuple):
    """Running means of gradients and of their squares; `count` is a mask's tree of how many updates they have seen."""

    count: Any
    mu: Any
    nu: Any


def adam(b1: float, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
    """Adam's direction (arXiv:1412.6980), its bias corrected by the updates that each parameter itself has seen, each
    layer of a stack. What is frozen keeps count and moments, as a parameter without gradient does in PyTorch: with one
    count for all, the first steps of what thaws late would be too large.
    """

    def init(params: Any) -> AdamState:
        def no_updates(path, x):
            stacked = is_stacked(parameter_path(path))
            return jnp.zeros(x.shape[:1] if stacked else (), jnp.int32)

        zeros = optax.tree.zeros_like(params)
        return AdamState(jax.tree_util.tree_map_with_path(no_updates, params), zeros, zeros)

    @jax.named_scope("adam")
    def update(updates: Any, state: Any, params: Any = None, *, trains: Any = None) -> tuple[Any, AdamState]:
        trains = jax.tree.map(jnp.ones_like, state.count) if trains is None else trains

        def moved(moment: Any, decay: float, order: int) -> Any:
            new = optax.tree.update_moment(updates, moment, decay, order)
            return jax.tree.map(lambda m, new, old: jnp.where(_along(m, new) > 0, new, old), trains, new, moment)

        def direction(count, mu, nu):
            seen = _along(jnp.maximum(count, 1), mu)  # never trained: no moments, and nothing to divide them by
            return mu / (1 - b1**seen) / (jnp.sqrt(nu / (1 - b2**seen)) + eps)

        count = jax.tree.map(lambda m, n: n + jnp.asarray(m, n.dtype), trains, state.count)
        mu, nu = moved(state.mu, b1, 1), moved(state.nu, b2, 2)
        return jax.tree.map(direction, count, mu, nu), AdamState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def freeze_mask(names: Any, patterns: Sequence[str]) -> Any:
    """The mask that is 1 where a parameter trains and 0 where it is frozen.

    `names` is the parameter tree with the tuple of names of each leaf (`shape.parameter_names`); a
    pattern is a regular expression that freezes every name it matches at its start:
    `layers/[0-7]/` freezes eight layers, `embeddings/` the embeddings. Raises ValueError for a pattern
    that matches nothing or is no regular expression.
    """
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"freeze pattern {pattern!r} is not a regular expression: {error}") from error
    matched = set()

    def mask_of(leaf_names: tuple[str, ...]):
        frozen = []
        for name in leaf_names:
            hits = {pattern for pattern in patterns if re.match(pattern, name)}
            matched.update(hits)
            frozen.append(bool(hits))
        return np.asarray(frozen if len(frozen) > 1 else frozen[0], np.float32)

    frozen = jax.tree.map(mask_of, names, is_leaf=lambda leaf: isinstance(leaf, tuple))
    if unmatched := [pattern for pattern in patterns if pattern not in matched]:
        raise ValueError(f"freeze patterns match no parameter: {unmatched}; names look like layers/3/attn/Wqkv")
    return jax.tree.map(lambda x: 1.0 - x, frozen)


def apply_mask(mask: Any, tree: Any) -> Any:
    """Multiply every leaf by its mask, along its leading axis."""
    return jax.tree.map(lambda m, x: x * _along(m, x).astype(x.dtype), mask, tree)


def _along(mask, x):
    """The mask of an array with an axis for each of the array's."""
    return mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
