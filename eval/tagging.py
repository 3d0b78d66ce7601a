"""Entities on words, both ways: tags for a token head, first and last words for the span scorer. What comes back has
the characters of its words, and no others.

U words of an example.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from eval.tasks.pieces import flat
from eval.tasks.task import Span

OUTSIDE = 0  # then, for each label, the tag that begins an entity and the one that goes on with it


def num_tags(labels: Sequence[str]) -> int:
    """Tags of a token head."""
    return 1 + 2 * len(labels)


def tag_names(labels: Sequence[str]) -> list[str]:
    """What each tag is called, as everywhere: O, B-label, I-label."""
    return ["O", *(f"{place}-{label}" for label in labels for place in "BI")]


def words_under(span: Span, bound_U2: np.ndarray) -> tuple[int, int]:
    """The words that hold a character of the span's hull: first, one past the last; equal where there is none."""
    first = int(np.searchsorted(bound_U2[:, 1], span.start, side="right"))
    return first, max(first, int(np.searchsorted(bound_U2[:, 0], span.end, side="left")))


def tags_of(spans: Iterable[Span], bound_U2: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """The tag of each word, [U] int32, of what `flat` leaves of the spans. A word that has characters of two belongs to
    the first."""
    tag_U = np.full(len(bound_U2), OUTSIDE, np.int32)
    free = 0
    for span in flat(spans):
        first, last = words_under(span, bound_U2)
        first = max(first, free)
        if first < last:
            tag_U[first:last] = 2 + 2 * labels.index(span.label)
            tag_U[first] -= 1
            free = last
    return tag_U


def spans_of(tag_U: np.ndarray, bound_U2: np.ndarray, labels: Sequence[str]) -> tuple[Span, ...]:
    """The entities of tagged words, as seqeval reads them by default: one begins at a B, and at an I of another label
    than the tag before it."""
    spans, current, begun = [], -1, 0  # number of the label of the entity at hand, -1 for none, and its first word
    for word, tag in enumerate([*tag_U.tolist(), OUTSIDE]):
        label, inside = (-1, 0) if tag == OUTSIDE else divmod(int(tag) - 1, 2)
        if current >= 0 and (label != current or not inside):
            spans.append(_span(bound_U2, begun, word - 1, labels[current]))
            current = -1
        if current < 0 <= label:
            current, begun = label, word
    return tuple(sorted(spans))


def _span(bound_U2: np.ndarray, first: int, last: int, label: str) -> Span:
    return Span(((int(bound_U2[first, 0]), int(bound_U2[last, 1])),), label)


def candidates_of(spans: Iterable[Span], bound_U2: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """First word, last word and number of the label of each entity of one piece, [S, 3] int32; S spans."""
    candidates = []
    for span in spans:
        first, last = words_under(span, bound_U2)
        if first < last and len(span.ranges) == 1:
            candidates.append((first, last - 1, labels.index(span.label)))
    return np.array(sorted(set(candidates)), np.int32).reshape(-1, 3)


def spans_of_candidates(candidate_S3: np.ndarray, bound_U2: np.ndarray, labels: Sequence[str]) -> tuple[Span, ...]:
    """The entities of first and last words and labels."""
    spans = (_span(bound_U2, first, last, labels[int(label)]) for first, last, label in candidate_S3.tolist())
    return tuple(sorted(spans))
