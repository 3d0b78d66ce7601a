"""All runs of a task in one program: each as if it were alone, dropout and all; the best look at dev answers."""

import random
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import eval.finetune as finetune_
from cptjax.data.tokenizer import Encoder
from cptjax.families import encoder
from cptjax.model import init_params
from cptjax.shape import BertConfig, Precision
from eval.choose_head import head_of
from eval.finetune import MEMORY_SHARE, Outcome, Run, finetune, order_of, rate_of, setting_of
from eval.protocols import protocol_of
from eval.tasks.task import Answer, Example, Span
from eval.update import programs
from tests.eval.small import LABELS, examples, problem_of, splits_of
from tests.fixtures_text import make_bert_tokenizer

CONFIG = BertConfig(
    vocab_size=160,
    hidden_size=32,
    intermediate_size=64,
    num_attention_heads=2,
    num_hidden_layers=1,
    max_position_embeddings=64,
    initializer_range=0.1,
    head="none",
)
CHANGES = {"steps": 30, "evaluate_every": 10, "learning_rate": 3e-3, "texts_per_step": 5}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Encoder(make_bert_tokenizer(tmp_path_factory.mktemp("finetune") / "tokenizer"))


@pytest.fixture(scope="module")
def params():
    return init_params(encoder(CONFIG), jax.random.key(0))


def tuned(tokenizer, params, kind, seeds, rates=(), *, changes=CHANGES, of=None, **options) -> list[Outcome]:
    return [*finetune(CONFIG, params, tokenizer, problem_of(kind, changes, of), seeds, rates, **options)]


def same(together: Outcome, alone: Outcome) -> None:
    assert (together.seed, together.learning_rate) == (alone.seed, alone.learning_rate)
    np.testing.assert_allclose(together.losses, alone.losses, rtol=2e-4, atol=2e-5)
    assert together.answers == alone.answers and together.looks == alone.looks


@pytest.fixture(scope="module")
def together(tokenizer, params):
    return tuned(tokenizer, params, "entities", [3, 4], [3e-3, 1e30], at_once=4, keep=True)


def test_runs_that_train_together_are_as_each_alone(tokenizer, params, together):
    """With dropout: what is drawn follows from the seed, not from the company."""
    # Broken by: keys of all runs from one seed; rows of a step as many as there are, in the shape of a draw.
    (alone,) = tuned(tokenizer, params, "entities", [4], [3e-3])
    same(together[1], alone)
    assert np.abs(together[0].losses - together[1].losses).max() > 1e-3


@pytest.mark.parametrize("kind", LABELS)
def test_models_of_one_shape_share_what_was_compiled(kind):
    def made():
        problem = problem_of(kind)
        return programs(replace(CONFIG), head_of(problem), problem.protocol, Precision("float32"), None)

    assert made() is made()


def test_a_run_that_diverges_says_so_and_ends_no_other(together):
    # Broken by: the loop left once any loss is not finite.
    assert [outcome.diverged for outcome in together] == [False, False, True, True]
    assert not together[2].answers and len(together[0].losses) == 30
    assert [look.step for look in together[0].looks] == [10, 20, 30]


def test_what_is_learnt_is_said_with_exact_characters(together):
    of = examples("entities")
    gold = [example.gold for example in of["test"]]
    assert problem_of("entities").score("test", together[0].answers["test"]) > 0.8
    texts = {span.label: set() for answer in gold for span in answer.spans}
    for example, answer in zip(of["test"], together[0].answers["test"], strict=True):
        for span in answer.spans:
            texts[span.label].add(example.text[span.start : span.end])
    assert texts["FLUID"] <= {"blood", "blood blood"} | texts["FLUID"] and "blood" in texts["FLUID"]


def test_devices_share_runs(tokenizer, params, together):
    # Broken by: the last run of three given to one device of two, and not dropped again.
    shared = tuned(tokenizer, params, "entities", [3, 4, 5], [3e-3], devices=jax.devices()[:2])
    assert len(shared) == 3
    for outcome, expected in zip(shared, together, strict=False):
        if not expected.diverged:
            same(outcome, expected)


def test_as_many_runs_train_together_as_fit(tokenizer, params, monkeypatch):
    """Each needs the same, from two on: what two need tells how many fit."""
    # Broken by: what a step keeps for its way back left out; the best parameters left out; one run asked for two.
    runs = [Run(seed, 1e-3) for seed in range(6)]
    last, setting = (
        setting_of(CONFIG, params, tokenizer, problem_of("entities", CHANGES | {"selection": each}), jax.devices()[:1])
        for each in ("last", "best")
    )
    of_two, of_six = (finetune_.memory_of(setting, runs[:count]) for count in (2, 6))
    assert of_six == pytest.approx(3 * of_two, rel=0.02)
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    without_best = finetune_.memory_of(last, runs[:2])
    assert of_two - without_best == pytest.approx(2 * parameters, rel=0.05)  # the head has some too
    assert without_best > 2 * 5 * parameters  # themselves, two moments, gradients and what layers keep
    shared = setting_of(CONFIG, params, tokenizer, setting.problem, jax.devices()[:2])
    assert finetune_.memory_of(shared, runs[:4]) == pytest.approx(of_two, rel=0.05)  # of each of two
    gpu = replace(setting, devices=[SimpleNamespace(platform="gpu")])
    for memory, count in ((1.7 * of_two, 3), (0.4 * of_two, 1), (None, 1)):
        monkeypatch.setattr(finetune_, "device_memory", lambda _, memory=memory: memory and memory / MEMORY_SHARE)
        assert finetune_.fitting(gpu, runs) == count
    assert finetune_.fitting(setting, runs) == 1 == finetune_.fitting(gpu, runs[:1])


