"""Examples to tokens and back: characters are the truth, windows tell each word once, and what is cut is said."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cptjax.data.tokenizer import Encoder
from cptjax.shape import BertConfig
from eval.protocols import protocol_of
from eval.tagging import candidates_of, spans_of, spans_of_candidates, tags_of
from eval.tasks.task import Answer, Example, Span
from eval.tasks.task import span as joined
from eval.texts import MARKS, marked, tokenise, words_of
from tests.fixtures_text import make_bert_tokenizer, make_tokenizer

LABELS = ("CHEM", "DISO")
BERT = BertConfig(max_position_embeddings=64)
ENGLISH = protocol_of("english", "entities")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return [Encoder(make_tokenizer(folder / "bytes")), Encoder(make_bert_tokenizer(folder / "bert"))]


def span(start: int, end: int, label: str = "CHEM") -> Span:
    return Span(((start, end),), label)


def entity(text: str, *spans: Span) -> Example:
    return Example("1", text, Answer(spans=tuple(sorted(spans))))


def told(texts, example: int, spans) -> set[Span]:
    words = texts.words[example]
    return set(spans_of(tags_of(spans, words, LABELS), words, LABELS))


@st.composite
def annotated(draw) -> tuple[str, list[Span]]:
    """A text of odd words, and entities that do not touch each other, from the start of a word to the end of one."""
    words = draw(
        st.lists(st.text("abAB é-.5漢\u0301", min_size=1, max_size=6).filter(str.strip), min_size=1, max_size=12)
    )
    text = draw(st.sampled_from([" ", "  ", "\n"])).join(words)
    places = [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]
    cuts = sorted(draw(st.sets(st.integers(0, len(places)), max_size=6)))
    runs = [places[a:b] for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    return text, [span(run[0][0], run[-1][1], draw(st.sampled_from(LABELS))) for run in runs]


@settings(max_examples=60)
@given(annotated(), st.sampled_from(["first", "every"]), st.sampled_from([8, 16, 64]))
def test_entities_of_whole_words_come_back(encoders, example, token_labels, longest):
    # Broken by: offsets that keep the space before a word; a word's end left at its first token.
    text, gold = example
    protocol = protocol_of("english", "entities", {"token_labels": token_labels, "max_length": longest})
    for encoder in encoders:
        texts = tokenise(encoder, BERT, [entity(text, *gold)], "entities", protocol)
        starts = set(texts.words[0][:, 0].tolist())
        ends = set(texts.words[0][:, 1].tolist())
        sayable = {each for each in gold if each.start in starts and each.end in ends}
        assert sayable <= told(texts, 0, gold)
        for back in told(texts, 0, gold):  # and never a space at either end
            assert text[back.start : back.end].strip() == text[back.start : back.end]
        # each word is told once, by a window that holds its first token
        owned = [range(*window.own) for window in texts.texts]
        assert [word for words in owned for word in words] == list(range(len(texts.words[0])))
        for window in texts.texts:
            first, last = (word - window.first_word for word in window.own)
            assert 0 <= first <= last <= len(window.word_U) and len(window.token_L) <= longest


def test_marks_belong_to_what_they_stand_on(encoders):
    # Broken by: the end of a word where a tokenizer that composes or drops accents says.
    for text in ("l'e\u0301te\u0301 chaud", "x\u0323\u0301 y", "👩\u200d⚕\ufe0f a"):
        at = text.index("e") if text.startswith("l'") else 0
        mention = span(at, text.rindex(" "))
        for encoder in encoders:
            texts = tokenise(encoder, BERT, [entity(text, mention)], "entities", ENGLISH)
            assert told(texts, 0, [mention]) == {mention}


def test_a_boundary_inside_a_word_is_told_by_tokens_only_where_they_have_it(encoders):
    # Broken by: `every` not handed on.
    text = "the heartblood is"
    gold = [span(4, 9)]
    for token_labels, expected in (("first", {span(4, 14)}), ("every", {span(4, 9)})):
        protocol = protocol_of("english", "entities", {"token_labels": token_labels})
        texts = tokenise(encoders[1], BERT, [entity(text, *gold)], "entities", protocol)
        pieces = [text[a:b] for a, b in texts.words[0]]
        assert told(texts, 0, gold) == (
            expected if "heart" in pieces or token_labels == "first" else told(texts, 0, gold)
        )


def test_words_are_those_of_the_text_not_of_the_tokenizer(encoders):
    text = "[MASK] IL-2's  caféine 漢"
    words = [
        text[a:b] for encoder in encoders for a, b in words_of(text, encoder.with_offsets([text])[0][1], every=False)[1]
    ]
    assert words == ["[", "MASK", "]", "IL", "-", "2", "'", "s", "caféine", "漢"] * 2


def test_tags_are_read_as_seqeval_reads_them():
    # Broken by: an I of another label going on with the entity before it.
    bounds = np.array([[i, i + 1] for i in range(7)])
    names = ["O", "I-CHEM", "I-CHEM", "I-DISO", "B-DISO", "O", "B-CHEM"]
    tags = np.array([["O", "B-CHEM", "I-CHEM", "B-DISO", "I-DISO"].index(name) for name in names])
    from seqeval.metrics.sequence_labeling import get_entities

    expected = {span(first, last + 1, label) for label, first, last in get_entities(names)}
    assert set(spans_of(tags, bounds, LABELS)) == expected


def test_what_words_cannot_say_is_left_out():
    bounds = np.array([[0, 3], [4, 7], [8, 11]])
    apart = Span(((0, 3), (8, 11)), "CHEM")
    inside, around = span(4, 7, "DISO"), span(0, 11)
    spans = [apart, inside, around]
    assert set(spans_of_candidates(candidates_of(spans, bounds, LABELS), bounds, LABELS)) == {inside, around}
    assert spans_of(tags_of(spans, bounds, LABELS), bounds, LABELS) == (around,)
    with_gaps = candidates_of([apart, inside], bounds, LABELS, gaps=True)
    assert spans_of_candidates(with_gaps, bounds, LABELS) == (apart, inside)


@given(st.lists(st.tuples(st.sets(st.integers(0, 9), min_size=1), st.sampled_from(LABELS)), max_size=1))
def test_an_entity_of_any_words_comes_back(entities):
    # Broken by: ranges that touch kept apart; the words between joined.
    bounds = np.array([[4 * i, 4 * i + 3] for i in range(10)])
    runs = [(joined(((4 * a, 4 * b + 3) for a, b in stretches(words)), label)) for words, label in entities]
    assert spans_of_candidates(candidates_of(runs, bounds, LABELS, gaps=True), bounds, LABELS) == tuple(runs)


def stretches(words: set[int]) -> list[tuple[int, int]]:
    """First and last of each stretch of numbers without a gap."""
    begins = sorted(word for word in words if word - 1 not in words)
    return list(zip(begins, sorted(word for word in words if word + 1 not in words), strict=True))


def test_ways_between_words_are_few_and_lead_to_the_last():
    # Broken by: ways that lead nowhere followed: two to the power of the words between.
    bounds = np.array([[4 * i, 4 * i + 3] for i in range(60)])
    everywhere = [(a, b, len(LABELS)) for a in range(58) for b in range(a + 1, 58)]
    told = spans_of_candidates(np.array([(0, 59, 0), (0, 57, 0), (0, 57, 1), *everywhere]), bounds, LABELS)
    assert len(told) == 18 and {Span(((0, 239),), LABELS[0]), Span(((0, 231),), LABELS[1])} < {*told}


def test_long_texts_are_cut_and_it_is_said(encoders):
    # Broken by: truncated told of what fits; the second text of a pair cut alone.
    single = Example("1", "heart " * 100, Answer(labels=("CHEM",)))
    pair = Example("2", "heart " * 100, Answer(), second="blood mind")
    fits = Example("3", "the heart", Answer(), second="mind")
    texts = tokenise(encoders[1], BERT, [single, pair, fits], "relation", ENGLISH)
    assert texts.truncated_E.tolist() == [True, True, False]
    assert [len(text.token_L) for text in texts.texts[:2]] == [64, 64]
    probe = encoders[1].tokenizer.encode("the heart", "mind")
    assert texts.texts[2].token_L.tolist() == probe.ids and texts.texts[2].token_type_L.tolist() == probe.type_ids
    both = [
        ("heart " * 100, "blood mind"),
        ("mind", "heart " * 70),
        ("heart " * 80, "blood " * 90),
        ("is " * 90, "a " * 90),
    ]
    texts = tokenise(encoders[1], BERT, [Example("", a, Answer(), second=b) for a, b in both], "relation", ENGLISH)
    encoders[1].tokenizer.enable_truncation(64)
    probes = [encoders[1].tokenizer.encode(*pair).ids for pair in both]
    encoders[1].tokenizer.no_truncation()
    assert [text.token_L.tolist() for text in texts.texts] == probes


def test_each_choice_is_a_pair_with_the_question(encoders):
    example = Example("1", "the heart", Answer(labels=("1",)), choices=("blood", "a muscle"))
    texts = tokenise(encoders[1], BERT, [example, example], "multiple_choice", ENGLISH)
    assert texts.steps_of == [(0, 1), (2, 3)]
    assert [(text.example, text.choice) for text in texts.texts] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert texts.texts[1].token_L.tolist() == encoders[1].tokenizer.encode("the heart", "a muscle").ids


def test_arguments_are_marked_as_the_protocol_says():
    # Broken by: marks put in from the first argument on, so that later places have moved.
    example = Example("1", "aspirin harms IL-2", Answer(), (span(0, 7, "drug"), span(14, 18, "gene")))
    nested = Example("2", "IL-2 receptor", Answer(), (span(0, 4, "gene"), span(0, 13, "gene")))
    by = {name: protocol_of("english", "relation", {"markers": name}) for name in ("none", "around", "role")}
    assert marked(example, by["none"]) == example.text
    assert marked(example, by["around"]) == "@ aspirin @ harms # IL-2 #"
    assert marked(example, by["role"]) == "@DRUG$ harms @GENE$"
    assert marked(nested, by["role"]) == "@GENE-GENE$"
    assert re.sub(rf"[{re.escape(''.join(MARKS))}]", "", marked(nested, by["around"])).split() == ["IL-2", "receptor"]
