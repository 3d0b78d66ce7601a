"""Brat's standoff form (https://brat.nlplab.org/standoff.html): a .txt file and a .ann file beside it, which names
stretches of the text by characters, more than one where a mention is discontinuous, and notes on them."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from eval.tasks.files import as_text
from eval.tasks.task import Span, span

FILES = r"\.(txt|ann)$"
PLACE = re.compile(r"(\S+) (\d+ \d+(?:;\d+ \d+)*)")
OTHERS = "EARM*"  # events, attributes, relations, equivalences: what is said of mentions beyond their place


@dataclass(frozen=True)
class Mention:
    """A stretch of a text that somebody marked, and what is noted of it, such as codes."""

    span: Span
    notes: tuple[tuple[str, str], ...] = ()  # of what kind, and what


@dataclass(frozen=True)
class Document:
    """A text by its file's name, without .txt and the folders that all have in common, and the mentions in it, in the
    order of the file."""

    name: str
    text: str
    mentions: tuple[Mention, ...]

    @property
    def spans(self) -> list[Span]:
        """Where its mentions are."""
        return [mention.span for mention in self.mentions]


def read_brat(files: Mapping[str, bytes], alike: Callable[[str], str] = str) -> list[Document]:
    """The documents of files by name. `alike` gives what is compared of a mention's words in the text and in the .ann
    file, where those who made them changed one of the two.

    Raises ValueError with the file and the line where a mention is not what the text has there.
    """
    stems = {name.removesuffix(".txt"): name for name in files if name.endswith(".txt")}
    marked = {name.removesuffix(".ann"): name for name in files if name.endswith(".ann")}
    if alone := sorted(set(stems) ^ set(marked)):
        stem = alone[0]
        there, missing = (".txt", ".ann") if stem in stems else (".ann", ".txt")
        raise ValueError(f"{stem}{there} has no {stem}{missing} beside it: a document is both")
    common = os.path.commonpath([os.path.dirname(stem) for stem in stems]) if stems else ""
    return [
        _document(stem, os.path.relpath(stem, common or "."), as_text(files[name], name), files[marked[stem]], alike)
        for stem, name in stems.items()
    ]


def _document(stem: str, name: str, text: str, annotations: bytes, alike: Callable[[str], str]) -> Document:
    mentions: dict[str, Mention] = {}
    notes: list[tuple[str, str, str]] = []
    for number, line in enumerate(as_text(annotations, f"{stem}.ann").split("\n"), start=1):
        where = f"{stem}.ann:{number}"
        mark, *cells = line.removesuffix("\r").split("\t")
        if not mark or mark[0] in OTHERS:
            continue
        if len(cells) < 1 or mark[0] not in "T#N":
            raise ValueError(f"{where} is {line[:40]!r}: no line of brat's")
        if mark[0] == "T":
            mentions[mark] = Mention(_placed(text, cells, where, alike))
        else:  # "#1 TYPE T1<tab>note", "N1 Reference T1 KIND:CODE<tab>words"
            words = cells[0].split(" ")
            said = words[2:3] if mark[0] == "N" else cells[1:2]
            notes += [(words[1], words[0], each) for each in said] if len(words) > 1 else []
    for of, kind, note in notes:
        if of in mentions:  # a note may be on a relation too
            mentions[of] = replace(mentions[of], notes=(*mentions[of].notes, (kind, note)))
    return Document(name, text, tuple(mentions.values()))


def _placed(text: str, cells: list[str], where: str, alike: Callable[[str], str]) -> Span:
    place = PLACE.fullmatch(cells[0])
    if place is None or len(cells) != 2:
        raise ValueError(f"{where} is no mention: a label, its first character and one beyond its last, and its words")
    ranges = [tuple(map(int, each.split(" "))) for each in place[2].split(";")]
    for start, end in ranges:
        if not start < end <= len(text):
            raise ValueError(f"{where} marks characters {start} to {end}, but the text has {len(text)}")
    there = _plain(" ".join(text[start:end] for start, end in ranges))
    said = _plain(cells[1])
    if alike(said) != alike(there):
        raise ValueError(f"{where} says {said[:60]!r}, but the text has {there[:60]!r} there: one of them was changed")
    return span(((start, end) for start, end in ranges), place[1])


def _plain(words: str) -> str:
    """Words with a space for each line end or tab, as brat writes them."""
    return re.sub(r"\s", " ", words)
