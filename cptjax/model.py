"""ModernBERT as a pure function of a plain parameter dict, reading causally or bidirectionally.

Architecture only: arXiv:2412.13663, and transformers' modeling_modernbert.py for the exact order of
operations. Layer 0 stands alone (it has no attn_norm); the layers after it repeat with a period
([local, local, global]), so one scanned block holds each period and its parameters are stacked along
a leading layer axis; what does not fit the period is unrolled.

B rows, L tokens per row, D width, H heads, K head width, F feed-forward width, V vocabulary,
N kept layers.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cptjax.attention import attend
from cptjax.masks import MaskMode, MaskSpec, positions

FULL, SLIDING = "full_attention", "sliding_attention"  # transformers' words
STANDARD_PERIOD = 3  # ModernBERT: every third layer is global
ACTIVATIONS = {"gelu": partial(nn.gelu, approximate=False), "relu": nn.relu, "silu": nn.silu}


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

    def __post_init__(self):
        if not self.layer_types:
            kinds = (FULL if i % STANDARD_PERIOD == 0 else SLIDING for i in range(self.num_hidden_layers))
            object.__setattr__(self, "layer_types", tuple(kinds))
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types has {len(self.layer_types)} entries for {self.num_hidden_layers} layers"
            )
        if unknown := set(self.layer_types) - {FULL, SLIDING}:
            raise ValueError(f"layer_types holds {sorted(unknown)}; known are {FULL!r} and {SLIDING!r}")
        if self.hidden_size % self.num_attention_heads or self.head_dim % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be num_attention_heads "
                f"{self.num_attention_heads} times an even head width"
            )
        for name in ("hidden_activation", "classifier_activation"):
            if getattr(self, name) not in ACTIVATIONS:
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of {sorted(ACTIVATIONS)}")

    @property
    def head_dim(self) -> int:
        """Width K of one head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def sliding_window(self) -> int:
        """Tokens a local layer sees on each side, the query itself not counted."""
        return self.local_attention // 2


@dataclass(frozen=True)
class Precision:
    """The three dtypes: stored parameters, matrix products, softmax-loss accumulation."""

    params: Literal["float32", "bfloat16"] = "float32"
    compute: Literal["float32", "bfloat16"] = "bfloat16"
    loss: Literal["float32"] = "float32"


