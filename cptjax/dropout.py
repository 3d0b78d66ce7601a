"""Dropout: what a training step sets to 0, drawn from (seed, batch, row, layer), so that devices, micro-batches and
resumes change nothing (arXiv:1207.0580). The places are those of transformers' BERT and ModernBERT.

B rows, N layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Dropout:
    """The share of values that is set to 0 at each place while training; None: as the model's own config says."""

    embeddings: float | None = None  # the embeddings, after their norm
    attention: float | None = None  # the weights of the keys, after the softmax
    attention_output: float | None = None  # what attention adds to the hidden states
    mlp: float | None = None  # the product with the gate; without one, what the feed-forward adds to the hidden states

    def __post_init__(self):
        for place in PLACES:
            share = getattr(self, place)
            if share is not None and not 0 <= share < 1:
                raise ValueError(f"dropout.{place} is {share}: it must be at least 0 and less than 1")

    def over(self, own: "Dropout") -> "Dropout":
        """These shares, and a model's `own` where they are None."""
        given = {place: getattr(self, place) for place in PLACES}
        return Dropout(**{place: getattr(own, place) if x is None else x for place, x in given.items()})

    def __str__(self):
        return ", ".join(f"{place} {share:g}" for place, share in self.shares.items()) or "none"

    @property
    def shares(self) -> dict[str, float]:
        """The places where anything is dropped."""
        return {place: share for place in PLACES if (share := getattr(self, place))}


PLACES = tuple(field.name for field in fields(Dropout))


@partial(jax.tree_util.register_dataclass, data_fields=["key_B"], meta_fields=["shares"])
@dataclass(frozen=True)
class Dropping:
    """Drops by its shares, with a key for each row."""

    shares: Dropout
    key_B: jax.Array


def of_layers(dropping: Dropping | None, number: int | Sequence) -> Dropping | None:
    """The same with keys of a layer, [B], or of many, [..., B] for an array of their numbers."""
    if dropping is None:
        return None
    number_N = jnp.ravel(jnp.asarray(number, jnp.int32))
    key_NB = jax.vmap(lambda n: jax.vmap(lambda key: jax.random.fold_in(key, n))(dropping.key_B))(number_N)
    return Dropping(dropping.shares, key_NB.reshape(*np.shape(number), -1))


def dropped(x: jax.Array, place: str, dropping: Dropping | None) -> jax.Array:
    """x [B, ...] with values set to 0 by the share of the place, and the others divided by what is left of 1; x itself
    without a `dropping`."""
    return x if dropping is None else _dropped(x, getattr(dropping.shares, place), dropping.key_B, PLACES.index(place))


def dropped_features(x: jax.Array, share: float, dropping: Dropping | None, layer: int = 0) -> jax.Array:
    """The same of what a classifier reads, or one of the layers before it, by a share of its own; `dropping` has a key
    for each text where x has a text in a row."""
    return x if dropping is None else _dropped(x, share, dropping.key_B, len(PLACES) + layer)


def _dropped(x, share: float | None, key_B, number: int):
    if not share:
        return x
    with jax.named_scope("dropout"):
        draw = partial(jax.random.bernoulli, p=1 - share, shape=x.shape[1:])
        kept = jax.vmap(lambda key: draw(jax.random.fold_in(key, number)))(key_B)
        return jnp.where(kept, x / (1 - share), jnp.zeros((), x.dtype))
