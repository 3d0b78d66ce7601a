"""The one table of names: what each Hugging Face tensor is called here, in both directions, for every family.

Every row is a renaming, a reshape and a transpose, so a round trip is exact to the bit.

V vocabulary, P positions, T token types, D width, E the same width as an output, H heads, K head width, F feed-forward
width, N labels; C query, key, value; G what the feed-forward reads: the activated part and, where there is one, the
gate. "CHK D" is a matrix whose first axis is C, H and K flattened, C outermost.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from cptjax.shape import ModelConfig, layer_path

ENCODER, DECODER = "modernbert", "modernbert-decoder"  # config.json's model_type
CLASSIFIERS = ("texts", "tokens", "spans")


class Architecture(NamedTuple):
    """A model class of transformers: its config's model_type, what stands on the encoder, and how it reads."""

    model_type: str
    stands: str  # "none", "lm", or what a classifier gives labels to
    mask_mode: str = "bidirectional"

    @property
    def head(self) -> str:
        """ModelConfig.head."""
        return "classifier" if self.stands in CLASSIFIERS else self.stands

    @property
    def shape_type(self) -> str:
        """The model_type of its shape."""
        return ENCODER if self.model_type == DECODER else self.model_type


def _classes(stem: str, model_type: str) -> dict[str, Architecture]:
    """The model classes that every family has."""
    stands = {
        "ForMaskedLM": "lm",
        "Model": "none",
        "ForSequenceClassification": "texts",
        "ForTokenClassification": "tokens",
        "ForQuestionAnswering": "spans",
    }
    return {stem + name: Architecture(model_type, what) for name, what in stands.items()}


ARCHITECTURES = {
    **_classes("ModernBert", ENCODER),
    "ModernBertDecoderForCausalLM": Architecture(DECODER, "lm", "causal"),
    "ModernBertDecoderModel": Architecture(DECODER, "none", "causal"),
    **_classes("Bert", "bert"),
    "BertLMHeadModel": Architecture("bert", "lm", "causal"),
    **_classes("Roberta", "roberta"),
    "RobertaForCausalLM": Architecture("roberta", "lm", "causal"),
    **_classes("Camembert", "camembert"),
    "CamembertForCausalLM": Architecture("camembert", "lm", "causal"),
    **_classes("XLMRoberta", "xlm-roberta"),
    "XLMRobertaForCausalLM": Architecture("xlm-roberta", "lm", "causal"),
}
READ_AS = {"BertForPreTraining": "BertForMaskedLM"}  # classes that are read only, without what no class here has


class Row(NamedTuple):
    """One tensor, or one per layer where the name holds {i}, if the config's `flag` is on."""

    hf_name: str
    path: str  # ours, inside the layer where the name holds {i}; a number at its end is an index
    hf_layout: str
    our_layout: str
    flag: str | None = None


class Copy(NamedTuple):
    """A name under which a file may hold a tensor once more, equal to the bit, or alone."""

    hf_name: str
    of: str  # the name of its row
    why: str
    tied: bool  # with tied embeddings only, and not written; else always, and written too


class Names(NamedTuple):
    """How the tensors of the models of one model_type are called."""

    prefix: str  # of the encoder: a model without a head is saved without it
    body: tuple[Row, ...]
    heads: dict[str, tuple[Row, ...]]  # by Architecture.stands
    copies: tuple[Copy, ...]
    old: tuple[tuple[str, str], ...] = ()  # endings of names in old files, and those of today
    buffers: tuple[str, ...] = ()  # of old files: a model makes them anew
    left_over: tuple[str, ...] = ()  # beginnings of names that belong to heads which no class here has


# ---- ModernBERT

MODERNBERT_BODY = (
    Row("model.embeddings.tok_embeddings.weight", "embeddings/tok_embeddings", "V D", "V D"),
    Row("model.embeddings.norm.weight", "embeddings/norm/scale", "D", "D"),
    Row("model.embeddings.norm.bias", "embeddings/norm/bias", "D", "D", "norm_bias"),
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
    Row("model.final_norm.weight", "final_norm/scale", "D", "D"),
    Row("model.final_norm.bias", "final_norm/bias", "D", "D", "norm_bias"),
)
MODERNBERT_QKV = (
    Row("model.layers.{i}.attn.Wqkv.weight", "attn/Wqkv", "CHK D", "C H K D"),
    Row("model.layers.{i}.attn.Wqkv.bias", "attn/Wqkv_bias", "CHK", "C H K", "attention_bias"),
)
CLASSIFIER = (
    Row("classifier.weight", "classifier/weight", "N D", "N D"),
    Row("classifier.bias", "classifier/bias", "N", "N"),
)


def _apart(names: Sequence[str]) -> tuple[Row, ...]:
    """Query, key and value as three tensors of these names."""
    weights = (Row(f"{name}.weight", f"attn/Wqkv/{i}", "HK D", "H K D") for i, name in enumerate(names))
    biases = (Row(f"{name}.bias", f"attn/Wqkv_bias/{i}", "HK", "H K", "attention_bias") for i, name in enumerate(names))
    return (*weights, *biases)