class Encoded(NamedTuple):
    """What the encoder returns: hidden states after final_norm and, on request, every layer's output.

    layers_NBLD holds the embedding output, then each layer's output before final_norm:
    N = num_hidden_layers + 1.
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


@jax.custom_vjp
def _scale(normed_BLD, scale_D):
    """normed * scale. The backward sum over tokens is a matrix product: XLA's CPU reduction over the
    long axis is several times slower."""
    return normed_BLD * scale_D


def _scale_backward(saved, d_out):
    normed_BLD, scale_D = saved
    products_ND = (d_out * normed_BLD).reshape(-1, scale_D.shape[0])
    d_scale_D = jnp.einsum("n,nd->d", jnp.ones(products_ND.shape[0], products_ND.dtype), products_ND)
    return d_out * scale_D, d_scale_D


_scale.defvjp(lambda normed, scale: (normed * scale, (normed, scale)), _scale_backward)


class Norm(nn.Module):
    """LayerNorm in float32, with a bias only where the config asks for one."""

    config: ModelConfig
    precision: Precision

    @nn.compact
    def __call__(self, x_BLD):
        dtype = jnp.dtype(self.precision.params)
        width = (x_BLD.shape[-1],)
        x32_BLD = x_BLD.astype(jnp.float32)
        centred = x32_BLD - x32_BLD.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        scale_D = self.param("scale", nn.initializers.ones, width, dtype)
        out = _scale(centred * jax.lax.rsqrt(variance + self.config.norm_eps), scale_D.astype(jnp.float32))
        if self.config.norm_bias:
            out = out + self.param("bias", nn.initializers.zeros, width, dtype)
        return out.astype(x_BLD.dtype)


def rope_table(position_BL: jax.Array, theta: float, head_dim: int) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the rotary angles, each [B, L, 1, K / 2] float32 (arXiv:2104.09864)."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = position_BL[:, :, None, None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BLHK: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Apply rotary positions: halves are paired (not interleaved), products in float32."""
    cosine, sine = table
    first, second = jnp.split(x_BLHK.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return turned.astype(x_BLHK.dtype)


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
        w_qkv = self.param("Wqkv", _init_in(config), (config.hidden_size, 3, *shape_HK), params)
        w_out = self.param("Wo", _init_out(config), (*shape_HK, config.hidden_size), params)
        qkv_BLCHK = jnp.einsum("bld,dchk->blchk", x_BLD, w_qkv.astype(compute))
        if config.attention_bias:
            qkv_BLCHK += self.param("Wqkv_bias", nn.initializers.zeros, (3, *shape_HK), params).astype(compute)
        q_BLHK, k_BLHK = (rotate(qkv_BLCHK[:, :, i], rope) for i in (0, 1))
        mixed_BLHK = attend(q_BLHK, k_BLHK, qkv_BLCHK[:, :, 2], spec, segment_BL, backend=self.backend)
        out_BLD = jnp.einsum("blhk,hkd->bld", mixed_BLHK, w_out.astype(compute))
        if config.attention_bias:
            out_BLD += self.param("Wo_bias", nn.initializers.zeros, (config.hidden_size,), params).astype(compute)
        return out_BLD


class Mlp(nn.Module):
    """GeGLU: the activation is on the first half (arXiv:2002.05202)."""

    config: ModelConfig
    precision: Precision

    @nn.compact
    def __call__(self, x_BLD):
        config, compute = self.config, jnp.dtype(self.precision.compute)
        params = jnp.dtype(self.precision.params)
        shape_DGF = (config.hidden_size, 2, config.intermediate_size)
        w_in = self.param("Wi", _init_in(config), shape_DGF, params)
        w_out = self.param("Wo", _init_out(config), (config.intermediate_size, config.hidden_size), params)
        pair_BLGF = jnp.einsum("bld,dgf->blgf", x_BLD, w_in.astype(compute))
        if config.mlp_bias:
            pair_BLGF += self.param("Wi_bias", nn.initializers.zeros, shape_DGF[1:], params).astype(compute)
        gated_BLF = ACTIVATIONS[config.hidden_activation](pair_BLGF[:, :, 0]) * pair_BLGF[:, :, 1]
        out_BLD = jnp.einsum("blf,fd->bld", gated_BLF, w_out.astype(compute))
        if config.mlp_bias:
            out_BLD += self.param("Wo_bias", nn.initializers.zeros, (config.hidden_size,), params).astype(compute)
        return out_BLD


def _unpinned(x: jax.Array) -> jax.Array:
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
        norm = partial(Norm, self.config, self.precision)
        window = self.config.sliding_window if self.kind == SLIDING else None
        spec = MaskSpec(MaskMode(mask_mode), window)
        normed_BLD = hidden_BLD if self.first else norm(name="attn_norm")(hidden_BLD)
        attention = Attention(self.config, self.precision, self.backend, name="attn")
        hidden_BLD = hidden_BLD + attention(normed_BLD, segment_BL, rope[self.kind], spec)
        normed_BLD = norm(name="mlp_norm")(hidden_BLD)
        return hidden_BLD + Mlp(self.config, self.precision, name="mlp")(normed_BLD)


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


class Embeddings(nn.Module):
    """Token embeddings and their norm; no positions (rotary instead) and no token types."""

    config: ModelConfig
    precision: Precision

    def setup(self):
        shape = (self.config.vocab_size, self.config.hidden_size)
        dtype = jnp.dtype(self.precision.params)
        self.tok_embeddings = self.param("tok_embeddings", _init_in(self.config), shape, dtype)
        self.norm = Norm(self.config, self.precision)

    def __call__(self, token_BL):
        return self.norm(jnp.take(self.tok_embeddings, token_BL, axis=0).astype(self.precision.compute))


class Head(nn.Module):
    """dense, activation, norm: what transformers puts between the encoder and the decoder."""

    config: ModelConfig
    precision: Precision

    @nn.compact
    def __call__(self, hidden_BLD):
        config, compute = self.config, jnp.dtype(self.precision.compute)
        params = jnp.dtype(self.precision.params)
        dense = self.param("dense", _init_out(config), (config.hidden_size,) * 2, params)
        out_BLD = jnp.einsum("bld,de->ble", hidden_BLD, dense.astype(compute))
        if config.classifier_bias:
            bias = self.param("dense_bias", nn.initializers.zeros, (config.hidden_size,), params)
            out_BLD += bias.astype(compute)
        return Norm(config, self.precision, name="norm")(ACTIVATIONS[config.classifier_activation](out_BLD))


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


class ModernBert(nn.Module):
    """The encoder and its language-model head: `init` and `apply` are the whole interface.

    `remat` recomputes each scanned block in the backward pass instead of keeping its activations; `pin`
    is applied to the hidden states entering every layer (a mesh's place to fix their sharding).
    """

    config: ModelConfig
    precision: Precision = Precision()
    backend: str = "blockwise"
    remat: bool = False
    pin: Callable = _unpinned

    def setup(self):
        parts = (self.config, self.precision)
        plan = layer_plan(self.config)
        self.embeddings = Embeddings(*parts)
        self.layer_0 = Layer(*parts, self.backend, self.pin, self.config.layer_types[0], first=True)
        if plan.repeats:
            block = nn.remat(Block, static_argnums=(4, 5), prevent_cse=False) if self.remat else Block
            self.blocks = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast,) * 4,
                length=plan.repeats,
            )(*parts, self.backend, self.pin)
        layer = nn.remat(Layer, static_argnums=(4,)) if self.remat else Layer
        self.rest = [
            layer(*parts, self.backend, self.pin, self.config.layer_types[i], name=f"layer_{i}") for i in plan.rest
        ]
        self.final_norm = Norm(*parts)
        self.lm_head = Head(*parts, name="head")
        self.lm_decoder = Decoder(*parts, name="decoder")

    def __call__(
        self, token_BL, segment_BL, *, mask_mode: str = "bidirectional", keep_layers: bool = False
    ) -> Encoded:
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
            if keep_layers:
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
        return (
            jnp.einsum(
                "bld,vd->blv",
                self.head(hidden_BLD),
                table_VD.astype(compute),
                preferred_element_type=jnp.dtype(self.precision.loss),
            )
            + bias_V
        )

    def everything(self, token_BL, segment_BL):
        """Touch every parameter once; what `init` traces."""
        return self.logits(self(token_BL, segment_BL).hidden_BLD)


def init_params(model: ModernBert, key: jax.Array) -> dict:
    """Random parameters as a plain nested dict."""
    token_BL = jnp.zeros((1, 8), jnp.int32)
    return model.init(key, token_BL, jnp.ones_like(token_BL), method="everything")["params"]
