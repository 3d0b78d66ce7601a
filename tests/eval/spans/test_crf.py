"""The chain of tags against every sequence of tags written out."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.spans import crf

WORDS = np.array([[0, 1, 2, 0, 3, 0, 1, 2, 0]])  # two texts of three and two words, with tokens that begin none
PLACES = np.flatnonzero(WORDS[0])


def is_allowed(tags: tuple[int, ...]) -> bool:
    """Of one text: what is begun goes on to an end, after which an entity around it may go on."""
    for before, tag in itertools.pairwise((crf.OUT, *tags, crf.OUT)):
        if before in (crf.FIRST, crf.INNER) and tag == crf.OUT:
            return False
        if before == crf.OUT and tag in (crf.INNER, crf.LAST):
            return False
    return True


def every(emission_LT: np.ndarray) -> dict[tuple[int, ...], float]:
    """The score of all allowed tags of both texts, of one label."""
    texts = (PLACES[:3], PLACES[3:])
    allowed = [[tags for tags in itertools.product(range(5), repeat=len(t)) if is_allowed(tags)] for t in texts]
    return {
        a + b: float(sum(emission_LT[place, tag] for place, tag in zip(PLACES, a + b, strict=True)))
        for a in allowed[0]
        for b in allowed[1]
    }


@pytest.fixture(scope="module")
def emission_BLNT() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, WORDS.shape[1], 2, crf.TAGS)).astype(np.float32)


def test_the_sum_the_best_and_the_surprise_are_those_of_every_sequence(emission_BLNT):
    # Broken by: an entity that goes from one text into the next; a token that begins no word counted.
    for label in range(2):
        scores = every(emission_BLNT[0, :, label])
        best = max(scores, key=lambda tags: scores[tags])
        whole = float(np.logaddexp.reduce(list(scores.values())))
        assert float(crf.total(emission_BLNT, WORDS)[0, label]) == pytest.approx(whole, rel=1e-5)
        where_LT = np.asarray(crf.likeliest(emission_BLNT, WORDS))[0, :, label]
        assert tuple(where_LT[PLACES].argmax(-1)) == best and where_LT[PLACES].sum() == len(PLACES)
        told = np.full((1, WORDS.shape[1], 2), crf.ANY)
        told[0, PLACES[:2], label] = best[:2]
        some = np.logaddexp.reduce([score for tags, score in scores.items() if tags[:2] == best[:2]])
        assert float(crf.surprise(emission_BLNT, WORDS, told)) == pytest.approx(whole - float(some), abs=1e-4)


@settings(max_examples=60)
@given(st.sets(st.tuples(st.integers(0, 4), st.integers(0, 4)).map(sorted).map(tuple), max_size=5))
def test_tags_of_entities_are_allowed_and_give_back_every_one(entities):
    # Broken by: a word that begins one and ends another told as the first of one.
    words = np.arange(1, 6)[None]
    tag_UN = crf.tags_of(np.array([(*each, 0) for each in sorted(entities)]).reshape(-1, 3), 5, 1)
    assert is_allowed(tuple(tag_UN[:, 0]))
    allowed = np.asarray(crf.spans_of_tags(jax.nn.one_hot(tag_UN, crf.TAGS)[None] > 0, jnp.asarray(words)))[0, 0]
    assert all(allowed[a, b] for a, b in entities)
    if len(entities) == 1:
        assert allowed.sum() == 1
