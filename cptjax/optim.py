"""Composer's decoupled AdamW, what it decays, and freezing by parameter name.

The transformation here gives a direction; the step multiplies it by the learning rate. So the schedule
clock can restart between phases while the moments live on, and the state has one shape in all phases.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


@dataclass(frozen=True)
class AdamW:
    """Decoupled AdamW as in Composer's DecoupledAdamW: at the peak rate a step shrinks weights by
    `weight_decay` itself, not by learning rate times weight decay (arXiv:1711.05101, arXiv:2605.12438)."""

    weight_decay: float = 1e-5
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-6
    clip_norm: float | None = 1.0  # the paper is silent; ModernBERT's decoupled-AdamW recipe uses 1.0


def decays(path: tuple[Any, ...]) -> bool:
    """Norm scales and biases are not decayed; everything else is, the tied embedding too.

    Decided by name: stacked norm scales are matrices, so counting dimensions would decay them.
    """
    name = path[-1].key
    return name != "scale" and not name.endswith("bias")


def make_optimizer(optimizer: AdamW, peak: float) -> optax.GradientTransformation:
    """Gradients -> descent direction, to be multiplied by minus the learning rate.

    `peak` is the phase's peak learning rate: optax multiplies decay by the rate, Composer by rate / peak.
    """
    return optax.chain(
        optax.clip_by_global_norm(jnp.inf if optimizer.clip_norm is None else optimizer.clip_norm),
        optax.scale_by_adam(optimizer.b1, optimizer.b2, optimizer.eps),
        optax.add_decayed_weights(
            optimizer.weight_decay / peak,
            mask=lambda params: jax.tree_util.tree_map_with_path(lambda path, _: decays(path), params),
        ),
    )


def freeze_mask(names: Any, patterns: Sequence[str]) -> Any:
    """1 where a parameter trains and 0 where it is frozen, a tree of scalars or, for stacked layers, of
    vectors over the layer axis.

    `names` is the parameter tree with the tuple of names of each leaf (`model.parameter_names`); a
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

    def one(leaf_names: tuple[str, ...]):
        frozen = []
        for name in leaf_names:
            hits = {pattern for pattern in patterns if re.match(pattern, name)}
            matched.update(hits)
            frozen.append(bool(hits))
        return np.asarray(frozen if len(frozen) > 1 else frozen[0], np.float32)

    frozen = jax.tree.map(one, names, is_leaf=lambda leaf: isinstance(leaf, tuple))
    if unmatched := [pattern for pattern in patterns if pattern not in matched]:
        raise ValueError(f"freeze patterns match no parameter: {unmatched}; names look like layers/3/attn/Wqkv")
    return jax.tree.map(lambda x: 1.0 - x, frozen)


def apply_mask(mask: Any, tree: Any) -> Any:
    """Multiply every leaf by its mask, along its leading axis."""
    return jax.tree.map(lambda m, x: x * m.reshape(m.shape + (1,) * (x.ndim - m.ndim)).astype(x.dtype), mask, tree)