DECODER_QKV = _apart([f"model.layers.{{i}}.attn.{name}_proj" for name in "qkv"])


def _modernbert_heads(head: str) -> dict[str, tuple[Row, ...]]:
    """Every head begins with the same two layers; a decoder has another name for them."""
    features = (
        Row(f"{head}.dense.weight", "head/dense", "E D", "E D"),
        Row(f"{head}.dense.bias", "head/dense_bias", "E", "E", "classifier_bias"),
        Row(f"{head}.norm.weight", "head/norm/scale", "D", "D"),
        Row(f"{head}.norm.bias", "head/norm/bias", "D", "D", "norm_bias"),
    )
    decoder = (
        Row("decoder.weight", "decoder/weight", "V D", "V D", "untied"),
        Row("decoder.bias", "decoder/bias", "V", "V", "decoder_bias"),
    )
    return {"none": (), "lm": (*features, *decoder), **dict.fromkeys(CLASSIFIERS, (*features, *CLASSIFIER))}


TIES = "the config ties them"
MODERNBERT_COPIES = (Copy("decoder.weight", "model.embeddings.tok_embeddings.weight", TIES, tied=True),)

# ---- BERT and RoBERTa


def _bert_body(prefix: str) -> tuple[Row, ...]:
    layer = prefix + "encoder.layer.{i}."
    return (
        Row(f"{prefix}embeddings.word_embeddings.weight", "embeddings/tok_embeddings", "V D", "V D"),
        Row(f"{prefix}embeddings.position_embeddings.weight", "embeddings/position_embeddings", "P D", "P D"),
        Row(f"{prefix}embeddings.token_type_embeddings.weight", "embeddings/token_type_embeddings", "T D", "T D"),
        Row(f"{prefix}embeddings.LayerNorm.weight", "embeddings/norm/scale", "D", "D"),
        Row(f"{prefix}embeddings.LayerNorm.bias", "embeddings/norm/bias", "D", "D"),
        *_apart([f"{layer}attention.self.{name}" for name in ("query", "key", "value")]),
        Row(f"{layer}attention.output.dense.weight", "attn/Wo", "D HK", "D H K"),
        Row(f"{layer}attention.output.dense.bias", "attn/Wo_bias", "D", "D"),
        Row(f"{layer}attention.output.LayerNorm.weight", "attn_norm/scale", "D", "D"),
        Row(f"{layer}attention.output.LayerNorm.bias", "attn_norm/bias", "D", "D"),
        Row(f"{layer}intermediate.dense.weight", "mlp/Wi", "GF D", "G F D"),
        Row(f"{layer}intermediate.dense.bias", "mlp/Wi_bias", "GF", "G F"),
        Row(f"{layer}output.dense.weight", "mlp/Wo", "D F", "D F"),
        Row(f"{layer}output.dense.bias", "mlp/Wo_bias", "D", "D"),
        Row(f"{layer}output.LayerNorm.weight", "mlp_norm/scale", "D", "D"),
        Row(f"{layer}output.LayerNorm.bias", "mlp_norm/bias", "D", "D"),
    )


def _pooler(name: str) -> tuple[Row, ...]:
    return (
        Row(f"{name}.weight", "pooler/dense", "E D", "E D", "pooler"),
        Row(f"{name}.bias", "pooler/dense_bias", "E", "E", "pooler"),
    )


def _lm_head(dense: str, norm: str, decoder: str, bias: str) -> tuple[Row, ...]:
    return (
        Row(f"{dense}.weight", "head/dense", "E D", "E D"),
        Row(f"{dense}.bias", "head/dense_bias", "E", "E"),
        Row(f"{norm}.weight", "head/norm/scale", "D", "D"),
        Row(f"{norm}.bias", "head/norm/bias", "D", "D"),
        Row(f"{decoder}.weight", "decoder/weight", "V D", "V D", "untied"),
        Row(bias, "decoder/bias", "V", "V"),
    )


def _bert_names(prefix: str, lm: str, lm_head: tuple[Row, ...], texts: tuple[Row, ...]) -> Names:
    """What BERT and RoBERTa share; `lm` is where the decoder and its bias are, `texts` a classifier of texts."""
    pooler = _pooler(f"{prefix}pooler.dense")
    answers = tuple(row._replace(hf_name=row.hf_name.replace("classifier", "qa_outputs")) for row in CLASSIFIER)
    table = f"{prefix}embeddings.word_embeddings.weight"
    return Names(
        prefix=prefix,
        body=_bert_body(prefix),
        heads={"none": pooler, "lm": (*pooler, *lm_head), "texts": texts, "tokens": CLASSIFIER, "spans": answers},
        copies=(
            Copy(f"{lm}.decoder.weight", table, TIES, tied=True),
            Copy(f"{lm}.decoder.bias", f"{lm}.bias", "they are one bias", tied=False),
        ),
        old=((".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias")),
        buffers=(f"{prefix}embeddings.position_ids",),
        left_over=("cls.seq_relationship.", *(row.hf_name for row in pooler)),  # a pooler where the class has none
    )


