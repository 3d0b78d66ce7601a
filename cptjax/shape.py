"""The shapes of encoders, the dtypes they compute in, and how their layers are stacked and named."""

import math
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import jax

from cptjax import bounds
from cptjax.dropout import Dropout
from cptjax.masks import MaskMode, MaskSpec

FULL, SLIDING = "full_attention", "sliding_attention"  # transformers' words
STANDARD_PERIOD = 3  # ModernBERT: every third layer is global
Remat = Literal["none", "block", "dots"]


@dataclass(frozen=True)
class ModelConfig:
    """What the shapes of all families hold; field names are transformers'."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    head: str = "lm"  # what stands on the encoder: "lm", "classifier" or "none"
    num_labels: int = 0  # outputs of a classifier

    # What the network asks too: a field, a property or a constant of each family.
    families: ClassVar[Mapping[str, str]]  # the values of model_type, transformers' word, and how people write them
    model_type: ClassVar[str]
    layer_types: ClassVar[tuple[str, ...]]
    layers_before_scan: ClassVar[int]  # first layers that are not like those after them
    sliding_window: ClassVar[int]
    gated: ClassVar[bool]  # whether the feed-forward multiplies its activation by a gate
    hidden_activation: ClassVar[str]
    classifier_activation: ClassVar[str]  # also that of the language-model head, as in transformers
    classifier_pooling: ClassVar[str]
    norm_eps: ClassVar[float]
    norm_bias: ClassVar[bool]
    attention_bias: ClassVar[bool]
    mlp_bias: ClassVar[bool]
    classifier_bias: ClassVar[bool]  # of the language-model head's dense layer
    decoder_bias: ClassVar[bool]
    initializer_cutoff_factor: ClassVar[float]
    output_range: ClassVar[float]  # initializer_range of what writes into the residual stream
    longest_document: ClassVar[int]  # tokens that have positions
    dropout: ClassVar[Dropout]  # as the config has it
    causal_window_counts_self: ClassVar[bool] = True  # whether causal local layers, if any, read as transformers' do
    features_dropout: ClassVar[float]  # share dropped of what a classifier reads
    classifier_range: ClassVar[float]  # initializer_range of a classifier

    def __post_init__(self):
        if wrong := bounds.complaints(vars(self)):
            raise ValueError("; ".join(wrong))
        if self.model_type not in self.families:
            raise ValueError(
                f"model_type is {reprlib.repr(self.model_type)}: it must be one of {', '.join(self.families)}"
            )
        for name in bounds.REALS & vars(self).keys():  # jax takes no whole number that an int32 does not hold
            if getattr(self, name) is not None:
                object.__setattr__(self, name, float(getattr(self, name)))
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if (self.head == "classifier") != (self.num_labels > 0):
            raise ValueError(
                f"num_labels is {self.num_labels} with head {self.head!r}: a classifier has labels, and it only"
            )

    @property
    def head_dim(self) -> int:
        """Width K of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def mask_spec(self, kind: str, mask_mode: str) -> MaskSpec:
        """What a layer of this kind reads. Raises ValueError for a mode that is not a MaskMode."""
        return MaskSpec(MaskMode(mask_mode), None if kind == FULL else self.sliding_window)

    def mean_keys(self, mask_mode: str, document: float) -> list[float]:
        """Keys that a query reads in each layer, its mean, in documents of this many tokens (less at their edges)."""
        reach = 1 if MaskMode(mask_mode) == MaskMode.CAUSAL else 2
        whole = document * reach / 2
        windows = {kind: self.mask_spec(kind, mask_mode).window for kind in set(self.layer_types)}
        limits = {kind: whole if window is None else min(whole, reach * window + 1) for kind, window in windows.items()}
        return [limits[kind] for kind in self.layer_types]


