"""config.json of BERT (arXiv:1810.04805), RoBERTa (arXiv:1907.11692), CamemBERT and XLM-RoBERTa."""

from dataclasses import replace

from convert import table
from convert.family import Family
from cptjax.shape import BertConfig

POOLS = ("none", "lm")  # what may stand beside a pooler that is kept for others
CAUSAL = {"is_decoder", "add_cross_attention"}


class Bert(Family[BertConfig]):
    """Whether there is a pooler, no config.json tells: the tensors do."""

    shape = BertConfig
    unsaid = frozenset({"pooler"})
    apart = frozenset({"pad_token_id"})  # a BERT's positions do not ask for it: there it is a token's id and no more
    anew = frozenset({*CAUSAL, "position_embedding_type"})
    layers = "encoder.layer"
    scores = {
        model_type: {"lm": (lm,), "tokens": ("classifier",), "spans": ("qa_outputs",)}
        for lm, model_types in {"cls": ("bert",), "lm_head": ("roberta", "camembert", "xlm-roberta")}.items()
        for model_type in model_types
    }

    def prepared(self, raw, architecture):
        """As it is, if its positions are learned and it reads as its class does. Version 5 of transformers does not
        look at the former, and of the latter only warns."""
        kind, causal = raw.get("position_embedding_type"), self.is_decoder(architecture)
        if kind not in (None, "absolute"):
            raise ValueError(f"position_embedding_type is {kind!r}: there are learned positions only, 'absolute'")
        for name, expected in {"is_decoder": causal, "add_cross_attention": False}.items():
            if (said := raw.get(name, False)) is not expected:
                raise ValueError(f"{name} is {said!r}: it must be {expected} for a {architecture}")
        if raw["model_type"] == "bert" and raw.get("pad_token_id", 0) is None:
            return {name: value for name, value in raw.items() if name != "pad_token_id"}
        return raw

    def values(self, normal, architecture):
        """A pooler where the class makes one."""
        pooler = table.ARCHITECTURES[architecture].stands in ("none", "texts")
        return {"pad_token_id": normal.pad_token_id, "pooler": pooler}

    def fitted(self, config, architecture, tensors):
        """A pooler is kept where there is one, and needed where the class reads it."""
        if table.ARCHITECTURES[architecture].stands not in POOLS:
            return config
        names = {row.hf_name for row in table.rows_of(architecture) if row.flag == "pooler"}
        return replace(config, pooler=not names.isdisjoint(tensors))

    def fields(self, config, architecture):
        """Which way it reads, and where positions begin."""
        pad = {} if config.model_type == "bert" else {"pad_token_id": config.pad_token_id}
        return {**pad, "is_decoder": self.is_decoder(architecture), "add_cross_attention": False}

    def versions(self, config, architecture):
        """All that this project knows of; the classes are older."""
        return ">=4.48"

    def cautions(self, config, ids):
        """transformers' RoBERTa counts the ids of a text that are not the padding's."""
        pad = ids.get("pad_token_id")
        if config.model_type == "bert" or pad in (None, config.pad_token_id):
            return []
        return [
            f"transformers takes id {config.pad_token_id} for padding where it counts positions, the tokenizer pads "
            f"with {pad}: a text that holds the former has other positions there"
        ]
