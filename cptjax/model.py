"""ModernBERT as a pure function of a plain parameter dict, reading causally or bidirectionally.

Architecture only: arXiv:2412.13663, and transformers' modeling_modernbert.py for the exact order of
operations. Layer 0 stands alone (it has no attn_norm); the layers after it repeat with a period
([local, local, global]), so one scanned block holds each period and its parameters are stacked along
a leading layer axis; what does not fit the period is unrolled.

B rows, L tokens per row, N tokens of all rows, D width, H heads, K head width, F feed-forward width, V vocabulary.
In layers_NBLD, N counts the kept layers; in scores of a classifier, its labels. Tokens are flattened before
each product with a weight: XLA's CPU backend copies and transposes operands that are contracted over two axes.
"""

import math
import reprlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from cptjax import bounds
from cptjax.attention.backends import KERNELS, SAVED, attend
from cptjax.masks import MaskMode, MaskSpec, positions
from cptjax.sharding import on_own_rows

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
    """The dtypes of stored parameters, of the operands of products, of the stream of hidden states that every layer
    adds to, and of logits and loss. A bfloat16 stream is rounded at every layer: the gradient's error grows with
    it (docs/configs.md)."""

    params: Literal["float32"] = "float32"
    compute: Literal["float32", "bfloat16"] = "bfloat16"
    residual: Literal["float32", "bfloat16"] = "float32"
    loss: Literal["float32"] = "float32"

    def products(self) -> AbstractContextManager:
        """The context to trace a step in: float32 products are float32 there, where the device's own default may be
        TF32 or bfloat16."""
        return jax.default_matmul_precision("highest") if self.compute == "float32" else nullcontext()


class Encoded(NamedTuple):
    """What the encoder returns: hidden states after final_norm and, on request, every layer's output.

    layers_NBLD holds the embedding output, then each layer's output before final_norm, in the dtype of the
    residual stream: N = num_hidden_layers + 1.
    """

    hidden_BLD: jax.Array
    layers_NBLD: jax.Array | None


class LayerPlan(NamedTuple):
    """Layer 0, then `repeats` scanned blocks of `period` layers, then the unrolled rest."""

    period: int
    repeats: int
    rest: tuple[int, ...]


