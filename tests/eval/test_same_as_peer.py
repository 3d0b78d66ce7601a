"""Fine-tuned as transformers and PyTorch do it: from the same weights, with the same texts in the same order, the
losses are theirs step by step, and so is what the exported model says."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from convert.from_hf import load
from cptjax.data.tokenizer import Encoder
from cptjax.shape import BertConfig, ModernBertConfig
from eval.finetune import finetune
from eval.kept import keep_model
from eval.problem import Problem
from eval.protocols import protocol_of
from eval.tagging import spans_of, tag_names
from eval.tasks.registry import TASKS
from eval.texts import words_of
from tests.convert.forms import random_params
from tests.eval.small import exported, peer_answers, peer_losses, problem_of, splits_of, without_dropout
from tests.fixtures_text import make_bert_tokenizer

SHARED = Path(__file__).parents[3] / "shared"
MINILM, ANATEM = SHARED / "models/minilm-l6", SHARED / "data/ner_en/AnatEM-IOB"
REAL_TEXTS = 200  # of AnatEM's test
SIZES = {"vocab_size": 160, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
CONFIGS = {
    "bert": without_dropout(BertConfig(**SIZES, num_hidden_layers=2, max_position_embeddings=64)),
    "modernbert": ModernBertConfig(**SIZES, num_hidden_layers=2, local_attention=8),
}
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
    changes = {
        "steps": 20,
        "learning_rate": 3e-3,
        "texts_per_step": 6,
        "weight_decay": 3.0,
        "warmup": 0.2,
        "selection": "last",
    }
    problem = problem_of(kind, changes, protocol="english")
    (outcome,) = finetune(config, params, tokenizer, problem, [7], keep=True)
    head, splits = splits_of(config, tokenizer, problem)
    expected = peer_losses(tmp_path / "start", config, params, splits["train"], head, problem.protocol, 7)
    np.testing.assert_allclose(outcome.losses, expected, rtol=1e-4, atol=1e-4)
    assert np.ptp(outcome.losses) > 0.01  # a hundred times what they may differ by
    assert outcome.config is not None
    theirs = exported(tmp_path / "trained", outcome.config, outcome.params, head)
    assert peer_answers(theirs, splits["test"], head) == outcome.answers["test"]


@pytest.mark.realdata
@pytest.mark.skipif(not (MINILM.is_dir() and ANATEM.is_dir()), reason=f"{MINILM} or {ANATEM} is not here")
def test_a_real_encoder_is_trained_as_there_and_says_the_same_of_every_text(tmp_path):
    """30 steps of AnatEM; transformers reads the kept folder with its own tokenizer."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config, params = load(MINILM)
    config, tokenizer, task = without_dropout(config), Encoder(MINILM), TASKS["anatem"]
    whole = task.read(ANATEM)
    of = {"train": whole["train"][:480], "test": whole["test"][:REAL_TEXTS]}
    labels = tuple(sorted({span.label for example in of["train"] for span in example.gold.spans}))
    protocol = protocol_of("cpu", "entities", {"steps": 30, "learning_rate": 5e-4})
    problem = Problem("entities", labels, of, protocol, "entity_f1")
    (outcome,) = finetune(config, params, tokenizer, problem, [1], keep=True)
    _, splits = splits_of(config, tokenizer, problem)
    expected = peer_losses(tmp_path / "start", config, params, splits["train"], outcome.head, protocol, 1)
    np.testing.assert_allclose(outcome.losses[:20], expected[:20], rtol=1e-4, atol=1e-4)
    keep_model(outcome, labels, MINILM, tmp_path / "kept")
    theirs = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "kept").eval()
    assert theirs.config.id2label == dict(enumerate(tag_names(labels)))
    own = transformers.AutoTokenizer.from_pretrained(tmp_path / "kept")
    for example, answer in zip(of["test"], outcome.answers["test"], strict=True):
        fed = own(example.text, return_tensors="pt", return_offsets_mapping=True, truncation=True)
        first_U, words_U2 = words_of(example.text, fed.pop("offset_mapping")[0].numpy(), every=False)
        with torch.no_grad():
            tag_L = theirs(**fed).logits[0].argmax(-1).numpy()
        assert spans_of(tag_L[first_U], words_U2, labels) == answer.spans
    assert sum(len(answer.spans) for answer in outcome.answers["test"]) > 5
