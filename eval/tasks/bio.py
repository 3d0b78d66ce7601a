"""Entities as a token and its tag a line (CoNLL, BIO/IOB2; BIOES and BILOU too). The text is the tokens, joined by a
space, and offsets are found in it."""

from collections.abc import Iterator

from eval.tasks.files import as_text
from eval.tasks.task import Answer, Example, Span

DOCUMENT = "-DOCSTART-"  # stands in for a token where a document begins
INSIDE = {"I": "I", "E": "I", "L": "I"}
BEGIN = {"B": "B", "S": "B", "U": "B"}
UNNAMED = "entity"  # the label of tags without one

Tagged = list[tuple[str, str]]


def read_bio(data: bytes, split: str, name: str, strict: bool = False) -> list[Example]:
    """The sentences of a file, as examples.

    A tag that goes on with an entity that has not begun begins one, as conlleval and seqeval read it; `strict` refuses
    it. Raises ValueError with the line for what is no token and tag.
    """
    sentences = _sentences(as_text(data, name).removeprefix("\ufeff"), name)
    return [
        tagged_example(f"{split}:{number}", tagged, where, strict)
        for number, (tagged, where) in enumerate(sentences, start=1)
    ]


def tagged_example(name: str, tagged: Tagged, where: str, strict: bool = False) -> Example:
    """A sentence of tokens with their tags, as an example. Raises ValueError as `read_bio` does."""
    tagged = [(token.strip(), _tag(tag.strip(), where)) for token, tag in tagged]
    if strict:
        _check(tagged, where)
    return Example(name, " ".join(token for token, _ in tagged), Answer(spans=(*_spans(tagged),)))


def _sentences(text: str, name: str) -> Iterator[tuple[Tagged, str]]:
    tagged: Tagged = []
    first = 1
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        cells = line.split("\t") if "\t" in line else line.split()
        if "\r" in line.rstrip("\r"):
            raise ValueError(f"{name}:{number} has a carriage return within: end lines with a line feed")
        if not line.strip():
            if tagged:
                yield tagged, f"{name}:{first}"
            tagged = []
        elif cells[0].split(" ")[0] == DOCUMENT:
            continue
        elif len(cells) < 2 or not cells[0].strip():
            raise ValueError(f"{name}:{number} is no token and its tag, with a tab or a space between")
        else:
            first = first if tagged else number
            tagged.append((cells[0], cells[-1]))


def _tag(tag: str, where: str) -> str:
    prefix, _, label = tag.partition("-")
    place = (BEGIN | INSIDE).get(prefix)
    if tag == "O":
        return tag
    if place is None or (not label and tag != prefix):
        raise ValueError(f"{where} has the tag {tag!r}: it is O, or B- or I- and a label")
    return f"{place}-{label or UNNAMED}"


def _check(tagged: Tagged, where: str) -> None:
    before = "O"
    for token, tag in tagged:
        if tag.startswith("I-") and before[2:] != tag[2:]:
            raise ValueError(f"{where} has {tag} at {token!r} in a sentence where no B-{tag[2:]} began: correct it")
        before = tag


def _spans(tagged: Tagged) -> Iterator[Span]:
    at, start, label = 0, 0, ""
    for token, tag in [*tagged, ("", "O")]:
        if label and tag != f"I-{label}":
            yield Span(((start, at - 1),), label)
            label = ""
        if tag != "O" and not label:
            start, label = at, tag[2:]
        at += len(token) + 1
