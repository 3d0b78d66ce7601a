"""Which key each query may read: the one idea of the project.

Every mask used here is an interval of keys per query, inside the query's own document, so one
definition serves the dense reference, the block-local kernel and any accelerator kernel.

Two documents of 5 and 3 tokens in a row, a query per line, x where it reads the key:

    full        window 2    causal      causal window 2
    xxxxx...    xxx.....    x.......    x.......
    xxxxx...    xxxx....    xx......    xx......
    xxxxx...    xxxxx...    xxx.....    xxx.....
    xxxxx...    .xxxx...    xxxx....    .xxx....
    xxxxx...    ..xxx...    xxxxx...    ..xxx...
    .....xxx    .....xxx    .....x..    .....x..
    .....xxx    .....xxx    .....xx.    .....xx.
    .....xxx    .....xxx    .....xxx    .....xxx

B rows, L queries, M keys (M = L). Segments: document number in a packed row, 0 = padding; a document
is a run of equal numbers.
"""

import enum
from dataclasses import dataclass

import jax
import jax.numpy as jnp


class MaskMode(enum.StrEnum):
    """How a query reads its document: only what came before it, or both sides."""

    CAUSAL = "causal"
    BIDIRECTIONAL = "bidirectional"

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"mask_mode is {value!r}: it is one of {', '.join(cls)}")


@dataclass(frozen=True)
class MaskSpec:
    """A mask, static under jit. `window` keys are seen on each open side, the query itself not counted.

    ModernBERT's local layers see `local_attention // 2` keys on each side: 129 keys for 128 when
    bidirectional, 65 when causal (the training code of arXiv 2605.12438 inherits both).
    """

    mode: MaskMode
    window: int | None = None  # None: the whole document

    def __post_init__(self):
        object.__setattr__(self, "mode", MaskMode(self.mode))  # its name will do too
        if self.window is not None and self.window < 1:
            raise ValueError(f"window {self.window} must be at least 1, or None for the whole document")


def document_bounds(segment_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First and one-past-last index of every token's document, each [B, L] int32."""
    num_tokens = segment_BL.shape[1]
    index_L = jnp.arange(num_tokens, dtype=jnp.int32)[None]
    changes_BL = segment_BL[:, 1:] != segment_BL[:, :-1]
    edge_B1 = jnp.ones((segment_BL.shape[0], 1), bool)
    first_BL = jnp.concatenate([edge_B1, changes_BL], axis=1)
    last_BL = jnp.concatenate([changes_BL, edge_B1], axis=1)
    start_BL = jax.lax.cummax(jnp.where(first_BL, index_L, 0), axis=1)
    end_BL = jax.lax.cummin(jnp.where(last_BL, index_L + 1, num_tokens), axis=1, reverse=True)
    return start_BL, end_BL


def positions(segment_BL: jax.Array) -> jax.Array:
    """Index of every token inside its own document, [B, L] int32."""
    return jnp.arange(segment_BL.shape[1], dtype=jnp.int32)[None] - document_bounds(segment_BL)[0]


def key_interval(spec: MaskSpec, segment_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys [start, end) that each query reads, each [B, L] int32. Never empty: a token reads itself.

    Padding is a document of its own, so no real token reads it and no softmax row is empty.
    """
    start_BL, end_BL = document_bounds(segment_BL)
    index_L = jnp.arange(segment_BL.shape[1], dtype=jnp.int32)[None]
    if spec.window is not None:
        start_BL = jnp.maximum(start_BL, index_L - spec.window)
        end_BL = jnp.minimum(end_BL, index_L + spec.window + 1)
    if spec.mode == MaskMode.CAUSAL:
        end_BL = jnp.broadcast_to(index_L + 1, end_BL.shape)
    return start_BL, end_BL


def dense_mask(spec: MaskSpec, segment_BL: jax.Array) -> jax.Array:
    """A mask as booleans, [B, L, M]: true where query L reads key M."""
    start_BL, end_BL = key_interval(spec, segment_BL)
    key_M = jnp.arange(segment_BL.shape[1], dtype=jnp.int32)[None, None]
    return (start_BL[..., None] <= key_M) & (key_M < end_BL[..., None])


def picture(mask_LM: jax.Array) -> str:
    """A mask as text, one line per query: x where it reads the key, a dot where it does not."""
    return "\n".join("".join(".x"[int(seen)] for seen in row) for row in mask_LM)
