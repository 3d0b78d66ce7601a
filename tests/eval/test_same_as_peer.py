"""Fine-tuned as transformers and PyTorch do it: from the same weights, with the same texts in the same order, the
losses are theirs step by step, and so is what the exported model says."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from cptjax.data.tokenizer import Encoder
from cptjax.shape import BertConfig, ModernBertConfig
from eval.finetune import finetune
from eval.protocols import protocol_of
from tests.convert.forms import random_params
from tests.eval.small import LABELS, examples, exported, peer_answers, peer_losses, splits_of, without_dropout
from tests.fixtures_text import make_bert_tokenizer

SIZES = {"vocab_size": 160, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
CONFIGS = {
    "bert": without_dropout(BertConfig(**SIZES, num_hidden_layers=2, max_position_embeddings=64)),
    "modernbert": ModernBertConfig(**SIZES, num_hidden_layers=2, local_attention=8),
}
METRICS = {"entities": "entity_f1", "multi_label": "micro_f1", "relation": "accuracy", "multiple_choice": "accuracy"}
CASES = [
    ("bert", "entities"),
    ("bert", "multi_label"),
    ("bert", "relation"),
    ("modernbert", "entities"),
    ("modernbert", "multiple_choice"),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Encoder(make_bert_tokenizer(tmp_path_factory.mktemp("peer") / "tokenizer"))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_losses_are_those_of_transformers_step_by_step(tmp_path, tokenizer, name, kind):
    # Broken by: decay of norms, a warm-up that begins at step 1, the mean over rows for that over texts or words.
    pytest.importorskip("torch")
    config = replace(CONFIGS[name], head="none", num_labels=0)
    params = jax.tree.map(lambda x: 0.15 * x, random_params(config))
    params = jax.tree_util.tree_map_with_path(lambda path, x: x + (path[-1].key == "scale"), params)
    changes = {"steps": 20, "learning_rate": 3e-3, "texts_per_step": 6, "warmup": 0.2, "selection": "last"}
    protocol, of = protocol_of("english", kind, changes), examples(kind)
    (outcome,) = finetune(
        config, params, tokenizer, kind, LABELS[kind], of, protocol, [7], metric=METRICS[kind], keep=True
    )
    head, splits = splits_of(config, tokenizer, kind, of, protocol)
    expected = peer_losses(tmp_path / "start", config, params, splits["train"], head, protocol, 7)
    np.testing.assert_allclose(outcome.losses, expected, rtol=1e-4, atol=1e-4)
    assert np.ptp(outcome.losses) > 0.03
    assert outcome.config is not None
    theirs = exported(tmp_path / "trained", outcome.config, outcome.params, head)
    assert peer_answers(theirs, splits["test"], head) == outcome.answers["test"]
