"""run.json as it is released: what a run writes, each field checked, and nothing else."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cptjax.files import read_json, typed
from cptjax.run.record import record_of

Names = tuple[str, ...]  # of a field, outermost first


def read_recorded(path: Path) -> tuple[dict[str, Any], list[Names]]:
    """run.json with every field of a `Record` and no other; and the names of those others.

    Raises as `read_json`, and ValueError naming a field that is missing or wrong.
    """
    written = read_json(path)
    try:
        kind = record_of(written)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    known = asdict(typed(kind, written, str(path), unknown="ignore"))
    for names in _beyond(known, written):  # a default is no fact of this run
        raise ValueError(f"{path}: {'.'.join(names)}: Field required")
    return _within(written, known), list(_beyond(written, known))


def _beyond(value: Any, other: Any, outer: Names = ()) -> Iterator[Names]:
    """What a JSON value names and another of its form does not."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name in other:
                yield from _beyond(item, other[name], (*outer, name))
            else:
                yield (*outer, name)
    elif isinstance(value, list | tuple):
        for i, (item, its) in enumerate(zip(value, other, strict=True)):
            yield from _beyond(item, its, (*outer, str(i)))


def _within(value: Any, known: Any) -> Any:
    """A JSON value without the names that `known`, of its form, has not."""
    if isinstance(value, dict):
        return {name: _within(item, known[name]) for name, item in value.items() if name in known}
    if isinstance(value, list):
        return [_within(item, its) for item, its in zip(value, known, strict=True)]
    return value
