"""The one table of names: what each Hugging Face tensor is called here, in both directions.

Every row is a renaming, a reshape and a transpose, so a round trip is exact to the bit.

V vocabulary, D width, E the same width as an output, H heads, K head width, F feed-forward width,
N labels; C query, key, value; G the activated half and the gate. "CHK D" is a matrix whose first axis is
C, H and K flattened, C outermost.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from cptjax.shape import ModelConfig, layer_path

ENCODER, DECODER = "modernbert", "modernbert-decoder"  # config.json's model_type


class Architecture(NamedTuple):
    """A model class of transformers: its config's model_type, and what stands on the encoder."""

    model_type: str
    head: str  # ModelConfig.head

    @property
    def mask_mode(self) -> str:
        """How the class reads."""
        return "causal" if self.model_type == DECODER else "bidirectional"


ARCHITECTURES = {
    "ModernBertForMaskedLM": Architecture(ENCODER, "lm"),
    "ModernBertModel": Architecture(ENCODER, "none"),
    "ModernBertForSequenceClassification": Architecture(ENCODER, "classifier"),
    "ModernBertForTokenClassification": Architecture(ENCODER, "classifier"),
    "ModernBertForQuestionAnswering": Architecture(ENCODER, "classifier"),
    "ModernBertDecoderForCausalLM": Architecture(DECODER, "lm"),
    "ModernBertDecoderModel": Architecture(DECODER, "none"),
}


class Row(NamedTuple):
    """One tensor, or one per layer where the name holds {i}, if the config's `flag` is on."""

    hf_name: str
    path: str  # ours, inside the layer where the name holds {i}; a number at its end is an index
    hf_layout: str
    our_layout: str
    flag: str | None = None


EMBEDDINGS = (
    Row("model.embeddings.tok_embeddings.weight", "embeddings/tok_embeddings", "V D", "V D"),
    Row("model.embeddings.norm.weight", "embeddings/norm/scale", "D", "D"),
    Row("model.embeddings.norm.bias", "embeddings/norm/bias", "D", "D", "norm_bias"),
)
QKV = {
    ENCODER: (
        Row("model.layers.{i}.attn.Wqkv.weight", "attn/Wqkv", "CHK D", "C H K D"),
        Row("model.layers.{i}.attn.Wqkv.bias", "attn/Wqkv_bias", "CHK", "C H K", "attention_bias"),
    ),
    DECODER: (
        Row("model.layers.{i}.attn.q_proj.weight", "attn/Wqkv/0", "HK D", "H K D"),
        Row("model.layers.{i}.attn.k_proj.weight", "attn/Wqkv/1", "HK D", "H K D"),
        Row("model.layers.{i}.attn.v_proj.weight", "attn/Wqkv/2", "HK D", "H K D"),
        Row("model.layers.{i}.attn.q_proj.bias", "attn/Wqkv_bias/0", "HK", "H K", "attention_bias"),
        Row("model.layers.{i}.attn.k_proj.bias", "attn/Wqkv_bias/1", "HK", "H K", "attention_bias"),
        Row("model.layers.{i}.attn.v_proj.bias", "attn/Wqkv_bias/2", "HK", "H K", "attention_bias"),
    ),
}
LAYERS = (
    Row("model.layers.{i}.attn_norm.weight", "attn_norm/scale", "D", "D"),
    Row("model.layers.{i}.attn_norm.bias", "attn_norm/bias", "D", "D", "norm_bias"),
    Row("model.layers.{i}.attn.Wo.weight", "attn/Wo", "D HK", "D H K"),
    Row("model.layers.{i}.attn.Wo.bias", "attn/Wo_bias", "D", "D", "attention_bias"),
    Row("model.layers.{i}.mlp_norm.weight", "mlp_norm/scale", "D", "D"),
    Row("model.layers.{i}.mlp_norm.bias", "mlp_norm/bias", "D", "D", "norm_bias"),
    Row("model.layers.{i}.mlp.Wi.weight", "mlp/Wi", "GF D", "G F D"),
    Row("model.layers.{i}.mlp.Wi.bias", "mlp/Wi_bias", "GF", "G F", "mlp_bias"),
    Row("model.layers.{i}.mlp.Wo.weight", "mlp/Wo", "D F", "D F"),
    Row("model.layers.{i}.mlp.Wo.bias", "mlp/Wo_bias", "D", "D", "mlp_bias"),
)
FINAL = (
    Row("model.final_norm.weight", "final_norm/scale", "D", "D"),
    Row("model.final_norm.bias", "final_norm/bias", "D", "D", "norm_bias"),
)
HEAD = (
    Row("head.dense.weight", "head/dense", "E D", "E D"),
    Row("head.dense.bias", "head/dense_bias", "E", "E", "classifier_bias"),
    Row("head.norm.weight", "head/norm/scale", "D", "D"),
    Row("head.norm.bias", "head/norm/bias", "D", "D", "norm_bias"),
)
HEADS = {
    "none": (),
    "lm": (
        *HEAD,
        Row("decoder.weight", "decoder/weight", "V D", "V D", "untied"),
        Row("decoder.bias", "decoder/bias", "V", "V", "decoder_bias"),
    ),
    "classifier": (
        *HEAD,
        Row("classifier.weight", "classifier/weight", "N D", "N D"),
        Row("classifier.bias", "classifier/bias", "N", "N"),
    ),
}
BODY_PREFIX = "model."  # a model without a head is saved without it
TABLE, TIED = EMBEDDINGS[0].hf_name, "decoder.weight"  # one array where the config ties them


