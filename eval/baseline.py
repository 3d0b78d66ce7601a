"""What needs no model: the labels that training texts have most, and a lexicon of their entities. A model that is not
above this has learned nothing from the texts."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from eval.tasks.task import Answer, Example, Kind, Span

NAME = "baseline"  # as a model, on the command line and in rows
WORD = re.compile(r"\w+|[^\w\s]")
LONGEST = 12  # words of an entity that a lexicon holds


def answers(kind: Kind, train: Sequence[Example], examples: Sequence[Example]) -> list[Answer]:
    """What the baseline of this kind says of each example, after the training texts alone."""
    if kind in ("entities", "nested_entities"):
        lexicon = read_lexicon(train)
        return [
            Answer(spans=tuple(sorted(_entities(lexicon, example.text, kind == "nested_entities"))))
            for example in examples
        ]
    if kind == "multi_label":
        counts = Counter(label for example in train for label in example.gold.labels)
        usual = [label for label, times in counts.items() if 2 * times > len(train)]
        usual = usual or ([_first(counts)] if counts else [])
        return [Answer(labels=tuple(sorted(usual)))] * len(examples)
    return [Answer(labels=_first(Counter(example.gold.labels for example in train)))] * len(examples)


def _first(counts: Counter) -> Any:
    """What was counted most; of equals, the first in order."""
    return min(counts, key=lambda item: (-counts[item], item))


def read_lexicon(train: Sequence[Example]) -> dict[str, str]:
    """The words of an entity, in lower case with a space between, to its most frequent label: of those that are an
    entity in at least half of the places where they stand."""
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for example in train:
        for span in example.gold.spans:
            if len(span.ranges) == 1 and (words := _words(example.text[span.start : span.end])):
                labels[words][span.label] += 1
    stands = Counter(words for example in train for words, _ in _stretches(example.text) if words in labels)
    return {words: _first(counts) for words, counts in labels.items() if 2 * counts.total() >= stands[words]}


def _words(text: str) -> str:
    return " ".join(WORD.findall(text.lower()))


def _stretches(text: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """All stretches of up to LONGEST words, those of an earlier beginning and then the longer ones first."""
    words = [(match[0].lower(), *match.span()) for match in WORD.finditer(text)]
    for first in range(len(words)):
        for last in reversed(range(first, min(first + LONGEST, len(words)))):
            yield " ".join(word for word, *_ in words[first : last + 1]), (words[first][1], words[last][2])


def _entities(lexicon: dict[str, str], text: str, nested: bool) -> Iterator[Span]:
    """All that the lexicon knows of a text; where none is nested, without those that overlap one before."""
    end = 0
    for words, (first, last) in _stretches(text):
        if words in lexicon and (nested or first >= end):
            end = last
            yield Span(((first, last),), lexicon[words])
