"""ModernBERT as a pure function of a plain parameter dict, reading causally or bidirectionally, and what all families
of encoders share with it (`Encoder`).

Architecture only: arXiv:2412.13663, and transformers' modeling_modernbert.py for the exact order of
operations. Layer 0 stands alone (it has no attn_norm); the layers after it repeat with a period
([local, local, global]), so one scanned block holds each period and its parameters are stacked along
a leading layer axis; what does not fit the period is unrolled.

B rows, L tokens per row, N tokens of all rows, D width, H heads, K head width, F feed-forward width, V vocabulary.
In layers_NBLD, N counts the kept layers; in scores of a classifier, its labels. C query, key and value; G value and
gate; R repeats of a period, P layers in it.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from cptjax.attention.backends import KERNELS, attend, check_backend
from cptjax.dropout import Dropping, dropped, dropped_features, of_layers
from cptjax.masks import MaskSpec, positions
from cptjax.ops import ACTIVATIONS, SAVED, affine, embedded, forward_mode, layer_norm, project, rope_table, rotate
from cptjax.shape import FULL, SLIDING, ModelConfig, ModernBertConfig, Precision, Remat, layer_groups


class Encoded(NamedTuple):
    """What the encoder returns: hidden states after the last norm, in the dtype of products (`Precision.compute`), and,
    on request, every layer's output.

    layers_NBLD holds the embedding output, then each layer's output (before final_norm, where there is one), in the
    dtype of the residual stream: N = num_hidden_layers + 1.
    """

    hidden_BLD: jax.Array
    layers_NBLD: jax.Array | None


def truncated_normal(config: ModelConfig, std: float):
    """Normal of this std cut at +-cutoff stds, not rescaled (transformers' ModernBERT initialisation)."""
    cutoff = config.initializer_cutoff_factor

    def init(key, shape):
        return std * jax.random.truncated_normal(key, -cutoff, cutoff, shape, jnp.float32)

    return init


def init_in(config: ModelConfig):
    """The initialisation of what reads the hidden states."""
    return truncated_normal(config, config.initializer_range)


def init_out(config: ModelConfig):
    """The initialisation of what writes hidden states."""
    return truncated_normal(config, config.output_range)


class Norm(nn.Module):
    """LayerNorm in float32, with a bias only where the config asks for one; `dtype` is the result's."""

    config: ModelConfig
    precision: Precision
    dtype: str

    @nn.compact
    def __call__(self, x_BLD):
        width = x_BLD.shape[-1]
        scale_D = self.param("scale", nn.initializers.ones, (width,))
        out_ND: Any = layer_norm(x_BLD.reshape(-1, width), scale_D, self.config.norm_eps)
        if self.config.norm_bias:
            out_ND += self.param("bias", nn.initializers.zeros, (width,))[None]
        return out_ND.reshape(x_BLD.shape).astype(self.dtype)


class Attention(nn.Module):
    """Self-attention, with rotary positions where it is given their table; the spec says what a query reads."""

    config: ModelConfig
    precision: Precision
    backend: str | Callable

    @nn.compact
    def __call__(self, x_BLD, segment_BL, rope, spec: MaskSpec, dropping: Dropping | None):
        config, compute = self.config, jnp.dtype(self.precision.compute)
        shape_HK = (config.num_attention_heads, config.head_dim)
        w_qkv = self.param("Wqkv", init_in(config), (3, *shape_HK, config.hidden_size))
        w_out = self.param("Wo", init_out(config), (config.hidden_size, *shape_HK))
        x_ND, w_qkv = x_BLD.reshape(-1, config.hidden_size).astype(compute), w_qkv.astype(compute)
        if config.attention_bias:
            bias_CHK = self.param("Wqkv_bias", nn.initializers.zeros, (3, *shape_HK))
            qkv = [affine("nd,hkd->nhk", x_ND, w, bias_HK) for w, bias_HK in zip(w_qkv, bias_CHK, strict=True)]
        else:
            qkv = project(x_ND, w_qkv)
        q_BLHK, k_BLHK, v_BLHK = (x_NHK.reshape(*x_BLD.shape[:2], *shape_HK) for x_NHK in qkv)
        if rope is not None:
            q_BLHK, k_BLHK = rotate(q_BLHK, rope), rotate(k_BLHK, rope)
        mixed_BLHK = attend(q_BLHK, k_BLHK, v_BLHK, spec, segment_BL, backend=self.backend, dropping=dropping)
        mixed_NHK = mixed_BLHK.reshape(-1, *shape_HK)
        w_out = w_out.astype(compute)
        if config.attention_bias:
            bias_D = self.param("Wo_bias", nn.initializers.zeros, (config.hidden_size,))
            out_ND = affine("nhk,dhk->nd", mixed_NHK, w_out, bias_D)
        else:
            out_ND = jnp.einsum("nhk,dhk->nd", mixed_NHK, w_out)
        return dropped(out_ND.reshape(x_BLD.shape), "attention_output", dropping)


class Mlp(nn.Module):
    """The feed-forward: an activation, times a gate where the family has one (GeGLU, arXiv:2002.05202)."""

    config: ModelConfig
    precision: Precision

    @nn.compact
    def __call__(self, x_BLD, dropping: Dropping | None):
        config, compute = self.config, jnp.dtype(self.precision.compute)
        shape_GFD = (1 + config.gated, config.intermediate_size, config.hidden_size)
        w_in = self.param("Wi", init_in(config), shape_GFD)
        w_out = self.param("Wo", init_out(config), (config.hidden_size, config.intermediate_size))
        x_ND, w_in, w_out = x_BLD.reshape(-1, config.hidden_size), w_in.astype(compute), w_out.astype(compute)
        if config.mlp_bias:
            bias_GF = self.param("Wi_bias", nn.initializers.zeros, shape_GFD[:2])
            inner = [affine("nd,fd->nf", x_ND, w, bias_F) for w, bias_F in zip(w_in, bias_GF, strict=True)]
        else:
            inner = project(x_ND, w_in)
        inner_NF = ACTIVATIONS[config.hidden_activation](inner[0])
        if config.gated:
            product_BLF = (inner_NF * inner[1]).reshape(*x_BLD.shape[:2], -1)
            inner_NF = dropped(product_BLF, "mlp", dropping).reshape(inner_NF.shape)
        if config.mlp_bias:
            bias_D = self.param("Wo_bias", nn.initializers.zeros, (config.hidden_size,))
            out_ND = affine("nf,df->nd", inner_NF, w_out, bias_D)
        else:
            out_ND = jnp.einsum("nf,df->nd", inner_NF, w_out)
        out_BLD = out_ND.reshape(x_BLD.shape)
        return out_BLD if config.gated else dropped(out_BLD, "mlp", dropping)


def _same(x: jax.Array) -> jax.Array:
    return x


class Layer(nn.Module):
    """One pre-norm layer; `kind` is FULL or SLIDING."""

    config: ModelConfig
    precision: Precision
    backend: str | Callable
    pin: Callable
    kind: str
    first: bool = False  # layer 0 has no attn_norm: the embedding norm comes just before it

    @nn.compact
    def __call__(self, hidden_BLD, segment_BL, rope, mask_mode: str, dropping: Dropping | None = None):
        hidden_BLD = self.pin(hidden_BLD)
        norm = partial(Norm, self.config, self.precision, self.precision.compute)
        spec = self.config.mask_spec(self.kind, mask_mode)
        normed_BLD = hidden_BLD if self.first else norm(name="attn_norm")(hidden_BLD)
        attention = Attention(self.config, self.precision, self.backend, name="attn")
        hidden_BLD += attention(normed_BLD, segment_BL, rope[self.kind], spec, dropping).astype(hidden_BLD.dtype)
        normed_BLD = norm(name="mlp_norm")(hidden_BLD)
        return hidden_BLD + Mlp(self.config, self.precision, name="mlp")(normed_BLD, dropping).astype(hidden_BLD.dtype)


class Block(nn.Module):
    """One period of layers, the unit of the scan; returns the outputs of its layers when they are kept."""

    layer: Callable[..., nn.Module]
    config: ModelConfig
    precision: Precision
    backend: str | Callable
    pin: Callable

    @nn.compact
    def __call__(self, hidden_BLD, segment_BL, rope, mask_mode: str, keep_layers: bool, dropping: Dropping | None):
        kept = []
        groups = layer_groups(self.config)
        for place in range(groups.period):
            kind = self.config.layer_types[len(groups.first) + place]
            layer = self.layer(self.config, self.precision, self.backend, self.pin, kind, name=f"l{place}")
            own = dropping and replace(dropping, key_B=dropping.key_B[place])
            hidden_BLD = layer(hidden_BLD, segment_BL, rope, mask_mode, own)
            kept.append(hidden_BLD)
        return hidden_BLD, jnp.stack(kept) if keep_layers else None


class Embeddings(nn.Module):
    """Token embeddings and their norm; no positions (rotary instead) and no token types."""

    config: ModernBertConfig
    precision: Precision

    def setup(self):
        shape = (self.config.vocab_size, self.config.hidden_size)
        self.tok_embeddings = self.param("tok_embeddings", init_in(self.config), shape)
        self.norm = Norm(self.config, self.precision, self.precision.residual)

    def __call__(self, token_BL):
        return self.norm(embedded(self.tok_embeddings, token_BL))


class Head(nn.Module):
    """dense, activation, norm: what transformers puts between the encoder and the decoder."""

    config: ModelConfig
    precision: Precision

    @nn.compact
    def __call__(self, hidden_BLD):
        config, compute = self.config, jnp.dtype(self.precision.compute)
        dense = self.param("dense", init_out(config), (config.hidden_size,) * 2)
        dense = dense.astype(compute)
        if config.classifier_bias:
            bias_D = self.param("dense_bias", nn.initializers.zeros, (config.hidden_size,))
            out_BLD = affine("bld,ed->ble", hidden_BLD, dense, bias_D)
        else:
            out_BLD = jnp.einsum("bld,ed->ble", hidden_BLD, dense)
        out_BLD = ACTIVATIONS[config.classifier_activation](out_BLD)
        return Norm(config, self.precision, self.precision.compute, name="norm")(out_BLD)


class Decoder(nn.Module):
    """The output table [V, D] and bias [V]; the table is the token embedding when tied."""

    config: ModelConfig
    precision: Precision

    @nn.compact
    def __call__(self, tok_embeddings_VD):
        config = self.config
        table_VD = tok_embeddings_VD
        if not config.tie_word_embeddings:
            table_VD = self.param("weight", init_out(config), (config.vocab_size, config.hidden_size))
        bias_V = jnp.zeros((config.vocab_size,))
        if config.decoder_bias:
            bias_V = self.param("bias", nn.initializers.zeros, (config.vocab_size,))
        return table_VD, bias_V


class Classifier(nn.Module):
    """Scores of the labels from features, any axes before the last: [..., N], N = num_labels."""

    config: ModelConfig
    precision: Precision

    @nn.compact
    def __call__(self, feature_BLD):
        config = self.config
        init = truncated_normal(config, config.classifier_range)
        weight_ND = self.param("weight", init, (config.num_labels, config.hidden_size))
        bias_N = self.param("bias", nn.initializers.zeros, (config.num_labels,))
        weight_ND = weight_ND.astype(feature_BLD.dtype)
        score_BLN = jnp.einsum("bld,nd->bln", feature_BLD, weight_ND, preferred_element_type=jnp.float32)
        return score_BLN + bias_N[None, None]


def _recomputed(module: type[nn.Module], remat: Remat, **options) -> Any:
    """The module as `Encoder` says of `remat`."""
    if remat == "none":
        return module
    keep = jax.checkpoint_policies
    dots = keep.save_from_both_policies(keep.dots_with_no_batch_dims_saveable, keep.save_only_these_names(SAVED))
    with_kernels = keep.save_from_both_policies(dots, lambda primitive, *_, **__: primitive.name in KERNELS)
    return nn.remat(module, policy=with_kernels if remat == "dots" else None, **options)


class Encoder(nn.Module):
    """An encoder and what stands on it: `init` and `apply` are the whole interface.

    What the backward pass needs of the layers after the first is kept (`remat` none), or recomputed block by block:
    all of it (block), or all but the products with weights and what attention gives (dots). `pin` is applied to the
    hidden states entering every layer (a mesh's place to fix their sharding). `backend` is a name of
    `attention.backends.BACKENDS` or a function like those there.

    Gradients, and forward differentiation of them (a Hessian times a vector), need no option. With `forward_mode` jax
    differentiates the model itself forward too (jvp, jacfwd), by its definition: gradients then keep more in memory.
    Raises ValueError for an unknown `backend` or `remat`, and for one that cannot be differentiated forward.

    A family names its `layer`, and says in `embed`, `rotary` and `finish` what comes before and after the layers.
    """

    config: ModelConfig
    precision: Precision = Precision()
    backend: str | Callable = "blockwise"
    remat: Remat = "none"
    pin: Callable = _same
    forward_mode: bool = False

    layer: ClassVar[type[nn.Module]]

    def __post_init__(self):
        check_backend(self.backend)
        if not isinstance(self.precision, Precision):
            raise ValueError(f"precision is {self.precision!r}: give a Precision, such as Precision('float32')")
        if self.remat not in get_args(Remat):
            raise ValueError(f"remat is {self.remat!r}: it is one of {', '.join(get_args(Remat))}")
        if self.forward_mode and self.backend in ("splash", "cudnn"):
            raise ValueError(f"attention {self.backend} is not differentiated forward: use reference or blockwise")
        super().__post_init__()

    @nn.nowrap
    def apply(self, *given: Any, **named: Any) -> Any:
        """Flax's. Raises TypeError, saying what does, where this model is not differentiated forward."""
        with forward_mode(self.forward_mode):
            try:
                return super().apply(*given, **named)
            except TypeError as error:
                if "forward-mode" not in str(error):
                    raise
                raise TypeError(
                    "this model is not differentiated forward (jvp, jacfwd, linearize): model.clone(forward_mode=True) "
                    "is, with attention reference or blockwise"
                ) from error

    def setup(self):
        parts, groups = (self.config, self.precision), layer_groups(self.config)
        inside = (*parts, self.backend, self.pin)
        kinds = self.config.layer_types
        self.first = [self.layer(*inside, kinds[i], first=True, name=f"layer_{i}") for i in groups.first]
        if groups.repeats:
            block = _recomputed(Block, self.remat, static_argnums=(4, 5), prevent_cse=False)
            self.blocks = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(*(nn.broadcast,) * 4, 0),  # pyright: ignore[reportArgumentType]
                length=groups.repeats,
                check_constancy_invariants=self.is_initializing(),  # one more trace, and part of what is drawn
            )(self.layer, *inside)
        layer = _recomputed(self.layer, self.remat, static_argnums=(4,))
        self.rest = [layer(*inside, kinds[i], name=f"layer_{i}") for i in groups.rest]
        self.lm_head = Head(*parts, name="head")
        self.lm_decoder = Decoder(*parts, name="decoder")
        self.classifier = Classifier(*parts)

    def __call__(
        self,
        token_BL: jax.Array,
        segment_BL: jax.Array,
        *,
        token_type_BL: jax.Array | None = None,
        mask_mode: str = "bidirectional",
        keep_layers: bool = False,
        dropping: Dropping | None = None,
    ) -> Encoded:
        """Encode packed rows. `segment_BL` numbers the documents of a row, 0 for padding; tokens see only
        their own document, and positions restart in each. Token types are 0 where none are given. Nothing is dropped
        without a `dropping`."""
        token_BL, segment_BL = _rows(self.config, token_BL, segment_BL)
        position_BL = positions(segment_BL)
        groups, of_layer = layer_groups(self.config), partial(of_layers, dropping)
        hidden_BLD = dropped(self.embed(token_BL, position_BL, token_type_BL), "embeddings", dropping)
        rope = self.rotary(position_BL)
        kept = [hidden_BLD[None]]
        for number, layer in zip(groups.first, self.first, strict=True):
            hidden_BLD = layer(hidden_BLD, segment_BL, rope, mask_mode, of_layer(number))
            kept.append(hidden_BLD[None])
        if groups.repeats:
            scanned = of_layer(groups.scanned)
            hidden_BLD, block_RPBLD = self.blocks(hidden_BLD, segment_BL, rope, mask_mode, keep_layers, scanned)
            if block_RPBLD is not None:
                kept.append(block_RPBLD.reshape(-1, *hidden_BLD.shape))
        for number, layer in zip(groups.rest, self.rest, strict=True):
            hidden_BLD = layer(hidden_BLD, segment_BL, rope, mask_mode, of_layer(number))
            kept.append(hidden_BLD[None])
        return Encoded(self.finish(hidden_BLD), jnp.concatenate(kept) if keep_layers else None)

    def embed(self, token_BL: jax.Array, position_BL: jax.Array, token_type_BL: jax.Array | None) -> jax.Array:
        """The hidden states that enter the first layer, [B, L, D]."""
        raise NotImplementedError

    def rotary(self, position_BL: jax.Array) -> dict[str, Any]:
        """The rotary table of each kind of layer, None where positions are in the embeddings."""
        return {FULL: None}

    def finish(self, hidden_BLD: jax.Array) -> jax.Array:
        """What the encoder returns, from the last layer's output."""
        return hidden_BLD

    def head(self, hidden_BLD: jax.Array) -> jax.Array:
        """Features that the decoder turns into logits, [B, L, D]."""
        return self.lm_head(hidden_BLD)

    def decoder(self) -> tuple[jax.Array, jax.Array]:
        """The decoder's table [V, D] and bias [V]."""
        return self.lm_decoder(self.embeddings.tok_embeddings)

    def logits(self, hidden_BLD: jax.Array) -> jax.Array:
        """Scores over the vocabulary, [B, L, V] float32: the reference; training never makes them whole."""
        table_VD, bias_V = self.decoder()
        compute = jnp.dtype(self.precision.compute)
        feature_BLD, table_VD = self.head(hidden_BLD), table_VD.astype(compute)
        logits_BLV = jnp.einsum("bld,vd->blv", feature_BLD, table_VD, preferred_element_type=jnp.float32)
        return logits_BLV + bias_V[None, None]

    def labels(self, hidden_BLD: jax.Array, dropping: Dropping | None = None) -> jax.Array:
        """Scores of a classifier's labels at every position, [B, L, N] float32, N = num_labels."""
        return self.classifier(dropped_features(self.head(hidden_BLD), self.config.features_dropout, dropping))

    def everything(self, token_BL, segment_BL):
        """Touch every parameter of this config's model once; what `init` traces."""
        hidden_BLD = self(token_BL, segment_BL).hidden_BLD
        return {"lm": self.logits, "classifier": self.labels, "none": _same}[self.config.head](hidden_BLD)