def test_nested_entities_and_labels_are_learnt(tokenizer, params):
    changes = {"head_learning_rate": 1e-2, "steps": 60, "evaluate_every": 30}
    (spans,) = tuned(tokenizer, params, "nested_entities", [0], changes=CHANGES | changes)
    assert spans.chosen is not None and spans.chosen.score > 0.5
    (labels,) = tuned(tokenizer, params, "multi_label", [0], changes=CHANGES | {"threshold": "dev"})
    assert labels.chosen is not None and labels.chosen.score >= labels.looks[0].score
    assert {*labels.scores["test"][0]} == {"FLUID", "ORGAN"}


@pytest.mark.parametrize("changes", [{}, {"lstm_layers": 2, "lstm_width": 16, "span_tags": True, "span_dropout": 0.1}])
def test_entities_within_each_other_and_with_gaps_are_learnt(tokenizer, params, changes):
    """An entity with a gap, the words before and after "blood"; and the three words together are another."""
    # Broken by: a way through the words between; a span scorer that is not asked who follows whom.
    random_ = random.Random(0)

    def text(number: int) -> Example:
        words = random_.choices(["the", "heart", "is", "a"], k=6)
        place = random_.randint(1, 4)
        words[place - 1 : place + 2] = "vessels", "blood", "mind"
        ends = np.cumsum([len(word) + 1 for word in words]) - 1
        ranges = [(int(end) - len(word), int(end)) for word, end in zip(words, ends, strict=True)]
        apart = Span((ranges[place - 1], ranges[place + 1]), "ORGAN")
        whole = Span(((ranges[place - 1][0], ranges[place + 1][1]),), "FLUID")
        return Example(str(number), " ".join(words), Answer(spans=tuple(sorted((apart, whole)))))

    of = {split: [text(number) for number in range(size)] for split, size in (("train", 40), ("dev", 8), ("test", 8))}
    own = {"head_learning_rate": 1e-2, "steps": 60, "evaluate_every": 60} | changes
    (outcome,) = tuned(tokenizer, params, "nested_entities", [0], changes=CHANGES | own, of=of)
    assert outcome.looks[-1].score > 0.8
    told = {each for answer in outcome.answers["test"] for each in answer.spans if len(each.ranges) == 2}
    assert {each.label for each in told} == {"ORGAN"}


def test_the_last_look_answers_where_the_protocol_says_so(tokenizer, params):
    """Dev has the labels that are not right: the more is learnt, the lower it scores."""
    # Broken by: the parameters of the best kept anyway; of dev what the first or the last look saw, whatever is chosen.
    of = examples("multi_label")
    dev = [replace(each, gold=Answer(tuple({*LABELS["multi_label"]} - {*each.gold.labels}))) for each in of["dev"]]
    for selection in ("last", "best"):
        changes = CHANGES | {"selection": selection, "schedule": "constant"}
        (outcome,) = tuned(tokenizer, params, "multi_label", [3], of=of | {"dev": dev, "test": dev}, changes=changes)
        assert outcome.chosen == outcome.looks[-1 if selection == "last" else 0]
        assert outcome.looks[-1].score < outcome.looks[0].score
        scored = problem_of("multi_label", of={"test": dev}).score("test", outcome.answers["test"])
        assert scored == outcome.chosen.score
        assert outcome.answers["dev"] == outcome.answers["test"]


def test_a_pass_shows_every_text_once_in_an_order_of_its_own(tokenizer):
    # Broken by: one order for all epochs; a step that crosses the end of a pass.
    problem = problem_of("multiple_choice", {"texts_per_step": 7, "epochs": 2})
    _, splits = splits_of(CONFIG, tokenizer, problem)
    steps = order_of(5, splits["train"], problem.protocol)
    passes = [sum(steps[:6], []), sum(steps[6:], [])]
    assert len(steps) == 12 and [len(step) for step in steps[:6]] == [21] * 5 + [15]
    assert passes[0] != passes[1] and sorted(passes[0]) == sorted(passes[1]) == list(range(120))
    assert all(step[i + 1] == step[i] + 1 for step in steps for i in range(0, len(step), 3))  # choices stay together
    assert order_of(5, splits["train"], replace(problem.protocol, steps=9)) == steps[:9]


def test_the_schedule_is_that_of_transformers():
    torch = pytest.importorskip("torch")
    from transformers import get_linear_schedule_with_warmup

    protocol = replace(protocol_of("cpu", "relation"), warmup=0.15)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 4, 23)
    for step in range(23):
        assert rate_of(protocol, step, 23) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()


def test_nothing_to_learn_from_is_refused(tokenizer, params):
    with pytest.raises(ValueError, match="no text in train"):
        tuned(tokenizer, params, "entities", [0], of={"train": [], "test": examples("entities")["test"]})
