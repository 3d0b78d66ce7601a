"""Masks, drawn and against first principles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cptjax import masks
from cptjax.masks import MaskMode, MaskSpec, dense_mask, picture, positions
from tests.conftest import packed

TWO_DOCUMENTS = packed(3, 2, total=6)[None]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (MaskSpec(MaskMode.BIDIRECTIONAL), "xxx... xxx... xxx... ...xx. ...xx. .....x"),
        (MaskSpec(MaskMode.BIDIRECTIONAL, 1), "xx.... xxx... .xx... ...xx. ...xx. .....x"),
        (MaskSpec(MaskMode.CAUSAL), "x..... xx.... xxx... ...x.. ...xx. .....x"),
        (MaskSpec(MaskMode.CAUSAL, 1), "x..... xx.... .xx... ...x.. ...xx. .....x"),
    ],
)
def test_picture_of_two_documents_and_padding(spec, expected):
    assert picture(dense_mask(spec, TWO_DOCUMENTS)[0]) == expected.replace(" ", "\n")


def test_the_drawing_in_the_docstring_is_what_is_read():
    # Broken by: one x of the drawing made a dot.
    specs = [MaskSpec(mode, window) for mode in (MaskMode.BIDIRECTIONAL, MaskMode.CAUSAL) for window in (None, 2)]
    drawn = [picture(dense_mask(spec, packed(5, 3, total=8)[None])[0]).split("\n") for spec in specs]
    lines = ["    " + "    ".join(line) for line in zip(*drawn, strict=True)]
    assert "\n".join(lines) in (masks.__doc__ or "")


def test_positions_restart_in_each_document():
    assert positions(TWO_DOCUMENTS)[0].tolist() == [0, 1, 2, 0, 1, 0]


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 7), max_size=5),
    padding=st.integers(0, 4),
    mode=st.sampled_from(list(MaskMode)),
    window=st.none() | st.integers(1, 5),
)
def test_interval_equals_the_definition(lengths, padding, mode, window):
    segment_L = packed(*lengths, total=sum(lengths) + padding + 1)
    index = np.arange(len(segment_L))
    offset_LM = index[:, None] - index
    expected_LM = segment_L[:, None] == segment_L
    if mode == MaskMode.CAUSAL:
        expected_LM &= offset_LM >= 0
    if window is not None:
        expected_LM &= abs(offset_LM) <= window
    assert np.array_equal(dense_mask(MaskSpec(mode, window), segment_L[None])[0], expected_LM)


def test_window_below_one_is_refused():
    with pytest.raises(ValueError, match="window 0 must be at least 1"):
        MaskSpec(MaskMode.CAUSAL, 0)


def test_a_mode_that_is_none_is_named_with_the_choices():
    # Broken by: no _missing_; no __post_init__ of the mode (a mask that is neither, without a word).
    assert MaskSpec("causal") == MaskSpec(MaskMode.CAUSAL)
    for wrong in (lambda: MaskMode("casual"), lambda: MaskSpec("casual")):
        with pytest.raises(ValueError, match="mask_mode is 'casual': it is one of causal, bidirectional"):
            wrong()