@dataclass(frozen=True)
class ModernBertConfig(ModelConfig):
    """Shape of a ModernBERT encoder; the defaults are transformers' (ModernBERT-base)."""

    vocab_size: int = 50368
    hidden_size: int = 768
    intermediate_size: int = 1152
    num_hidden_layers: int = 22
    num_attention_heads: int = 12
    max_position_embeddings: int = 8192
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0  # of the weights of keys, and of what attention adds
    mlp_dropout: float = 0.0
    classifier_dropout: float | None = 0.0  # of what a classifier reads
    local_attention: int = 128  # a local layer sees local_attention // 2 tokens on each side
    global_rope_theta: float = 160_000.0
    local_rope_theta: float = 10_000.0
    layer_types: tuple[str, ...] = ()  # empty: layer i is global when i % 3 == 0
    hidden_activation: str = "gelu"
    classifier_activation: str = "gelu"
    norm_eps: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    classifier_bias: bool = False
    decoder_bias: bool = True
    initializer_cutoff_factor: float = 2.0
    classifier_pooling: str = "mean"  # how a classifier of whole texts reads one: "mean", or "cls", its first token
    # A causal local layer reads local_attention // 2 tokens before the query and the query: 65 of 128, as in
    # the code of arXiv:2605.12438. True: the query is one of the 64, as in transformers' ModernBertDecoder.
    causal_window_counts_self: bool = False
    model_type: str = "modernbert"

    families: ClassVar = {"modernbert": "ModernBERT"}
    layers_before_scan = 1  # layer 0 has no attn_norm
    gated = True

    def __post_init__(self):
        super().__post_init__()
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
        if self.head_dim % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} over num_attention_heads {self.num_attention_heads} is "
                f"{self.head_dim}: rotary positions need an even head width"
            )
        if self.causal_window_counts_self and self.sliding_window < 2:
            raise ValueError(
                f"local_attention is {self.local_attention}: it must be at least 4 where causal_window_counts_self, "
                "or a token would read itself only"
            )

    @property
    def sliding_window(self) -> int:
        """Tokens a local layer sees on each side, the query itself not counted."""
        return self.local_attention // 2

    @property
    def output_range(self) -> float:
        """Megatron's smaller deviation for what writes into the residual stream (arXiv:1909.08053)."""
        return self.initializer_range / math.sqrt(2.0 * self.num_hidden_layers)

    @property
    def longest_document(self) -> int:
        """Tokens of the longest document."""
        return self.max_position_embeddings

    @property
    def dropout(self) -> Dropout:
        """Shares of values dropped in training, as in transformers."""
        return Dropout(self.embedding_dropout, self.attention_dropout, self.attention_dropout, self.mlp_dropout)

    @property
    def features_dropout(self) -> float:
        """Share dropped of what a classifier reads."""
        return self.classifier_dropout or 0.0

    @property
    def classifier_range(self) -> float:
        """Deviation of a classifier's weights at the start."""
        return self.hidden_size**-0.5

    def mask_spec(self, kind: str, mask_mode: str) -> MaskSpec:
        """What a layer of this kind reads. Raises ValueError for a mode that is not a MaskMode."""
        spec = super().mask_spec(kind, mask_mode)
        if spec.window is None or spec.mode != MaskMode.CAUSAL or not self.causal_window_counts_self:
            return spec
        return MaskSpec(spec.mode, spec.window - 1)


@dataclass(frozen=True)
class BertConfig(ModelConfig):
    """Shape of a BERT or RoBERTa encoder; the defaults are transformers' (BERT-base, uncased)."""

    vocab_size: int = 30522
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 512
    model_type: str = "bert"
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None  # of what a classifier reads; None: as of the hidden states
    type_vocab_size: int = 2
    pad_token_id: int = 0  # RoBERTa's positions begin after it
    pooler: bool = False  # a dense layer on the first token, with a classifier of whole texts or kept for one

    families: ClassVar = {
        "bert": "BERT",
        "roberta": "RoBERTa",
        "camembert": "CamemBERT",
        "xlm-roberta": "XLM-RoBERTa",
    }
    layers_before_scan = 0
    sliding_window = 0
    gated = False
    norm_bias = attention_bias = mlp_bias = classifier_bias = decoder_bias = True
    classifier_pooling = "cls"
    initializer_cutoff_factor = math.inf

    def __post_init__(self):
        super().__post_init__()
        if self.longest_document < 1:
            raise ValueError(
                f"max_position_embeddings is {self.max_position_embeddings}: positions of a {self.model_type} begin at "
                f"pad_token_id + 1 = {self.first_position}, so it must be larger"
            )

    @property
    def first_position(self) -> int:
        """Row of the position table for the first token of a document."""
        return 0 if self.model_type == "bert" else self.pad_token_id + 1

    @property
    def longest_document(self) -> int:
        """Tokens that have positions."""
        return self.max_position_embeddings - self.first_position

    @property
    def dropout(self) -> Dropout:
        """Shares of values dropped in training, as in transformers."""
        hidden = self.hidden_dropout_prob
        return Dropout(hidden, self.attention_probs_dropout_prob, hidden, hidden)

    @property
    def features_dropout(self) -> float:
        """Share dropped of what a classifier reads."""
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout

    @property
    def classifier_range(self) -> float:
        """Deviation of a classifier's weights at the start."""
        return self.initializer_range

    @property
    def layer_types(self) -> tuple[str, ...]:
        """Every layer reads its whole document."""
        return (FULL,) * self.num_hidden_layers

    @property
    def hidden_activation(self) -> str:
        """The feed-forward's activation."""
        return self.hidden_act

    @property
    def classifier_activation(self) -> str:
        """The language-model head's activation: RoBERTa's is gelu whatever the config says."""
        return self.hidden_act if self.model_type == "bert" else "gelu"

    @property
    def norm_eps(self) -> float:
        """Added to the variance in LayerNorm."""
        return self.layer_norm_eps

    @property
    def output_range(self) -> float:
        """Deviation at the start of what writes into the residual stream, as of all other weights."""
        return self.initializer_range


