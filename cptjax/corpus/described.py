"""What its author says of a source, for the card of a model: what it is, its licence, its id on the Hub."""

import dataclasses
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cptjax.command.escape import printable, say
from cptjax.corpus.pieces import File
from cptjax.data.store import HUB_ID, Described
from cptjax.machine import hub
from cptjax.machine.licences import licence


@dataclass(frozen=True)
class Description:
    """What is said of sources: TEXT of the only one, or SOURCE=TEXT of each of several."""

    describe: Sequence[str] = ()  # what a source is, for a model's card: TEXT or SOURCE=TEXT
    license_of: Sequence[str] = ()  # its licence, such as cc-by-4.0: ID or SOURCE=ID
    dataset_of: Sequence[str] = ()  # its id on the Hub, where its files came from there: ID or SOURCE=ID


def describe(sources: Sequence[Path | str], said: Description) -> list[Described]:
    """What is said of each source. ValueError for what is of none of them, is said twice, or cannot be."""
    names = [_name(source) for source in sources]
    told: list[dict[str, Any]] = [{} for _ in names]
    options: dict[str, tuple[str, Callable[[str], str]]] = {
        "describe": ("description", _line),
        "license_of": ("licence", licence),
        "dataset_of": ("hub_id", _hub_id),
    }
    for name, (fact, read) in options.items():
        option = f"--{name.replace('_', '-')}"
        for text in getattr(said, name):
            number, value = _whose(option, text, [*map(str, sources)], names)
            if fact in told[number]:
                raise ValueError(f"{option} is given twice for {names[number]}: give it once")
            try:
                told[number][fact] = read(value.strip())
            except ValueError as error:
                raise ValueError(f"{option} of {names[number]}: {error}") from error
    return [Described(name, **facts) for name, facts in zip(names, told, strict=True)]


def _name(source: Path | str) -> str:
    """What a store calls a source: no path of here."""
    return str(source) if str(source).startswith(("hf:", "tfds:")) else Path(source).resolve().name


def _whose(option: str, text: str, sources: Sequence[str], names: Sequence[str]) -> tuple[int, str]:
    """The number of the source that a text is of, and what it says."""
    ways = [(way, number) for named in (sources, names) for number, way in enumerate(named)]
    ways = [(way, number) for way, number in ways if text.startswith(f"{way}=")]
    longest = max((way for way, _ in ways), key=len, default="")
    match sorted({number for way, number in ways if way == longest}):
        case [number]:
            return number, text.removeprefix(f"{longest}=")
        case [] if len(sources) == 1 and not re.match(r"\S+=", text):
            return 0, text
        case []:
            raise ValueError(
                f"{option} {text!r} is of no source: write SOURCE=..., of {', '.join(dict.fromkeys(names))}"
            )
    raise ValueError(f"{option} {text!r}: several sources are called {longest}, write one as in --source")


def _line(text: str) -> str:
    if not text or printable(text) != text:
        raise ValueError(f"{text!r} must be plain text on one line")
    return text


def _hub_id(text: str) -> str:
    if not re.match(HUB_ID, text):
        raise ValueError(f"{text!r} is no id of the Hugging Face Hub, such as OWNER/NAME")
    return text


def known_to_hub(said: Described, file: File) -> Described:
    """What is said of a source, and of a data set of the Hub also its id and the licence that its card names.

    `file` is the source's first. Where no licence can be had, a line on stderr says so.
    """
    if file.format != "hf" or Path(file.path).exists():
        return said
    said = dataclasses.replace(said, hub_id=said.hub_id or "/".join(file.path.split("/")[:2]))
    if said.licence is None:
        said = dataclasses.replace(said, licence=hub.licence_of(str(said.hub_id)))
    if said.licence is None:
        say(f"{said.name}: its card gives no licence here; --license-of says it", stream=sys.stderr)
    return said