PREDICTIONS = "cls.predictions"
BERT = _bert_names(
    "bert.",
    PREDICTIONS,
    _lm_head(
        f"{PREDICTIONS}.transform.dense",
        f"{PREDICTIONS}.transform.LayerNorm",
        f"{PREDICTIONS}.decoder",
        f"{PREDICTIONS}.bias",
    ),
    (*_pooler("bert.pooler.dense"), *CLASSIFIER),
)
ROBERTA = _bert_names(
    "roberta.",
    "lm_head",
    _lm_head("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias"),
    (
        *_pooler("classifier.dense"),
        *(row._replace(hf_name=row.hf_name.replace("classifier.", "classifier.out_proj.")) for row in CLASSIFIER),
    ),
)

NAMES = {  # by model_type
    ENCODER: Names("model.", (*MODERNBERT_BODY, *MODERNBERT_QKV), _modernbert_heads("head"), MODERNBERT_COPIES),
    DECODER: Names("model.", (*MODERNBERT_BODY, *DECODER_QKV), _modernbert_heads("lm_head"), MODERNBERT_COPIES),
    "bert": BERT,
    **dict.fromkeys(("roberta", "camembert", "xlm-roberta"), ROBERTA),
}

# ---- one model


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


def rows_of(architecture: str) -> tuple[Row, ...]:
    """The rows of a model class, whatever its config's flags."""
    form = ARCHITECTURES[architecture]
    return (*NAMES[form.model_type].body, *NAMES[form.model_type].heads[form.stands])


def entries(config: ModelConfig, architecture: str) -> list[Entry]:
    """Every tensor of this model, exactly once, one of our parameters after the other; under full names."""
    form = ARCHITECTURES[architecture]
    assert form.head == config.head, f"{architecture} of a model whose head is {config.head!r}"
    present = [entry for row in rows_of(architecture) if _present(row, config) for entry in _of_row(row, config)]
    present.sort(key=lambda entry: entry.path)  # stable: a stacked parameter's layers stay in order
    return present


def stored_entries(config: ModelConfig, architecture: str) -> list[Entry]:
    """The same as files have them: a model without a head without the prefix; a bias of two names under both, for
    transformers 4.48 forgets RoBERTa's where it has one name, and 5 has two where embeddings are not tied."""
    again = {copy.of: copy.hf_name for copy in copies(config, architecture) if not copy.tied}
    stored = []
    for entry in entries(config, architecture):
        stored += [replace(entry, hf_name=stored_name(entry.hf_name, architecture))]
        stored += [replace(entry, hf_name=again[entry.hf_name])] if entry.hf_name in again else []
    return stored


def copies(config: ModelConfig, architecture: str) -> list[Copy]:
    """The names under which a file of this model may hold a tensor once more."""
    form = ARCHITECTURES[architecture]
    known = NAMES[form.model_type].copies if form.stands == "lm" else ()
    return [copy for copy in known if config.tie_word_embeddings or not copy.tied]


def stored_name(name: str, architecture: str) -> str:
    """A full name as files have it: a model without a head leaves the prefix out."""
    form = ARCHITECTURES[architecture]
    return name.removeprefix(NAMES[form.model_type].prefix) if form.stands == "none" else name


def full_name(stored: str, architecture: str) -> str:
    """The name of today, with its prefix, of a tensor as a file names it."""
    names = NAMES[ARCHITECTURES[architecture].model_type]
    for old, new in names.old:
        if stored.endswith(old):
            stored = stored.removesuffix(old) + new
    with_prefix = (*(row.hf_name for row in (*names.body, *names.heads["none"])), *names.buffers)
    bare = {name.removeprefix(names.prefix).split(".")[0] for name in with_prefix}
    return names.prefix + stored if stored.split(".")[0] in bare else stored


def _present(row: Row, config: ModelConfig) -> bool:
    if row.flag == "untied":
        return not config.tie_word_embeddings
    return row.flag is None or getattr(config, row.flag)


def _of_row(row: Row, config: ModelConfig) -> list[Entry]:
    size = {
        "V": config.vocab_size,
        "P": config.max_position_embeddings,
        "T": getattr(config, "type_vocab_size", 0),
        "D": config.hidden_size,
        "E": config.hidden_size,
        "C": 3,
        "H": config.num_attention_heads,
        "K": config.head_dim,
        "G": 1 + config.gated,
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
    first = config.layers_before_scan if path[0] == "attn_norm" else 0  # the norm of the embeddings is theirs
    made = []
    for layer in range(first, config.num_hidden_layers):
        folder, place = layer_path(config, layer)
        stacked = () if place is None else (place,)
        made.append(entry(row.hf_name.format(i=layer), (*folder, *path), stacked + part))
    return made
