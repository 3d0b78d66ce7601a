"""The one table of names: what each Hugging Face tensor is called here, in both directions.

Every row is a renaming, a reshape and a transpose, so a round trip is exact to the bit.

V vocabulary, D width, E the same width as an output, H heads, K head width, F feed-forward width;
C query, key, value; G the activated half and the gate. "CHK D" is a matrix whose first axis is C, H
and K flattened, C outermost.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cptjax.model import ModelConfig, layer_path


class Row(NamedTuple):
    """One tensor, or one per layer where the name holds {i}, if the config's `flag` is on."""

    hf_name: str
    path: str  # ours; inside the layer where the name holds {i}
    hf_layout: str
    our_layout: str
    flag: str | None = None


ROWS = (
    Row("model.embeddings.tok_embeddings.weight", "embeddings/tok_embeddings", "V D", "V D"),
    Row("model.embeddings.norm.weight", "embeddings/norm/scale", "D", "D"),
    Row("model.embeddings.norm.bias", "embeddings/norm/bias", "D", "D", "norm_bias"),
    Row("model.layers.{i}.attn_norm.weight", "attn_norm/scale", "D", "D"),
    Row("model.layers.{i}.attn_norm.bias", "attn_norm/bias", "D", "D", "norm_bias"),
    Row("model.layers.{i}.attn.Wqkv.weight", "attn/Wqkv", "CHK D", "C H K D"),
    Row("model.layers.{i}.attn.Wqkv.bias", "attn/Wqkv_bias", "CHK", "C H K", "attention_bias"),
    Row("model.layers.{i}.attn.Wo.weight", "attn/Wo", "D HK", "D H K"),
    Row("model.layers.{i}.attn.Wo.bias", "attn/Wo_bias", "D", "D", "attention_bias"),
    Row("model.layers.{i}.mlp_norm.weight", "mlp_norm/scale", "D", "D"),
    Row("model.layers.{i}.mlp_norm.bias", "mlp_norm/bias", "D", "D", "norm_bias"),
    Row("model.layers.{i}.mlp.Wi.weight", "mlp/Wi", "GF D", "G F D"),
    Row("model.layers.{i}.mlp.Wi.bias", "mlp/Wi_bias", "GF", "G F", "mlp_bias"),
    Row("model.layers.{i}.mlp.Wo.weight", "mlp/Wo", "D F", "D F"),
    Row("model.layers.{i}.mlp.Wo.bias", "mlp/Wo_bias", "D", "D", "mlp_bias"),
    Row("model.final_norm.weight", "final_norm/scale", "D", "D"),
    Row("model.final_norm.bias", "final_norm/bias", "D", "D", "norm_bias"),
    Row("head.dense.weight", "head/dense", "E D", "E D"),
    Row("head.dense.bias", "head/dense_bias", "E", "E", "classifier_bias"),
    Row("head.norm.weight", "head/norm/scale", "D", "D"),
    Row("head.norm.bias", "head/norm/bias", "D", "D", "norm_bias"),
    Row("decoder.weight", "decoder/weight", "V D", "V D", "untied"),
    Row("decoder.bias", "decoder/bias", "V", "V", "decoder_bias"),
)
EMBEDDING, DECODER = (
    "model.embeddings.tok_embeddings.weight",
    "decoder.weight",
)  # one tensor when tied


@dataclass(frozen=True)
class Entry:
    """One tensor of one model: its two names, shapes and the way between them."""

    hf_name: str
    path: tuple[str, ...]
    index: int | None  # place on the stacked layer axis; None: the leaf is not stacked
    hf_shape: tuple[int, ...]
    our_shape: tuple[int, ...]  # without the stacked axis
    letters: str  # of the Hugging Face tensor, once its axes are split
    layout: str  # of ours

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """A view of a Hugging Face tensor in our layout, same dtype."""
        size = dict(zip(self.layout, self.our_shape, strict=True))
        split = array.reshape([size[letter] for letter in self.letters])
        return split.transpose([self.letters.index(letter) for letter in self.layout])

    def to_hf(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `to_ours`."""
        back = array.transpose([self.layout.index(letter) for letter in self.letters])
        return back.reshape(self.hf_shape)


def entries(config: ModelConfig) -> list[Entry]:
    """Every tensor of this model, exactly once, in the order of the table."""
    size = {
        "V": config.vocab_size,
        "D": config.hidden_size,
        "E": config.hidden_size,
        "C": 3,
        "H": config.num_attention_heads,
        "K": config.head_dim,
        "G": 2,
        "F": config.intermediate_size,
    }

    def entry(row: Row, name: str, path: tuple[str, ...], index: int | None) -> Entry:
        hf_shape = tuple(int(np.prod([size[x] for x in axis])) for axis in row.hf_layout.split())
        layout = row.our_layout.replace(" ", "")
        our_shape = tuple(size[letter] for letter in layout)
        letters = row.hf_layout.replace(" ", "")
        return Entry(name, path, index, hf_shape, our_shape, letters, layout)

    found = []
    for row in ROWS:
        untied = not config.tie_word_embeddings
        if row.flag is not None and not (untied if row.flag == "untied" else getattr(config, row.flag)):
            continue
        path = tuple(row.path.split("/"))
        if "{i}" not in row.hf_name:
            found.append(entry(row, row.hf_name, path, None))
            continue
        for layer in range(1 if path[0] == "attn_norm" else 0, config.num_hidden_layers):
            layer_folder, index = layer_path(config, layer)
            found.append(entry(row, row.hf_name.format(i=layer), (*layer_folder, *path), index))
    return found
