"""Texts with annotations as UIMA writes them (XMI of a CAS): one text, and elements that mark characters of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

MOST_BYTES = 2**25  # of one document: a hundred times the largest of E3C


@dataclass(frozen=True)
class Mark:
    """Characters that an element marks, one beyond the last, and its attributes."""

    start: int
    end: int
    attributes: Mapping[str, str]


def read_xmi(data: bytes, name: str, kinds: Sequence[str]) -> tuple[str, dict[str, list[Mark]]]:
    """The text of a document, and its marks by kind: the names of elements, without their namespace.

    Raises ValueError for what is no such document, for one that declares entities of XML, which could unpack without a
    bound, and for marks outside the text.
    """
    if len(data) > MOST_BYTES:
        raise ValueError(f"{name} has {len(data):,} bytes: no document read here has more than {MOST_BYTES:,}")
    if b"<!DOCTYPE" in data or b"\0" in data:  # the latter: UTF-16, in which the former would hide
        raise ValueError(f"{name} declares a document type: XMI has none")
    try:
        elements = list(ElementTree.fromstring(data))
    except ElementTree.ParseError as error:
        raise ValueError(f"{name} is not XML ({error})") from None
    texts = [each.get("sofaString") for each in elements if _kind(each) == "Sofa"]
    if len(texts) != 1 or texts[0] is None:
        raise ValueError(f"{name} holds {len(texts)} texts (elements Sofa): XMI read here has one")
    text = texts[0]
    if any(ord(character) > 0xFFFF for character in text):
        raise ValueError(
            f"{name} has a character beyond 16 bits: UIMA counts it twice, so offsets are not those of text"
        )
    marks: dict[str, list[Mark]] = {kind: [] for kind in kinds}
    for each in elements:
        if (kind := _kind(each)) in marks:
            places = [each.get(place, "") for place in ("begin", "end")]
            start, end = (int(place) if place.isdecimal() else -1 for place in places)
            if not 0 <= start < end <= len(text):
                raise ValueError(f"{name} marks characters {' to '.join(places)}, but the text has {len(text)}")
            marks[kind].append(Mark(start, end, dict(each.attrib)))
    return text, marks


def _kind(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
