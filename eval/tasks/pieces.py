"""Documents cut into examples, at their lines or sentences, and spans made flat: what a tag a token can say."""

from collections.abc import Iterable, Iterator, Sequence

from eval.tasks.task import Answer, Example, Span


def lines(text: str) -> Iterator[tuple[int, int]]:
    """First character and one beyond the last of each line."""
    at = 0
    for line in text.split("\n"):
        yield at, at + len(line)
        at += len(line) + 1


def cut(name: str, text: str, spans: Sequence[Span], bounds: Iterable[tuple[int, int]]) -> list[Example]:
    """An example for each stretch of a text that holds more than white space, without that around it, and with the
    spans in it. Raises ValueError where one lies across two, or outside of all."""
    examples, left = [], set(spans)
    for start, end in bounds:
        start += len(text[start:end]) - len(text[start:end].lstrip())
        end = start + len(text[start:end].rstrip())
        inside = [each for each in left if start <= each.start and each.end <= end]
        left -= set(inside)
        if start < end:
            answer = Answer(spans=tuple(sorted(_moved(each, -start) for each in inside)))
            examples.append(Example(f"{name}:{len(examples) + 1}", text[start:end], answer))
    if left:
        first = min(left)
        words = text[first.start : first.end]
        raise ValueError(f"{name} has {words[:60]!r} at {first.start} to {first.end}, which is in no one piece of it")
    return examples


def _moved(span: Span, by: int) -> Span:
    return Span(tuple((start + by, end + by) for start, end in span.ranges), span.label)


def flat(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Those of spans that a tag a token can say, sorted: without the discontinuous, and of those that overlap the
    longest, then the first in the order given."""
    kept: list[Span] = []
    for each in sorted((each for each in spans if len(each.ranges) == 1), key=lambda each: each.start - each.end):
        if all(each.end <= other.start or other.end <= each.start for other in kept):
            kept.append(each)
    return tuple(sorted(kept))
