"""BERT and RoBERTa: post-norm layers, learned positions and token types, on what model.py shares.

Architecture: arXiv:1810.04805 and arXiv:1907.11692, and transformers' modeling_bert.py and modeling_roberta.py for the
exact order of operations. All layers are alike, so one scan holds them.

B rows, L tokens per row, D width, T token types, N labels.
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from cptjax.dropout import Dropping, dropped_features
from cptjax.model import Attention, Encoder, Mlp, Norm, init_in
from cptjax.ops import affine, embedded, lookup
from cptjax.shape import BertConfig, Precision


class Embeddings(nn.Module):
    """The sum of a token's, its position's and its type's embedding, and its norm."""

    config: BertConfig
    precision: Precision

    def setup(self):
        config, init = self.config, init_in(self.config)
        self.tok_embeddings = self.param("tok_embeddings", init, (config.vocab_size, config.hidden_size))
        sizes = {"position_embeddings": config.max_position_embeddings, "token_type_embeddings": config.type_vocab_size}
        self.tables = [self.param(name, init, (size, config.hidden_size)) for name, size in sizes.items()]
        self.norm = Norm(config, self.precision, self.precision.residual)

    def __call__(self, token_BL, position_BL, token_type_BL):
        position_table, type_table = self.tables
        hidden_BLD = embedded(self.tok_embeddings, token_BL) + lookup(type_table, token_type_BL)
        return self.norm(hidden_BLD + lookup(position_table, self.config.first_position + position_BL))


class Layer(nn.Module):
    """One post-norm layer: the norms stand on the sums, not on what enters attention and feed-forward."""

    config: BertConfig
    precision: Precision
    backend: str | Callable
    pin: Callable
    kind: str

    @nn.compact
    def __call__(self, hidden_BLD, segment_BL, rope, mask_mode: str, dropping: Dropping | None = None):
        hidden_BLD, compute = self.pin(hidden_BLD), self.precision.compute

        def norm(name, x_BLD):
            return Norm(self.config, self.precision, self.precision.residual, name=name)(x_BLD)

        attention = Attention(self.config, self.precision, self.backend, name="attn")
        spec = self.config.mask_spec(self.kind, mask_mode)
        out_BLD = attention(hidden_BLD, segment_BL, rope[self.kind], spec, dropping)
        hidden_BLD = norm("attn_norm", hidden_BLD + out_BLD.astype(hidden_BLD.dtype))
        out_BLD = Mlp(self.config, self.precision, name="mlp")(hidden_BLD.astype(compute), dropping)
        return norm("mlp_norm", hidden_BLD + out_BLD.astype(hidden_BLD.dtype))


class Pooler(nn.Module):
    """A dense layer and tanh: what transformers puts between a text's first token and a classifier of texts."""

    config: BertConfig
    precision: Precision

    @nn.compact
    def __call__(self, hidden_BLD):
        width, compute = self.config.hidden_size, jnp.dtype(self.precision.compute)
        dense = self.param("dense", init_in(self.config), (width, width))
        bias_D = self.param("dense_bias", nn.initializers.zeros, (width,))
        return jnp.tanh(affine("bld,ed->ble", hidden_BLD, dense.astype(compute), bias_D))


class Bert(Encoder):
    """Post-norm layers with learned positions, each reading its whole document; RoBERTa too."""

    config: BertConfig
    layer = Layer

    def setup(self):
        super().setup()
        self.embeddings = Embeddings(self.config, self.precision)
        self.pooler = Pooler(self.config, self.precision)

    def embed(self, token_BL, position_BL, token_type_BL):
        """Token, position and type embeddings, [B, L, D]. Raises ValueError for what the tables do not hold."""
        config, tokens = self.config, token_BL.shape[1]
        if tokens > config.longest_document:
            raise ValueError(f"a row has {tokens} tokens: this model has positions for {config.longest_document}")
        if token_type_BL is None:
            token_type_BL = jnp.zeros(token_BL.shape[:2], jnp.int32)
        elif not isinstance(token_type_BL, Tracer) and (most := np.max(token_type_BL)) >= config.type_vocab_size:
            raise ValueError(f"token types go up to {most}: this model has {config.type_vocab_size}, counted from 0")
        return self.embeddings(token_BL, position_BL, jnp.asarray(token_type_BL))

    def finish(self, hidden_BLD):
        """The last layer's output as an operand of products: that layer ends in its norm."""
        return hidden_BLD.astype(self.precision.compute)

    def labels(self, hidden_BLD, dropping=None):
        """Scores of a classifier's labels at every position, [B, L, N] float32, through the pooler if there is one;
        RoBERTa drops of what enters that, too."""
        share = self.config.features_dropout
        if self.config.pooler:
            if self.config.model_type != "bert":
                hidden_BLD = dropped_features(hidden_BLD, share, dropping, layer=1)
            hidden_BLD = self.pooler(hidden_BLD)
        return self.classifier(dropped_features(hidden_BLD, share, dropping))

    def everything(self, token_BL, segment_BL):
        """Touch every parameter once, the pooler too."""
        if self.config.pooler:
            self.pooler(jnp.zeros((1, 1, self.config.hidden_size), self.precision.compute))
        return super().everything(token_BL, segment_BL)
