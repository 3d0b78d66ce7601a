"""Entities on words, both ways: tags for a token head, first and last words for the span scorer. What comes back has
the characters of its words, and no others.

U words of an example.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from eval.tasks.pieces import flat
from eval.tasks.task import Span

MOST_WAYS = 16  # from an entity's first word to its last that are told
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
            spans.append(_span(bound_U2, range(begun, word), labels[current]))
            current = -1
        if current < 0 <= label:
            current, begun = label, word
    return tuple(sorted(spans))


def _span(bound_U2: np.ndarray, words: Sequence[int], label: str) -> Span:
    """From these words, in order; those that follow each other in the text are one range."""
    begins = [place for place, word in enumerate(words) if place == 0 or word != words[place - 1] + 1]
    ends = [*(place - 1 for place in begins[1:]), len(words) - 1]
    return Span(
        tuple((int(bound_U2[words[a], 0]), int(bound_U2[words[b], 1])) for a, b in zip(begins, ends, strict=True)),
        label,
    )


def candidates_of(spans: Iterable[Span], bound_U2: np.ndarray, labels: Sequence[str], gaps: bool = False) -> np.ndarray:
    """First word, last word and number of the label of each entity of one piece, [S, 3] int32; S spans. With `gaps`
    those of several ranges too, and after the labels' numbers as many that say that a word is followed by another in
    an entity of each label. Without, those of several ranges are left out."""
    candidates = set()
    for span in spans:
        under = (words_under(Span((each,), span.label), bound_U2) for each in span.ranges)
        words = sorted({word for first, end in under for word in range(first, end)})
        if words and (gaps or len(span.ranges) == 1):
            label = labels.index(span.label)
            candidates.add((words[0], words[-1], label))
            candidates |= {(word, after, len(labels) + label) for word, after in pairwise(words) if gaps}
    return np.array(sorted(candidates), np.int32).reshape(-1, 3)


def spans_of_candidates(candidate_S3: np.ndarray, bound_U2: np.ndarray, labels: Sequence[str]) -> tuple[Span, ...]:
    """The entities of first and last words and labels: every way from the one to the other by words that follow each
    other in an entity of the label, or all words between where there is none."""
    after: list[dict[int, list[int]]] = [{} for _ in labels]
    for word, following, label in candidate_S3.tolist():
        if label >= len(labels):
            after[label - len(labels)].setdefault(word, []).append(following)
    spans = {
        _span(bound_U2, words, labels[int(label)])
        for first, last, label in candidate_S3.tolist()
        if label < len(labels)
        for words in _ways(first, last, after[label]) or [range(first, last + 1)]
    }
    return tuple(sorted(spans))


def _ways(first: int, last: int, after: Mapping[int, Sequence[int]]) -> list[tuple[int, ...]]:
    """Ways from one word to another, at most MOST_WAYS."""
    arrive = {last}
    for word in range(last - 1, first - 1, -1):
        if arrive.intersection(after.get(word, ())):
            arrive.add(word)
    ways: list[tuple[int, ...]] = []
    begun = [(first,)] if first in arrive else []
    while begun and len(ways) < MOST_WAYS:
        way = begun.pop()
        if way[-1] == last:
            ways.append(way)
        else:
            begun += [(*way, word) for word in after[way[-1]] if word in arrive]
    return ways
