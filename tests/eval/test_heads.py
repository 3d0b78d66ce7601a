"""Heads on packed rows: as with one text a row, and as transformers' classes have them."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from convert import to_hf
from cptjax.families import encoder
from cptjax.shape import BertConfig, Precision
from eval.choose_head import head_of
from eval.heads import Head, TextHead, TokenHead
from eval.packed import Piece, Shape, batch, split_batches
from eval.problem import Problem
from eval.protocols import protocol_of
from eval.spans.head import SpanHead
from eval.tasks.task import Answer, Example, Span
from eval.texts import Text
from eval.update import hidden_states, start_params, step_loss
from tests.convert.forms import BERT, MODERNBERT, ROBERTA, random_params

CONFIGS = {"bert": BERT, "roberta": ROBERTA, "modernbert": replace(MODERNBERT, num_hidden_layers=2, layer_types=())}
LABELS = ("A", "B", "C")
HEADS: dict[str, Head] = {
    "label": TextHead(LABELS, "one"),
    "labels": TextHead(LABELS, "any", positive_N=(2.0, 1.0, 5.0)),
    "choice": TextHead((), "one", of_choices=True),
    "choices": TextHead((), "any", of_choices=True),
    "tags": TokenHead(LABELS),
    "spans": SpanHead(LABELS, 8, 4, 0.5),
    "gaps": SpanHead(LABELS, 8, 4, 0.5, gaps=True),
    "tagged spans": SpanHead(LABELS, 8, 4, 0.5, layers=2, lstm_width=6, tags=True),
}
LENGTHS = (9, 5, 12, 4, 7, 3)
EXACT = Precision("float32")


def pieces(head: Head, types: int = 1) -> list[Piece]:
    """Texts of random tokens, two an example, every token a word, with random answers."""
    rng = np.random.default_rng(0)
    made = []
    for number, length in enumerate(LENGTHS):
        token_L = rng.integers(5, 40, length).astype(np.int32)
        type_L = (np.arange(length) > length // 2).astype(np.int32) * types
        text = Text(number // 2, number % 2, token_L, type_L, np.arange(length, dtype=np.int32), 0, (0, length))
        words_U2 = np.stack([np.arange(length), np.arange(length) + 1], 1)
        spans = tuple(Span(((i, i + 2),), LABELS[i % 3]) for i in range(0, length - 2, 3))
        right = (str(number // 2 % 2),) if isinstance(head, TextHead) and head.of_choices else (LABELS[number % 3],)
        made.append(Piece(text, head.targets(text, words_U2, Example("1", "", Answer(right, spans)))))
    return made


def model_of(name: str, head: Head, backend: str = "blockwise"):
    """A network with random weights under a head, and the parameters."""
    config = replace(CONFIGS[name], head="none", num_labels=0)
    config = replace(config, pooler=False) if isinstance(config, BertConfig) else config
    params = jax.tree.map(lambda x: 0.3 * x, random_params(config))
    model = encoder(head.shape(config), EXACT, backend)
    return model, start_params(model, head, params, jax.random.key(0))


@pytest.mark.parametrize("kind", HEADS)
def test_packed_texts_give_the_loss_and_gradient_of_texts_alone(kind):
    # Broken by: segments that are not numbered over all rows; a mean over rows; positions that do not restart.
    head, name = HEADS[kind], "bert" if kind in ("label", "spans") else "modernbert"
    model, params = model_of(name, head)
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    found = pieces(head)
    shapes = [((12, 6),), ((6, 3), (16, 2))]
    key = jax.random.key(0)
    off = (
        replace(model.config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        if name == "bert"
        else model.config
    )
    model = encoder(off, EXACT)
    gradient = jax.jit(jax.value_and_grad(lambda params, arrays: step_loss(params, model, head, arrays, key)))
    told = [gradient(params, batch(found, Shape(rows, 8, 40)).arrays) for rows in shapes]
    (alone, expected), (loss, grads) = told
    assert float(loss) == pytest.approx(float(alone), rel=1e-5)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", ["labels", "tags"])
def test_transformers_gives_the_same_scores_to_what_is_exported(tmp_path, name, kind):
    # Broken by: a RoBERTa's pooler taken for its classifier's; the mean with padding; token types left out.
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    head = HEADS[kind]
    model, params = model_of(name, head)
    stem = {"bert": "Bert", "roberta": "Roberta", "modernbert": "ModernBert"}[name]
    architecture = stem + {"texts": "ForSequenceClassification", "tokens": "ForTokenClassification"}[head.stands]
    to_hf.save(model.config, params, tmp_path / "out", architecture=architecture)
    theirs = getattr(transformers, architecture).from_pretrained(tmp_path / "out").eval()
    found = pieces(head, types=int(name == "bert"))
    for numbers, placed in split_batches(found, model.config.longest_document):
        (rows,) = placed.arrays["rows"]
        hidden_BLD = hidden_states(model, params, rows, None)
        if kind == "tags":
            from cptjax.heads import token_scores

            score_BLN = np.asarray(token_scores(model, params, hidden_BLD))
        else:
            score_TN = np.asarray(head.scores(model, params, hidden_BLD, placed.arrays))
        for number, piece in enumerate(numbers):
            text = found[piece].text
            types = {"token_type_ids": torch.tensor(text.token_type_L[None]).long()} if name == "bert" else {}
            with torch.no_grad():
                expected = theirs(torch.tensor(text.token_L[None]).long(), **types).logits.numpy()[0]
            _, row, start = placed.place_T[number]
            ours = score_BLN[row, start : start + len(text.token_L)] if kind == "tags" else score_TN[number]
            np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_a_classifier_begins_as_transformers_draws_it():
    # Broken by: the deviation of ModernBERT's classifier for a BERT's.
    for name, deviation in (("bert", 0.02), ("modernbert", 64**-0.5)):
        head = TextHead(tuple(map(str, range(300))), "one")
        config = replace(CONFIGS[name], hidden_size=64, head="none", num_labels=0)
        model = encoder(head.shape(config), EXACT)
        params = start_params(model, head, {}, jax.random.key(3))
        drawn = np.asarray(params["classifier"]["weight"])
        cut = 0.88 if name == "modernbert" else 1  # of a normal cut at two deviations
        assert drawn.std() == pytest.approx(deviation * cut, rel=0.05) and not params["classifier"]["bias"].any()


def test_what_a_model_brings_for_a_head_is_kept_as_transformers_keeps_it():
    # Broken by: ModernBERT's dense layer drawn anew; a RoBERTa's pooler kept.
    for name, kept in (("modernbert", "head"), ("bert", "pooler"), ("roberta", None)):
        config = CONFIGS[name] if name == "modernbert" else replace(CONFIGS[name], head="none", pooler=True)
        params, head = random_params(config), HEADS["label"]
        started = start_params(encoder(head.shape(config), EXACT), head, params, jax.random.key(0))
        assert set(started) <= {*params, "classifier"}
        same = {part for part in started if part in params and started[part] is params[part]}
        assert same == {*params} - ({"decoder"} if name == "modernbert" else {"pooler"} - {kept})


def test_dropout_is_that_of_the_config_and_of_rows_and_texts_alone():
    """Padding rows, and how many texts a step could hold, change no draw."""
    # Broken by: the number of rows folded into their keys; a share of 0 of what a classifier reads.
    head = HEADS["label"]
    model, params = model_of("bert", head, "reference")
    found, loss = pieces(head), jax.jit(step_loss, static_argnums=(1, 2))
    told = [
        float(loss(params, model, head, batch(found, Shape(((20, rows),), texts, 0)).arrays, jax.random.key(seed)))
        for rows, texts, seed in ((3, 6, 0), (5, 9, 0), (3, 6, 1))
    ]
    assert told[0] == pytest.approx(told[1], rel=1e-6) and abs(told[0] - told[2]) > 1e-3
    only = replace(model.config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.5)
    assert only.dropout.shares == {} and only.features_dropout == 0.5
    model = encoder(only, EXACT)
    arrays = batch(found, Shape(((20, 3),), 6, 0)).arrays
    drawn = {float(loss(params, model, head, arrays, jax.random.key(seed))) for seed in (0, 1)}
    assert len(drawn) == 2


def test_answers_pass_the_threshold_or_are_the_likeliest():
    # Broken by: the fallback of a protocol that has none.
    head = TextHead(LABELS, "any")
    score_N = np.array([1.0, -3.0, 0.2])
    assert head._answer(score_N, 0.5)[0].labels == ("A", "C") and head._answer(score_N, 0.9)[0].labels == ("A",)
    assert replace(head, fallback=False)._answer(score_N, 0.9)[0].labels == ()
    answer, shares = TextHead(LABELS, "one")._answer(score_N, 0.9)
    assert answer.labels == ("A",) and sum(shares.values()) == pytest.approx(1, abs=1e-5)


def test_a_head_counts_what_train_says():
    # Broken by: shares of all texts for wrong by right ones.
    def head(kind, labels, train):
        return head_of(Problem(kind, labels, {"train": train}, protocol_of("english", "multi_label"), "micro_f1"))

    numbered = [Example("", "", Answer(labels)) for labels in [("A",), ("A", "B"), ("A",), ()]]
    assert head("multi_label", LABELS, numbered) == TextHead(LABELS, "any", positive_N=(1 / 3, 3.0, 1.0))
    choice, choices = (head("multiple_choice", (), examples) for examples in (numbered[:1], numbered))
    assert isinstance(choice, TextHead) and isinstance(choices, TextHead)
    assert (choice.right, choices.right) == ("one", "any")