def layer_plan(config: ModelConfig) -> LayerPlan:
    """How the layers after layer 0 fold into a scan: the shortest period that repeats, else none."""
    kinds = config.layer_types[1:]
    for period in range(1, len(kinds) // 2 + 1):
        if all(kinds[i] == kinds[i % period] for i in range(len(kinds))):
            repeats = len(kinds) // period
            return LayerPlan(period, repeats, tuple(range(1 + repeats * period, config.num_hidden_layers)))
    return LayerPlan(0, 0, tuple(range(1, config.num_hidden_layers)))


def layer_path(config: ModelConfig, layer: int) -> tuple[tuple[str, ...], int | None]:
    """Where a layer's parameters live: its path, and its index on the stacked axis (None: not stacked)."""
    plan = layer_plan(config)
    if 0 < layer <= plan.period * plan.repeats:
        block, place = divmod(layer - 1, plan.period)
        return ("blocks", f"l{place}"), block
    return (f"layer_{layer}",), None


def parameter_names(config: ModelConfig, path: tuple[str, ...]) -> Iterator[str]:
    """The names a parameter answers to, one per layer when stacked: `layers/4/attn/Wqkv`, `final_norm/scale`.

    Freezing patterns and per-layer reports use these names, so that stacking stays an implementation matter.
    """
    if path[0] == "blocks":
        plan = layer_plan(config)
        for block in range(plan.repeats):
            layer = 1 + block * plan.period + int(path[1].removeprefix("l"))
            yield "/".join(("layers", str(layer), *path[2:]))
    elif path[0].startswith("layer_"):
        yield "/".join(("layers", path[0].removeprefix("layer_"), *path[1:]))
    else:
        yield "/".join(path)


def _truncated_normal(config: ModelConfig, std: float):
    """Normal of this std cut at +-cutoff stds, not rescaled (transformers' ModernBERT initialisation)."""
    cutoff = config.initializer_cutoff_factor

    def init(key, shape, dtype):
        return std * jax.random.truncated_normal(key, -cutoff, cutoff, shape, dtype)

    return init


def _init_in(config: ModelConfig):
    return _truncated_normal(config, config.initializer_range)


def _init_out(config: ModelConfig):
    """Megatron's smaller init for what writes into the residual stream."""
    return _truncated_normal(config, config.initializer_range / math.sqrt(2.0 * config.num_hidden_layers))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def layer_norm(x_ND: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    """(x - mean) / sqrt(variance + eps) * scale over the last axis, in float32 (arXiv:1607.06450).

    Its backward pass keeps x only, and sums over tokens by a matrix product: XLA's CPU reduction over the
    long axis is several times slower.
    """
    return _normalise(x_ND, eps)[0] * scale_D[None]


def _normalise(x_ND, eps: float):
    centred_ND = x_ND.astype(jnp.float32) - x_ND.astype(jnp.float32).mean(-1, keepdims=True)
    inverse_N1 = jax.lax.rsqrt(jnp.square(centred_ND).mean(-1, keepdims=True) + eps)
    return centred_ND * inverse_N1, inverse_N1


def _layer_norm_backward(eps: float, saved, d_out_ND):
    x_ND, scale_D = saved
    normed_ND, inverse_N1 = _normalise(x_ND, eps)
    ones_N = jnp.ones(x_ND.shape[0], jnp.float32)
    d_scale_D = jnp.einsum("n,nd->d", ones_N, d_out_ND * normed_ND, precision=jax.lax.Precision.HIGHEST)
    d_normed_ND = d_out_ND * scale_D[None]
    along_N1 = (d_normed_ND * normed_ND).mean(-1, keepdims=True)
    d_x_ND = (d_normed_ND - d_normed_ND.mean(-1, keepdims=True) - normed_ND * along_N1) * inverse_N1
    return d_x_ND.astype(x_ND.dtype), d_scale_D


layer_norm.defvjp(lambda x, scale, eps: (layer_norm(x, scale, eps), (x, scale)), _layer_norm_backward)


class Norm(nn.Module):
    """LayerNorm in float32, with a bias only where the config asks for one; `dtype` is the result's."""

    config: ModelConfig
    precision: Precision
    dtype: str

    @nn.compact
    def __call__(self, x_BLD):
        dtype = jnp.dtype(self.precision.params)
        width = x_BLD.shape[-1]
        scale_D = self.param("scale", nn.initializers.ones, (width,), dtype).astype(jnp.float32)
        out_ND: Any = layer_norm(x_BLD.reshape(-1, width), scale_D, self.config.norm_eps)
        if self.config.norm_bias:
            bias_D = self.param("bias", nn.initializers.zeros, (width,), dtype)
            out_ND = out_ND + bias_D.astype(jnp.float32)[None]
        return out_ND.reshape(x_BLD.shape).astype(self.dtype)


def rope_table(position_BL: jax.Array, theta: float, head_dim: int) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the rotary angles, each [B, L, 1, K / 2] float32 (arXiv:2104.09864)."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = position_BL[:, :, None, None].astype(jnp.float32) * frequency[None, None, None]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BLHK: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Apply rotary positions: halves are paired (not interleaved), products in float32."""
    cosine, sine = table
    first, second = jnp.split(x_BLHK.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return turned.astype(x_BLHK.dtype)


@jax.custom_vjp
def project(x_ND: jax.Array, weights: jax.Array) -> tuple[jax.Array, ...]:
    """x @ w.T for each w of a stack [G, ..., D]: G arrays [N, ...].

    Separate results need no slicing afterwards, whose gradient would be as many padded copies; and the
    backward pass keeps the stack itself, where slices of it would be copied in every step of the scan.
    """
    return tuple(jnp.einsum("nd,...d->n...", x_ND, w) for w in weights)


def _project_backward(saved, d_out):
    x_ND, weights = saved
    d_x_ND = sum(jnp.einsum("n...,...d->nd", d, w) for d, w in zip(d_out, weights, strict=True))
    return d_x_ND, jnp.stack([jnp.einsum("n...,nd->...d", d, x_ND) for d in d_out])


def _project_forward(x_ND, weights):
    return checkpoint_name(project(x_ND, weights), SAVED), (x_ND, weights)


project.defvjp(_project_forward, _project_backward)


class Attention(nn.Module):
    """Self-attention with rotary positions; whether local or global is decided by the spec it is given."""

    config: ModelConfig
    precision: Precision
    backend: str

    @nn.compact
    def __call__(self, x_BLD, segment_BL, rope, spec: MaskSpec):
        config, compute = self.config, jnp.dtype(self.precision.compute)
        params = jnp.dtype(self.precision.params)
        shape_HK = (config.num_attention_heads, config.head_dim)
        w_qkv = self.param("Wqkv", _init_in(config), (3, *shape_HK, config.hidden_size), params)
        w_out = self.param("Wo", _init_out(config), (config.hidden_size, *shape_HK), params)
        qkv = project(x_BLD.reshape(-1, config.hidden_size).astype(compute), w_qkv.astype(compute))
        if config.attention_bias:
            bias_CHK = self.param("Wqkv_bias", nn.initializers.zeros, (3, *shape_HK), params).astype(compute)
            qkv = [x_NHK + bias_HK[None] for x_NHK, bias_HK in zip(qkv, bias_CHK, strict=True)]
        q_BLHK, k_BLHK, v_BLHK = (x_NHK.reshape(*x_BLD.shape[:2], *shape_HK) for x_NHK in qkv)
        mixed_BLHK = attend(rotate(q_BLHK, rope), rotate(k_BLHK, rope), v_BLHK, spec, segment_BL, backend=self.backend)
        mixed_NHK = mixed_BLHK.reshape(-1, *shape_HK)
        out_ND = jnp.einsum("nhk,dhk->nd", mixed_NHK, w_out.astype(compute))
        if config.attention_bias:
            bias_D = self.param("Wo_bias", nn.initializers.zeros, (config.hidden_size,), params)
            out_ND += bias_D.astype(compute)[None]
        return out_ND.reshape(x_BLD.shape)


@partial(jax.checkpoint, static_argnums=0)
def _in_float32(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """An activation in float32, rounded once to the dtype of x, and so is its gradient: in bfloat16 every operation
    of it would round. The backward pass keeps x alone, for what is in float32 takes twice the memory."""
    return function(x.astype(jnp.float32)).astype(x.dtype)


def gelu(x: jax.Array) -> jax.Array:
    """x * P(normal <= x), exact (arXiv:1606.08415), by erf: as PyTorch computes it, and cheaper than
    erfc on a CPU."""
    return _in_float32(_gelu, x)


@jax.custom_jvp
def _gelu(x):
    return x * _normal_cdf(x)


def _normal_cdf(x):
    return 0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


@_gelu.defjvp
def _gelu_tangent(primals, tangents):
    (x,), (d_x,) = primals, tangents
    density = jnp.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))
    return _gelu(x), (_normal_cdf(x) + x * density) * d_x


ACTIVATIONS = {"gelu": gelu, "relu": partial(_in_float32, nn.relu), "silu": partial(_in_float32, nn.silu)}


class Mlp(nn.Module):
    """GeGLU: the activation is on the first half (arXiv:2002.05202)."""

    config: ModelConfig
    precision: Precision

    @nn.compact
    def __call__(self, x_BLD):
        config, compute = self.config, jnp.dtype(self.precision.compute)
        params = jnp.dtype(self.precision.params)
        shape_GFD = (2, config.intermediate_size, config.hidden_size)
        w_in = self.param("Wi", _init_in(config), shape_GFD, params)
        w_out = self.param("Wo", _init_out(config), (config.hidden_size, config.intermediate_size), params)
        first_NF, gate_NF = project(x_BLD.reshape(-1, config.hidden_size), w_in.astype(compute))
        if config.mlp_bias:
            bias_GF = self.param("Wi_bias", nn.initializers.zeros, shape_GFD[:2], params).astype(compute)
            first_NF, gate_NF = first_NF + bias_GF[:1], gate_NF + bias_GF[1:]
        gated_NF = ACTIVATIONS[config.hidden_activation](first_NF) * gate_NF
        out_ND = jnp.einsum("nf,df->nd", gated_NF, w_out.astype(compute))
        if config.mlp_bias:
            bias_D = self.param("Wo_bias", nn.initializers.zeros, (config.hidden_size,), params)
            out_ND += bias_D.astype(compute)[None]
        return out_ND.reshape(x_BLD.shape)


def _same(x: jax.Array) -> jax.Array:
    return x


class Layer(nn.Module):
    """One pre-norm layer; `kind` is FULL or SLIDING."""

    config: ModelConfig
    precision: Precision
    backend: str
    pin: Callable
    kind: str
    first: bool = False  # layer 0 has no attn_norm: the embedding norm comes just before it

    @nn.compact
    def __call__(self, hidden_BLD, segment_BL, rope, mask_mode: str):
        hidden_BLD = self.pin(hidden_BLD)
        norm = partial(Norm, self.config, self.precision, self.precision.compute)
        spec = self.config.mask_spec(self.kind, mask_mode)
        normed_BLD = hidden_BLD if self.first else norm(name="attn_norm")(hidden_BLD)
        attention = Attention(self.config, self.precision, self.backend, name="attn")
        hidden_BLD += attention(normed_BLD, segment_BL, rope[self.kind], spec).astype(hidden_BLD.dtype)
        normed_BLD = norm(name="mlp_norm")(hidden_BLD)
        return hidden_BLD + Mlp(self.config, self.precision, name="mlp")(normed_BLD).astype(hidden_BLD.dtype)


class Block(nn.Module):
    """One period of layers, the unit of the scan; returns the outputs of its layers when they are kept."""

    config: ModelConfig
    precision: Precision
    backend: str
    pin: Callable

    @nn.compact
    def __call__(self, hidden_BLD, segment_BL, rope, mask_mode: str, keep_layers: bool):
        kept = []
        for place in range(layer_plan(self.config).period):
            kind = self.config.layer_types[1 + place]
            layer = Layer(self.config, self.precision, self.backend, self.pin, kind, name=f"l{place}")
            hidden_BLD = layer(hidden_BLD, segment_BL, rope, mask_mode)
            kept.append(hidden_BLD)
        return hidden_BLD, jnp.stack(kept) if keep_layers else None


@jax.custom_vjp
def lookup(table_VD: jax.Array, token_BL: jax.Array) -> jax.Array:
    """Rows of a table, [B, L, D]. Its gradient is added up on each device, then once over the devices of a mesh."""
    return jnp.take(table_VD, token_BL, axis=0)


def _lookup_backward(saved, d_out_BLD):
    table_VD, token_BL = saved

    def add_rows(token_BL, d_out_BLD):
        return jnp.zeros(table_VD.shape, table_VD.dtype).at[token_BL].add(d_out_BLD), ()

    d_table_VD, _ = on_own_rows(add_rows, (True, True))(token_BL, d_out_BLD)
    return d_table_VD, None


lookup.defvjp(lambda table_VD, token_BL: (lookup(table_VD, token_BL), (table_VD, token_BL)), _lookup_backward)


class Embeddings(nn.Module):
    """Token embeddings and their norm; no positions (rotary instead) and no token types."""

    config: ModelConfig
    precision: Precision

    def setup(self):
        shape = (self.config.vocab_size, self.config.hidden_size)
        dtype = jnp.dtype(self.precision.params)
        self.tok_embeddings = self.param("tok_embeddings", _init_in(self.config), shape, dtype)
        self.norm = Norm(self.config, self.precision, self.precision.residual)

    def __call__(self, token_BL):
        return self.norm(lookup(self.tok_embeddings, token_BL))


class Head(nn.Module):
    """dense, activation, norm: what transformers puts between the encoder and the decoder."""

    config: ModelConfig
    precision: Precision

    @nn.compact
    def __call__(self, hidden_BLD):
        config, compute = self.config, jnp.dtype(self.precision.compute)
        params = jnp.dtype(self.precision.params)
        dense = self.param("dense", _init_out(config), (config.hidden_size,) * 2, params)
        out_BLD = jnp.einsum("bld,ed->ble", hidden_BLD, dense.astype(compute))
        if config.classifier_bias:
            bias_D = self.param("dense_bias", nn.initializers.zeros, (config.hidden_size,), params)
            out_BLD += bias_D.astype(compute)[None, None]
        out_BLD = ACTIVATIONS[config.classifier_activation](out_BLD)
        return Norm(config, self.precision, self.precision.compute, name="norm")(out_BLD)


class Decoder(nn.Module):
    """The output table [V, D] and bias [V]; the table is the token embedding when tied."""

    config: ModelConfig
    precision: Precision

    @nn.compact
    def __call__(self, tok_embeddings_VD):
        config, params = self.config, jnp.dtype(self.precision.params)
        table_VD = tok_embeddings_VD
        if not config.tie_word_embeddings:
            table_VD = self.param("weight", _init_out(config), (config.vocab_size, config.hidden_size), params)
        bias_V = jnp.zeros((config.vocab_size,), params)
        if config.decoder_bias:
            bias_V = self.param("bias", nn.initializers.zeros, (config.vocab_size,), params)
        return table_VD, bias_V


class Classifier(nn.Module):
    """Scores of the labels from the head's features, any axes before the last: [..., N], N = num_labels."""

    config: ModelConfig
    precision: Precision

    @nn.compact
    def __call__(self, feature_BLD):
        config, params = self.config, jnp.dtype(self.precision.params)
        init = _truncated_normal(config, config.hidden_size**-0.5)
        weight_ND = self.param("weight", init, (config.num_labels, config.hidden_size), params)
        bias_N = self.param("bias", nn.initializers.zeros, (config.num_labels,), params)
        loss = jnp.dtype(self.precision.loss)
        weight_ND = weight_ND.astype(feature_BLD.dtype)
        score_BLN = jnp.einsum("bld,nd->bln", feature_BLD, weight_ND, preferred_element_type=loss)
        return score_BLN + bias_N.astype(loss)[None, None]


def _recomputed(module: type[nn.Module], remat: Remat, **options) -> Any:
    """The module as `ModernBert` says of `remat`."""
    if remat == "none":
        return module
    keep = jax.checkpoint_policies
    dots = keep.save_from_both_policies(keep.dots_with_no_batch_dims_saveable, keep.save_only_these_names(SAVED))
    with_kernels = keep.save_from_both_policies(dots, lambda primitive, *_, **__: primitive.name in KERNELS)
    return nn.remat(module, policy=with_kernels if remat == "dots" else None, **options)


class ModernBert(nn.Module):
    """The encoder and what stands on it: `init` and `apply` are the whole interface.

    What the backward pass needs of the layers after the first is kept (`remat` none), or recomputed block by block:
    all of it (block), or all but the products with weights and what attention gives (dots). `pin` is applied to the
    hidden states entering every layer (a mesh's place to fix their sharding).
    """

    config: ModelConfig
    precision: Precision = Precision()
    backend: str = "blockwise"
    remat: Remat = "none"
    pin: Callable = _same

    def setup(self):
        parts = (self.config, self.precision)
        plan = layer_plan(self.config)
        self.embeddings = Embeddings(*parts)
        self.layer_0 = Layer(*parts, self.backend, self.pin, self.config.layer_types[0], first=True)
        if plan.repeats:
            block = _recomputed(Block, self.remat, static_argnums=(4, 5), prevent_cse=False)
            self.blocks = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast,) * 4,  # pyright: ignore[reportArgumentType]
                length=plan.repeats,
            )(*parts, self.backend, self.pin)
        layer = _recomputed(Layer, self.remat, static_argnums=(4,))
        self.rest = [
            layer(*parts, self.backend, self.pin, self.config.layer_types[i], name=f"layer_{i}") for i in plan.rest
        ]
        self.final_norm = Norm(*parts, self.precision.compute)
        self.lm_head = Head(*parts, name="head")
        self.lm_decoder = Decoder(*parts, name="decoder")
        self.classifier = Classifier(*parts)

    def __call__(self, token_BL, segment_BL, *, mask_mode: str = "bidirectional", keep_layers: bool = False) -> Encoded:
        """Encode packed rows. `segment_BL` numbers the documents of a row, 0 for padding; tokens see only
        their own document, and positions restart in each."""
        config = self.config
        position_BL = positions(segment_BL)
        thetas = {FULL: config.global_rope_theta, SLIDING: config.local_rope_theta}
        rope = {kind: rope_table(position_BL, theta, config.head_dim) for kind, theta in thetas.items()}
        hidden_BLD = self.embeddings(token_BL)
        kept = [hidden_BLD[None]]
        hidden_BLD = self.layer_0(hidden_BLD, segment_BL, rope, mask_mode)
        kept.append(hidden_BLD[None])
        if layer_plan(config).repeats:
            hidden_BLD, block_RPBLD = self.blocks(hidden_BLD, segment_BL, rope, mask_mode, keep_layers)
            if block_RPBLD is not None:
                kept.append(block_RPBLD.reshape(-1, *hidden_BLD.shape))
        for layer in self.rest:
            hidden_BLD = layer(hidden_BLD, segment_BL, rope, mask_mode)
            kept.append(hidden_BLD[None])
        return Encoded(self.final_norm(hidden_BLD), jnp.concatenate(kept) if keep_layers else None)

    def head(self, hidden_BLD):
        """Features that the decoder turns into logits, [B, L, D]."""
        return self.lm_head(hidden_BLD)

    def decoder(self):
        """The decoder's table [V, D] and bias [V]."""
        return self.lm_decoder(self.embeddings.tok_embeddings)

    def logits(self, hidden_BLD):
        """Scores over the vocabulary, [B, L, V] float32: the reference; training never makes them whole."""
        table_VD, bias_V = self.decoder()
        compute = jnp.dtype(self.precision.compute)
        loss = jnp.dtype(self.precision.loss)
        feature_BLD, table_VD = self.head(hidden_BLD), table_VD.astype(compute)
        logits_BLV = jnp.einsum("bld,vd->blv", feature_BLD, table_VD, preferred_element_type=loss)
        return logits_BLV + bias_V.astype(loss)[None, None]

    def labels(self, hidden_BLD):
        """Scores of a classifier's labels at every position, [B, L, N] float32, N = num_labels."""
        return self.classifier(self.head(hidden_BLD))

    def everything(self, token_BL, segment_BL):
        """Touch every parameter of this config's model once; what `init` traces."""
        hidden_BLD = self(token_BL, segment_BL).hidden_BLD
        return {"lm": self.logits, "classifier": self.labels, "none": _same}[self.config.head](hidden_BLD)


def init_params(model: ModernBert, key: jax.Array) -> dict:
    """Random parameters as a plain nested dict."""
    token_BL = jnp.zeros((1, 8), jnp.int32)
    return dict(model.init(key, token_BL, jnp.ones_like(token_BL), method="everything")["params"])


def encode(
    model: ModernBert, params, token_BL, segment_BL, *, mask_mode: str = "bidirectional", keep_layers: bool = False
) -> Encoded:
    """The encoder as a function of its parameters: `ModernBert.__call__`."""
    encoded: Any = model.apply({"params": params}, token_BL, segment_BL, mask_mode=mask_mode, keep_layers=keep_layers)
    return encoded
