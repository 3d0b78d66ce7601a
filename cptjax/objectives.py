"""Causal and masked language modelling, drawn on device from (token, segment, key).

The batch knows nothing of the objective: switching from CLM to MLM changes no byte of it.

B rows, L tokens per row, S selected positions per row, D width.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from cptjax.masks import MaskMode


@dataclass(frozen=True)
class Objective:
    """What is predicted, and how the encoder reads while predicting it.

    Masked language modelling corrupts `mask_rate` of the tokens: 80 % become the mask token, 10 % a
    random token, 10 % stay (arXiv:1810.04805). Upstream ModernBERT lets special tokens be masked too.
    """

    kind: Literal["clm", "mlm"]
    mask_mode: Literal["causal", "bidirectional"]
    mask_rate: float = 0.0
    mask_share: float = 0.8  # of the chosen tokens, become the mask token
    random_share: float = 0.1  # of the chosen tokens, become a random token
    mask_special_tokens: bool = True

    def __post_init__(self):
        if self.kind not in ("clm", "mlm"):
            raise ValueError(f"kind of objective is {self.kind!r}: it is one of clm, mlm")
        MaskMode(self.mask_mode)  # raises for what is none
        if self.kind == "clm" and self.mask_mode != MaskMode.CAUSAL:
            raise ValueError("a clm objective needs mask_mode causal: reading both sides shows it the answer")
        if self.kind == "clm" and self.mask_rate:
            raise ValueError(f"a clm objective masks nothing: mask_rate must be 0, not {self.mask_rate}")
        if self.kind == "mlm" and not 0 < self.mask_rate < 1:
            raise ValueError(f"an mlm objective needs a mask_rate between 0 and 1, not {self.mask_rate}")
        shares = (self.mask_share, self.random_share, self.mask_share + self.random_share)
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError(f"mask_share + random_share must lie between 0 and 1, not {shares[2]}")


CLM = Objective("clm", "causal")


def mlm(mask_rate: float) -> Objective:
    """Masked language modelling at this rate, read on both sides."""
    return Objective("mlm", "bidirectional", mask_rate)


@dataclass(frozen=True)
class Vocabulary:
    """The token ids that masking needs to know."""

    size: int  # ids the tokenizer can produce; random tokens are drawn below it
    mask_token_id: int | None
    special_token_ids: tuple[int, ...]
    pad_token_id: int | None = None  # never a random token: PyTorch does not train its row (padding_idx)


class Targets(NamedTuple):
    """What the encoder reads, and which positions of it predict what.

    `position_BS` are the predicting positions, None when every position may predict (S = L);
    weight is 1 where the loss counts. `overflow` counts chosen positions beyond the static budget S.
    """

    input_BL: jax.Array
    position_BS: jax.Array | None
    target_BS: jax.Array
    weight_BS: jax.Array
    overflow: jax.Array


@jax.named_scope("draw")
def draw(
    objective: Objective,
    token_BL: jax.Array,
    segment_BL: jax.Array,
    row_B: jax.Array,
    key: jax.Array,
    vocabulary: Vocabulary,
) -> Targets:
    """Inputs and targets of one batch. `key` belongs to the optimiser step and `row_B` numbers the rows
    of its global batch, so a row draws the same whichever device or micro-batch it lands in."""
    if objective.kind == "clm":
        return _next_tokens(token_BL, segment_BL)
    return _masked_tokens(objective, token_BL, segment_BL, row_B, key, vocabulary)


def _next_tokens(token_BL, segment_BL) -> Targets:
    """Every token predicts the next one of its document; a document's last token predicts nothing."""
    following_BL = jnp.roll(segment_BL, -1, axis=1).at[:, -1].set(0)
    counts_BL = (following_BL == segment_BL) & (segment_BL > 0)
    target_BL = jnp.roll(token_BL, -1, axis=1)
    return Targets(token_BL, None, target_BL, counts_BL.astype(jnp.float32), jnp.zeros((), jnp.int32))


def mask_budget(objective: Objective, num_tokens: int) -> int:
    """Positions of a row that can be predicted: the expected number plus six standard deviations."""
    rate = objective.mask_rate
    spread = math.sqrt(num_tokens * rate * (1 - rate))
    return min(num_tokens, math.ceil(num_tokens * rate + 6 * spread))


def _masked_tokens(objective, token_BL, segment_BL, row_B, key, vocabulary) -> Targets:
    num_tokens = token_BL.shape[1]

    def one_row(row):
        choice_key, token_key = jax.random.split(jax.random.fold_in(key, row))
        chance_L = jax.random.uniform(choice_key, (num_tokens,))
        return chance_L, _random_tokens(token_key, num_tokens, vocabulary)

    # One draw decides both whether a token is chosen and what becomes of it, as upstream does.
    chance_BL, random_BL = jax.vmap(one_row)(row_B)
    eligible_BL = segment_BL > 0
    if not objective.mask_special_tokens:
        special = jnp.array(vocabulary.special_token_ids, jnp.int32)
        eligible_BL &= ~jnp.isin(token_BL, special)
    rate = objective.mask_rate
    chosen_BL = eligible_BL & (chance_BL < rate)
    becomes_mask_BL = chosen_BL & (chance_BL < rate * objective.mask_share)
    becomes_random_BL = chosen_BL & (chance_BL < rate * (objective.mask_share + objective.random_share))
    input_BL = jnp.where(becomes_random_BL, random_BL, token_BL)
    input_BL = jnp.where(becomes_mask_BL, vocabulary.mask_token_id, input_BL)

    budget = mask_budget(objective, num_tokens)
    # A stable sort of "not chosen" lists the chosen positions first, in order.
    position_BS = jnp.argsort(~chosen_BL, axis=1, stable=True)[:, :budget]
    weight_BS = jnp.take_along_axis(chosen_BL, position_BS, axis=1).astype(jnp.float32)
    target_BS = jnp.take_along_axis(token_BL, position_BS, axis=1)
    overflow = chosen_BL.sum(dtype=jnp.int32) - weight_BS.sum(dtype=jnp.float32).astype(jnp.int32)
    return Targets(input_BL, position_BS, target_BS, weight_BS, overflow)


def _random_tokens(key, num_tokens: int, vocabulary: Vocabulary) -> jax.Array:
    """Ids [L], any but that of padding equally likely: where that one is drawn, one of the others is drawn instead."""
    pad = vocabulary.pad_token_id
    random_L = jax.random.randint(key, (num_tokens,), 0, vocabulary.size, jnp.int32)
    if pad is None:
        return random_L
    other_L = jax.random.randint(jax.random.fold_in(key, 1), (num_tokens,), 0, vocabulary.size - 1, jnp.int32)
    return jnp.where(random_L == pad, jnp.where(other_L < pad, other_L, other_L + 1), random_L)


@jax.named_scope("select")
def select(hidden_BLD: jax.Array, position_BS: jax.Array | None) -> jax.Array:
    """Hidden states at the predicting positions, [B, S, D]; all of them when `position_BS` is None."""
    if position_BS is None:
        return hidden_BLD
    return jnp.take_along_axis(hidden_BLD, position_BS[:, :, None], axis=1)
