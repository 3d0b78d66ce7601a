"""A chain of tags for each label, in which entities of that label may overlap: outside, and the first, an inner, the
last, or the only word of one (a word that begins one and ends another is an only one too). Which tag may follow which
is fixed, nothing of it is learnt, as in nlstruct (github.com/percevalw/nlstruct).

B rows, L tokens (M as ends), N labels, T the five tags, U words of a text.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

OUT, FIRST, INNER, LAST, ONLY = range(5)
TAGS = 5
ANY = -1  # no tag is told
NEVER = -1e9  # log of nothing
OPEN, BEGINS, ENDS = [FIRST, INNER], [FIRST, ONLY], [LAST, ONLY]

FOLLOWS = np.ones((TAGS, TAGS), bool)  # [T, T] within a text: from, to
FOLLOWS[OPEN, OUT] = False
FOLLOWS[OUT, [INNER, LAST]] = False
MAY_END, MAY_BEGIN = (np.isin(np.arange(TAGS), [OUT, *tags]) for tags in (ENDS, BEGINS))
BETWEEN = MAY_END[:, None] & MAY_BEGIN[None]  # [T, T] from a text's last word to the next one's first


def tags_of(entity_S3: np.ndarray, words: int, labels: int) -> np.ndarray:
    """The tag of each word for each label, [U, N] int32, of S entities: first word, last word and label of each."""
    begins_UN, ends_UN, holds_UN = np.zeros((3, words, labels), bool)
    for first, last, label in entity_S3.tolist():
        begins_UN[first, label] = ends_UN[last, label] = True
        holds_UN[first : last + 1, label] = True
    tag_UN = np.where(holds_UN, INNER, OUT)
    tag_UN = np.where(begins_UN, FIRST, np.where(ends_UN, LAST, tag_UN))
    return np.where(begins_UN & ends_UN, ONLY, tag_UN).astype(np.int32)


def total(emission_BLNT: jax.Array, word_BL: jax.Array, add: Callable = jax.nn.logsumexp) -> jax.Array:
    """Log of the sum over all allowed tags of all texts of a row, [B, N]; of the likeliest tags, where `add` is
    jnp.max. `word_BL` is a word's number in its text, from 1, at its first token, 0 elsewhere."""

    def step(so_far_BNT, at):
        emission_BNT, word_B = at
        allowed_BTT = jnp.where((word_B == 1)[:, None, None], BETWEEN[None], FOLLOWS[None])
        step_BNTT = so_far_BNT[..., None] + jnp.where(allowed_BTT, 0.0, NEVER)[:, None]
        return jnp.where(word_B[:, None, None] > 0, add(step_BNTT, axis=-2) + emission_BNT, so_far_BNT), None

    rows, _, labels, _ = emission_BLNT.shape
    start_BNT = jnp.broadcast_to(jnp.where(jnp.arange(TAGS) == OUT, 0.0, NEVER), (rows, labels, TAGS))
    by_token = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (emission_BLNT, word_BL))
    end_BNT, _ = jax.lax.scan(step, start_BNT, by_token)
    return add(end_BNT + jnp.where(MAY_END, 0.0, NEVER)[None, None], axis=-1)


def surprise(emission_BLNT: jax.Array, word_BL: jax.Array, tag_BLN: jax.Array) -> jax.Array:
    """Minus the log-probability of the tags that are told, summed over all texts and labels: []."""
    told_BLNT = (tag_BLN[..., None] == jnp.arange(TAGS)[None, None, None]) | (tag_BLN == ANY)[..., None]
    told = total(jnp.where(told_BLNT, emission_BLNT, NEVER), word_BL)
    return (total(emission_BLNT, word_BL) - told).sum()


def likeliest(emission_BLNT: jax.Array, word_BL: jax.Array) -> jax.Array:
    """Where a tag is that of the likeliest allowed tags, [B, L, N, T] bool: the gradient of their score."""
    best = partial(total, add=jnp.max)
    return jax.grad(lambda emission: best(emission, word_BL).sum())(emission_BLNT) > 0


def spans_of_tags(tag_BLNT: jax.Array, word_BL: jax.Array) -> jax.Array:
    """Which spans tags allow, [B, N, L, M] bool: from a word that begins one to one that ends one, none outside
    between them."""
    begins_BNL, ends_BNL = (jnp.moveaxis(tag_BLNT[..., tags].any(-1), 1, -1) for tags in (BEGINS, ENDS))
    out_BLN = tag_BLNT[..., OUT] & (word_BL > 0)[..., None]
    passed_BNL = jnp.cumsum(jnp.moveaxis(out_BLN, 1, -1), -1)
    return begins_BNL[..., :, None] & ends_BNL[..., None, :] & (passed_BNL[..., :, None] == passed_BNL[..., None, :])