@dataclass(frozen=True)
class Precision:
    """The dtypes of the operands of products, and of the stream of hidden states that every layer adds to. Stored
    parameters, logits and losses are float32. A bfloat16 stream is rounded at every layer: the gradient's error
    grows with it (docs/configs.md)."""

    compute: Literal["float32", "bfloat16"] = "bfloat16"
    residual: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        for name, dtype in vars(self).items():
            if dtype not in ("float32", "bfloat16"):
                raise ValueError(f"precision.{name} is {dtype!r}: it is one of float32, bfloat16")

    def products(self) -> AbstractContextManager:
        """The context to trace a step in: float32 products are float32 there, where the device's own default may be
        TF32 or bfloat16."""
        return jax.default_matmul_precision("highest") if self.compute == "float32" else nullcontext()


class LayerGroups(NamedTuple):
    """The first layers, then `repeats` scanned blocks of `period` layers, then the unrolled rest."""

    first: tuple[int, ...]
    period: int
    repeats: int
    rest: tuple[int, ...]

    @property
    def scanned(self) -> list[list[int]]:
        """Numbers of the layers of each scanned block."""
        blocks = (len(self.first) + block * self.period for block in range(self.repeats))
        return [list(range(first, first + self.period)) for first in blocks]


def layer_groups(config: ModelConfig) -> LayerGroups:
    """How the layers after the first fold into a scan: the shortest period that repeats, else none."""
    before = config.layers_before_scan
    kinds = config.layer_types[before:]
    for period in range(1, len(kinds) // 2 + 1):
        if all(kinds[i] == kinds[i % period] for i in range(len(kinds))):
            repeats = len(kinds) // period
            break
    else:
        period = repeats = 0
    scanned = before + repeats * period
    return LayerGroups(tuple(range(before)), period, repeats, tuple(range(scanned, config.num_hidden_layers)))


def layer_path(config: ModelConfig, layer: int) -> tuple[tuple[str, ...], int | None]:
    """Where a layer's parameters live: its path, and its index on the stacked axis (None: not stacked)."""
    groups = layer_groups(config)
    if layer in groups.first + groups.rest:
        return (f"layer_{layer}",), None
    block, place = divmod(layer - len(groups.first), groups.period)
    return ("blocks", f"l{place}"), block


def parameter_names(config: ModelConfig, path: tuple[str, ...]) -> Iterator[str]:
    """The names a parameter answers to, one per layer when stacked: `layers/4/attn/Wqkv`, `final_norm/scale`.

    Freezing patterns and per-layer reports use these names, so that stacking stays an implementation matter.
    """
    if path[0] == "blocks":
        groups = layer_groups(config)
        for block in groups.scanned:
            yield "/".join(("layers", str(block[int(path[1].removeprefix("l"))]), *path[2:]))
    elif path[0].startswith("layer_"):
        yield "/".join(("layers", path[0].removeprefix("layer_"), *path[1:]))
    else:
        yield "/".join(path)


def part_of(name: str) -> str:
    """The part of a model that a parameter of this name is of: `layers/4/attn`, `layers/4/mlp`, `layers/4/norms`,
    `embeddings`, `embeddings/norms`, `final_norm`, `head` and so on."""
    *outer, owner, _ = name.split("/")
    return "/".join((*outer, "norms" if outer and owner.endswith("norm") else owner))
