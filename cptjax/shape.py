"""The shape of a ModernBERT encoder, the dtypes it computes in, and how its layers are stacked and named."""

import reprlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax

from cptjax import bounds
from cptjax.masks import MaskMode, MaskSpec

FULL, SLIDING = "full_attention", "sliding_attention"  # transformers' words
STANDARD_PERIOD = 3  # ModernBERT: every third layer is global
Remat = Literal["none", "block", "dots"]


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a ModernBERT encoder; field names and defaults are transformers' (ModernBERT-base)."""

    vocab_size: int = 50368
    hidden_size: int = 768
    intermediate_size: int = 1152
    num_hidden_layers: int = 22
    num_attention_heads: int = 12
    local_attention: int = 128  # a local layer sees local_attention // 2 tokens on each side
    global_rope_theta: float = 160_000.0
    local_rope_theta: float = 10_000.0
    layer_types: tuple[str, ...] = ()  # empty: layer i is global when i % 3 == 0
    hidden_activation: str = "gelu"
    classifier_activation: str = "gelu"  # also that of the language-model head, as in transformers
    norm_eps: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    classifier_bias: bool = False  # bias of the language-model head's dense layer
    decoder_bias: bool = True
    tie_word_embeddings: bool = True
    max_position_embeddings: int = 8192
    initializer_range: float = 0.02
    initializer_cutoff_factor: float = 2.0
    head: str = "lm"  # what stands on the encoder: "lm", "classifier" or "none"
    num_labels: int = 0  # outputs of a classifier
    classifier_pooling: str = "mean"  # how a classifier of whole texts reads one: "mean", or "cls", its first token
    # A causal local layer reads local_attention // 2 tokens before the query and the query: 65 of 128, as in
    # the code of arXiv:2605.12438. True: the query is one of the 64, as in transformers' ModernBertDecoder.
    causal_window_counts_self: bool = False

    def __post_init__(self):
        if wrong := bounds.complaints(vars(self)):
            raise ValueError("; ".join(wrong))
        for name in bounds.REALS:  # jax takes no whole number that an int32 does not hold
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.layer_types == ():
            kinds = (FULL if i % STANDARD_PERIOD == 0 else SLIDING for i in range(self.num_hidden_layers))
            object.__setattr__(self, "layer_types", tuple(kinds))
        if type(self.layer_types) is not tuple or len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types {reprlib.repr(self.layer_types)} must name each of {self.num_hidden_layers} layers, "
                "or none for the usual pattern"
            )
        if unknown := [kind for kind in self.layer_types if kind not in (FULL, SLIDING)]:
            raise ValueError(f"layer_types holds {reprlib.repr(unknown)}; known are {FULL!r} and {SLIDING!r}")
        if self.hidden_size % self.num_attention_heads or self.head_dim % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be num_attention_heads "
                f"{self.num_attention_heads} times an even head width"
            )
        if self.causal_window_counts_self and self.sliding_window < 2:
            raise ValueError(
                f"local_attention is {self.local_attention}: it must be at least 4 where causal_window_counts_self, "
                "or a token would read itself only"
            )
        if (self.head == "classifier") != (self.num_labels > 0):
            raise ValueError(
                f"num_labels is {self.num_labels} with head {self.head!r}: a classifier has labels, and it only"
            )

    @property
    def head_dim(self) -> int:
        """Width K of one head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def sliding_window(self) -> int:
        """Tokens a local layer sees on each side, the query itself not counted."""
        return self.local_attention // 2

    def mask_spec(self, kind: str, mask_mode: str) -> MaskSpec:
        """What a layer of this kind reads. Raises ValueError for a mode that is not a MaskMode."""
        mode = MaskMode(mask_mode)
        if kind == FULL:
            return MaskSpec(mode)
        one_less = mode == MaskMode.CAUSAL and self.causal_window_counts_self
        return MaskSpec(mode, self.sliding_window - one_less)

    def mean_keys(self, mask_mode: str, document: float) -> list[float]:
        """Keys that a query reads in each layer, its mean, in documents of this many tokens (less at their edges)."""
        reach = 1 if MaskMode(mask_mode) == MaskMode.CAUSAL else 2
        whole = document * reach / 2
        windows = {kind: self.mask_spec(kind, mask_mode).window for kind in set(self.layer_types)}
        limits = {kind: whole if window is None else min(whole, reach * window + 1) for kind, window in windows.items()}
        return [limits[kind] for kind in self.layer_types]


@dataclass(frozen=True)
class Precision:
    """The dtypes of the operands of products, and of the stream of hidden states that every layer adds to. Stored
    parameters, logits and losses are float32. A bfloat16 stream is rounded at every layer: the gradient's error
    grows with it (docs/configs.md)."""

    compute: Literal["float32", "bfloat16"] = "bfloat16"
    residual: Literal["float32", "bfloat16"] = "float32"

    def products(self) -> AbstractContextManager:
        """The context to trace a step in: float32 products are float32 there, where the device's own default may be
        TF32 or bfloat16."""
        return jax.default_matmul_precision("highest") if self.compute == "float32" else nullcontext()


class LayerGroups(NamedTuple):
    """Layer 0, then `repeats` scanned blocks of `period` layers, then the unrolled rest."""

    period: int
    repeats: int
    rest: tuple[int, ...]


def layer_groups(config: ModelConfig) -> LayerGroups:
    """How the layers after layer 0 fold into a scan: the shortest period that repeats, else none."""
    kinds = config.layer_types[1:]
    for period in range(1, len(kinds) // 2 + 1):
        if all(kinds[i] == kinds[i % period] for i in range(len(kinds))):
            repeats = len(kinds) // period
            return LayerGroups(period, repeats, tuple(range(1 + repeats * period, config.num_hidden_layers)))
    return LayerGroups(0, 0, tuple(range(1, config.num_hidden_layers)))


def layer_path(config: ModelConfig, layer: int) -> tuple[tuple[str, ...], int | None]:
    """Where a layer's parameters live: its path, and its index on the stacked axis (None: not stacked)."""
    groups = layer_groups(config)
    if 0 < layer <= groups.period * groups.repeats:
        block, place = divmod(layer - 1, groups.period)
        return ("blocks", f"l{place}"), block
    return (f"layer_{layer}",), None


def parameter_names(config: ModelConfig, path: tuple[str, ...]) -> Iterator[str]:
    """The names a parameter answers to, one per layer when stacked: `layers/4/attn/Wqkv`, `final_norm/scale`.

    Freezing patterns and per-layer reports use these names, so that stacking stays an implementation matter.
    """
    if path[0] == "blocks":
        groups = layer_groups(config)
        for block in range(groups.repeats):
            layer = 1 + block * groups.period + int(path[1].removeprefix("l"))
            yield "/".join(("layers", str(layer), *path[2:]))
    elif path[0].startswith("layer_"):
        yield "/".join(("layers", path[0].removeprefix("layer_"), *path[1:]))
    else:
        yield "/".join(path)
