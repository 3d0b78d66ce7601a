"""What is nobody else's business and must not travel with a model: paths, tokens, addresses of mail."""

import re
from collections.abc import Iterator
from typing import Any

KINDS = {  # in this order: a path may lie in an address
    "token": re.compile(
        r"\b(?:hf_|api_org_|gh[opusr]_|github_pat_|glpat-|sk-|xox[abpr]-|AKIA|AIza|eyJ)[\w.-]{8,}"
        r"|(?i:\b(?:bearer|basic)\s+[\w.+/=-]{8,}|(?:token|password|passwd|secret|api[_-]?key)\s*[=:]\s*\S+)"
        r"|(?<=://)[^\s/@]+@"
    ),
    "mail address": re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"),
    "path": re.compile(
        r"\b(?!https?:)\w+://\S+"  # gs://bucket/folder
        r"|(?<![\w.~)\]/\\*+?-])(?<!http:)(?<!https:)"  # nor in a pattern of names of parameters
        r"(?:~|\.\.?|[A-Za-z]:)?[/\\]{1,2}[\w.~+-]*\w(?:[/\\][\w.~+ -]*[\w.~+-])*"
    ),
}
REMOVED = "[removed]"


def kinds_in(text: str) -> list[str]:
    """What of all this a text holds."""
    return [kind for kind, pattern in KINDS.items() if pattern.search(text)]


def without(value: Any) -> Any:
    """A JSON value, its keys included, with REMOVED in the place of all this."""
    if isinstance(value, dict):
        return {without(key): without(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without(item) for item in value]
    if isinstance(value, str):
        for pattern in KINDS.values():
            value = pattern.sub(REMOVED, value)
    return value


def places(value: Any, where: str = "") -> Iterator[str]:
    """Where a JSON value holds what: `data.0.name: path`."""
    if isinstance(value, dict):
        for key, item in value.items():
            name = f"{where}.{without(key)}".removeprefix(".")
            if kinds := kinds_in(str(key)):  # labels have numbers
                yield f"{name}: {', '.join(kinds)}"
            yield from places(item, name)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from places(item, f"{where}.{i}".removeprefix("."))
    elif isinstance(value, str) and (kinds := kinds_in(value)):
        yield f"{where}: {', '.join(kinds)}"