def _rows(config: ModelConfig, token_BL, segment_BL) -> tuple[jax.Array, jax.Array]:
    """Tokens and segments as arrays. Raises ValueError for shapes that do not fit, and ids that no token has."""
    token_BL, segment_BL = jnp.asarray(token_BL), jnp.asarray(segment_BL)
    shape, width = segment_BL.shape, config.hidden_size
    if len(shape) != 2 or 0 in shape or token_BL.shape not in (shape, (*shape, width)):
        raise ValueError(
            f"tokens of shape {token_BL.shape} and segments of {shape}: both must be [rows, tokens], or tokens vectors "
            f"[rows, tokens, {width}]"
        )
    if token_BL.ndim == 2 and not isinstance(token_BL, Tracer):
        known_BL = np.asarray(token_BL)  # jax would trace what is made of it
        least, most = int(known_BL.min()), int(known_BL.max())
        if least < 0 or most >= config.vocab_size or not jnp.issubdtype(token_BL.dtype, jnp.integer):
            raise ValueError(
                f"tokens are {token_BL.dtype} from {least} to {most}: ids are whole numbers from 0 to "
                f"{config.vocab_size - 1}"
            )
    return token_BL, segment_BL


class ModernBert(Encoder):
    """Pre-norm layers with rotary positions, most of them local, and a last norm (arXiv:2412.13663)."""

    config: ModernBertConfig
    layer = Layer

    def setup(self):
        super().setup()
        self.embeddings = Embeddings(self.config, self.precision)
        self.final_norm = Norm(self.config, self.precision, self.precision.compute)

    def embed(self, token_BL, position_BL, token_type_BL):
        """Token embeddings, [B, L, D]. Raises ValueError for token types."""
        if token_type_BL is not None:
            raise ValueError("ModernBERT has no token types: leave token_type_BL out")
        return self.embeddings(token_BL)

    def rotary(self, position_BL):
        """A table for global layers and one for local ones."""
        thetas = {FULL: self.config.global_rope_theta, SLIDING: self.config.local_rope_theta}
        return {kind: rope_table(position_BL, theta, self.config.head_dim) for kind, theta in thetas.items()}

    def finish(self, hidden_BLD):
        """The last layer's output through the last norm, [B, L, D]."""
        return self.final_norm(hidden_BLD)


def init_params(model: Encoder, key: jax.Array) -> dict:
    """Random parameters as a plain nested dict."""
    token_BL = jnp.zeros((1, 8), jnp.int32)
    return dict(model.init(key, token_BL, jnp.ones_like(token_BL), method="everything")["params"])


def encode(
    model: Encoder,
    params: Any,
    token_BL: jax.Array,
    segment_BL: jax.Array,
    *,
    token_type_BL: jax.Array | None = None,
    mask_mode: str = "bidirectional",
    keep_layers: bool = False,
    dropping: Dropping | None = None,
) -> Encoded:
    """The encoder as a function of its parameters: `Encoder.__call__`. `token_BL` may be vectors in the place of ids,
    [B, L, D], such as rows of the token embeddings that something was added to; arrays may be numpy's, or lists. Raises
    ValueError for shapes that do not fit, and rows, ids (but while tracing) or token types that its tables do not
    hold."""
    encoded: Any = model.apply(
        {"params": params},
        token_BL,
        segment_BL,
        token_type_BL=token_type_BL,
        mask_mode=mask_mode,
        keep_layers=keep_layers,
        dropping=dropping,
    )
    return encoded