@dataclass(frozen=True)
class Entry:
    """One tensor of one model: its two names, shapes and the way between them."""

    hf_name: str
    path: tuple[str, ...]
    index: tuple[int, ...]  # its place in our array: of a stacked layer, of query, key or value
    hf_shape: tuple[int, ...]
    our_shape: tuple[int, ...]  # without the indexed axes
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


def entries(config: ModelConfig, architecture: str) -> list[Entry]:
    """Every tensor of this model, exactly once, one of our parameters after the other."""
    form = ARCHITECTURES[architecture]
    assert form.head == config.head, f"{architecture} of a model whose head is {config.head!r}"
    rows = (*EMBEDDINGS, *QKV[form.model_type], *LAYERS, *FINAL, *HEADS[config.head])
    present = [entry for row in rows if _present(row, config) for entry in _of_row(row, config)]
    present.sort(key=lambda entry: entry.path)  # stable: a stacked parameter's layers stay in order
    return [replace(entry, hf_name=_name(entry.hf_name, form)) for entry in present]


def _name(name: str, form: Architecture) -> str:
    if form.head == "none":
        return name.removeprefix(BODY_PREFIX)
    return f"lm_{name}" if form.model_type == DECODER and name.startswith("head.") else name


def _present(row: Row, config: ModelConfig) -> bool:
    if row.flag == "untied":
        return not config.tie_word_embeddings
    return row.flag is None or getattr(config, row.flag)


def _of_row(row: Row, config: ModelConfig) -> list[Entry]:
    size = {
        "V": config.vocab_size,
        "D": config.hidden_size,
        "E": config.hidden_size,
        "C": 3,
        "H": config.num_attention_heads,
        "K": config.head_dim,
        "G": 2,
        "F": config.intermediate_size,
        "N": config.num_labels,
    }
    hf_shape = tuple(int(np.prod([size[x] for x in axis])) for axis in row.hf_layout.split())
    layout, letters = row.our_layout.replace(" ", ""), row.hf_layout.replace(" ", "")
    our_shape = tuple(size[letter] for letter in layout)
    keys = row.path.split("/")
    path = tuple(key for key in keys if not key.isdigit())
    part = tuple(int(key) for key in keys if key.isdigit())

    def entry(name: str, path: tuple[str, ...], index: tuple[int, ...]) -> Entry:
        return Entry(name, path, index, hf_shape, our_shape, letters, layout)

    if "{i}" not in row.hf_name:
        return [entry(row.hf_name, path, part)]
    made = []
    for layer in range(1 if path[0] == "attn_norm" else 0, config.num_hidden_layers):
        folder, place = layer_path(config, layer)
        stacked = () if place is None else (place,)
        made.append(entry(row.hf_name.format(i=layer), (*folder, *path), stacked + part))
    return made
