"""Causal and masked language modelling, drawn on device from (token, segment, key).

The batch knows nothing of the objective: switching from CLM to MLM changes no byte of it. Losses are
sums over targets; whoever averages divides by the global count of targets.

B rows, L tokens per row, S selected positions per row, N tokens of a chunk, D width, V vocabulary.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from cptjax.masks import MaskMode
from cptjax.sharding import on_own_rows


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


def draw(objective: Objective, token_BL, segment_BL, row_B, key, vocabulary: Vocabulary) -> Targets:
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


def select(hidden_BLD, position_BS) -> jax.Array:
    """Hidden states at the predicting positions, [B, S, D]; all of them when `position_BS` is None."""
    if position_BS is None:
        return hidden_BLD
    return jnp.take_along_axis(hidden_BLD, position_BS[:, :, None], axis=1)


class LossSums(NamedTuple):
    """Sums over targets, in nats and counts: divide by `count` for means."""

    loss: jax.Array
    correct: jax.Array
    count: jax.Array


def _chunks(x_BS, chunk: int):
    """[B, S, ...] -> [S / chunk, B * chunk, ...]; what pads the last chunk is zero, so its weight is 0.

    Each chunk takes positions of every row, so rows sharded over devices stay where they are.
    """
    rows, selected, *rest = x_BS.shape
    count = math.ceil(selected / chunk)
    even = math.ceil(selected / count)  # the largest chunk not above `chunk` that wastes least
    padded = jnp.pad(x_BS, ((0, 0), (0, count * even - selected)) + ((0, 0),) * len(rest))
    return jnp.moveaxis(padded.reshape(rows, count, even, *rest), 1, 0).reshape(count, rows * even, *rest)


def _chunk_loss(feature_ND, table_VD, bias_V, target_N):
    """Logits, the softmax's exponentials and their sums, and the targets' negative log-likelihood."""
    logits_NV = jnp.einsum("nd,vd->nv", feature_ND, table_VD, preferred_element_type=jnp.float32)
    logits_NV = logits_NV + bias_V.astype(jnp.float32)[None]
    top_N = logits_NV.max(axis=-1)
    exp_NV = jnp.exp(logits_NV - top_N[:, None])
    # Summed as a product with ones, so that XLA's CPU backend makes the exponentials once.
    total_N = jnp.einsum("nv,v->n", exp_NV, jnp.ones_like(bias_V, jnp.float32), precision=jax.lax.Precision.HIGHEST)
    # The target's logit again, from its own row: picking it out of logits_NV costs a copy of them.
    gold_N = jnp.einsum("nd,nd->n", feature_ND, table_VD[target_N], preferred_element_type=jnp.float32)
    gold_N = gold_N + bias_V[target_N].astype(jnp.float32)
    return logits_NV, exp_NV, total_N, top_N + jnp.log(total_N) - gold_N


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def cross_entropy(feature_BSD, table_VD, bias_V, target_BS, weight_BS, chunk: int) -> jax.Array:
    """Weighted sum of -log softmax(feature @ table.T + bias)[target], in float32 nats.

    At most `chunk` positions of each row have logits in memory at a time, and differentiation computes
    the gradients in the same pass, so logits are made once (the idea of Cut Your Losses,
    arXiv:2411.09009, and of Liger's fused linear cross-entropy, arXiv:2410.10989).
    """

    def one_chunk(total, inputs):
        feature_ND, target_N, weight_N = inputs
        *_, nll_N = _chunk_loss(feature_ND, table_VD, bias_V, target_N)
        return total + (nll_N * weight_N).sum(), None

    inputs = tuple(_chunks(x, chunk) for x in (feature_BSD, target_BS, weight_BS))
    return jax.lax.scan(one_chunk, jnp.zeros((), jnp.float32), inputs)[0]


def _cross_entropy_forward(feature_BSD, table_VD, bias_V, target_BS, weight_BS, chunk: int):
    gradients = on_own_rows(partial(_loss_gradients, chunk=chunk), (True, False, False, True, True))
    (total, d_table_VD, d_bias_V), d_feature_BSD = gradients(feature_BSD, table_VD, bias_V, target_BS, weight_BS)
    return total, (d_feature_BSD, d_table_VD.astype(table_VD.dtype), d_bias_V.astype(bias_V.dtype))


def _loss_gradients(feature_BSD, table_VD, bias_V, target_BS, weight_BS, *, chunk: int):
    """(loss, gradients of table and bias), all float32, and the gradient of the features."""

    def one_chunk(carry, inputs):
        total, d_table_VD, d_bias_V = carry
        feature_ND, target_N, weight_N = inputs
        _, exp_NV, total_N, nll_N = _chunk_loss(feature_ND, table_VD, bias_V, target_N)
        probs_NV = exp_NV / total_N[:, None]
        hit_NV = jnp.arange(bias_V.shape[0], dtype=jnp.int32)[None] == target_N[:, None]
        d_logits_NV = jnp.where(hit_NV, probs_NV - 1.0, probs_NV) * weight_N[:, None]
        ones_N = jnp.ones_like(weight_N)
        d_bias_V = d_bias_V + jnp.einsum("n,nv->v", ones_N, d_logits_NV, precision=jax.lax.Precision.HIGHEST)
        d_logits_NV = d_logits_NV.astype(feature_ND.dtype)
        d_feature_ND = jnp.einsum("nv,vd->nd", d_logits_NV, table_VD)
        d_table_VD = d_table_VD + jnp.einsum("nv,nd->vd", d_logits_NV, feature_ND, preferred_element_type=jnp.float32)
        return (total + (nll_N * weight_N).sum(), d_table_VD, d_bias_V), d_feature_ND

    inputs = tuple(_chunks(x, chunk) for x in (feature_BSD, target_BS, weight_BS))
    zeros = (jnp.zeros(shape, jnp.float32) for shape in ((), table_VD.shape, bias_V.shape))
    sums, d_chunks = jax.lax.scan(one_chunk, tuple(zeros), inputs)
    rows, selected, width = feature_BSD.shape
    d_chunks = jnp.moveaxis(d_chunks.reshape(d_chunks.shape[0], rows, -1, width), 0, 1)
    return sums, d_chunks.reshape(rows, -1, width)[:, :selected]


def _cross_entropy_backward(chunk: int, saved, d_total):
    return (*((d_total * gradient).astype(gradient.dtype) for gradient in saved), None, None)


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def measure(feature_BSD, table_VD, bias_V, target_BS, weight_BS, chunk: int) -> LossSums:
    """Loss and accuracy sums without gradients: what evaluation needs, in the same bounded memory."""

    def one_chunk(sums, inputs):
        feature_ND, target_N, weight_N = inputs
        logits_NV, *_, nll_N = _chunk_loss(feature_ND, table_VD, bias_V, target_N)
        correct_N = (logits_NV.argmax(-1) == target_N).astype(jnp.float32)
        new = (nll_N * weight_N, correct_N * weight_N, weight_N)
        return LossSums(*(old + x.sum() for old, x in zip(sums, new, strict=True))), None

    inputs = tuple(_chunks(x, chunk) for x in (feature_BSD, target_BS, weight_BS))
    return jax.lax.scan(one_chunk, LossSums(*(jnp.zeros((), jnp.float32),) * 3), inputs)[0]
