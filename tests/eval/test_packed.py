"""Texts into rows: whole, none lost, in few shapes that do not waste much."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.packed import MOST_SHAPES, best_fit, by_row_length, few_shapes, row_lengths, rows_needed

lengths_of_texts = st.lists(st.integers(1, 300), min_size=1, max_size=40)


@given(lengths_of_texts)
def test_rows_hold_their_texts(length_T):
    # Broken by: the room of a row not given back smaller.
    row_T = best_fit(length_T, 300)
    used_B = np.bincount(row_T, weights=length_T)
    assert used_B.max() <= 300 and used_B.min() > 0
    assert (np.sort(used_B)[:2].sum() > 300) or len(used_B) == 1  # no two rows could be one


@given(lengths_of_texts, st.integers(300, 400))
def test_every_text_has_a_row_that_is_long_enough(length_T, most):
    lengths = row_lengths(length_T, most)
    groups = by_row_length(length_T, lengths)
    assert sorted(text for group in groups for text in group) == list(range(len(length_T)))
    assert all(length_T[text] <= length for group, length in zip(groups, lengths, strict=True) for text in group)
    assert max(length_T) <= lengths[-1] <= max(most, max(length_T)) and list(lengths) == sorted(set(lengths))


def test_sentences_lie_in_short_rows_and_documents_in_long_ones():
    # Broken by: TEXTS_A_ROW = 30.
    rng = np.random.default_rng(0)
    sentences = [*rng.integers(10, 60, 1000).tolist(), 200, 484]
    assert row_lengths(sentences, 512) == (128, 256, 480 + 32)
    assert row_lengths(rng.integers(1000, 2100, 100).tolist() + [2100], 4096) == (2112,)
    assert row_lengths([20], 24) == (24,)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2)), min_size=1, max_size=60))
def test_a_step_fits_its_shape(needed):
    chosen = few_shapes(needed, (128, 512))
    assert all(
        rows >= need for given, of in zip(chosen, needed, strict=True) for rows, need in zip(given, of, strict=True)
    )
    assert len(set(chosen)) <= MOST_SHAPES


def test_the_few_long_texts_do_not_lengthen_every_step():
    # Broken by: few_shapes that returns the one with room for all.
    rng = np.random.default_rng(0)
    length_T = [*rng.integers(10, 60, 20000).tolist(), *[400] * 100]
    rng.shuffle(length_T)
    lengths = row_lengths(length_T, 512)
    needed = [rows_needed(length_T[first : first + 16], lengths) for first in range(0, len(length_T), 16)]
    padded = sum(n * length for rows in few_shapes(needed, lengths) for n, length in zip(rows, lengths, strict=True))
    assert sum(length_T) / padded > 0.8
    assert len(set(few_shapes(needed, lengths))) == pytest.approx(3, abs=1)
