"""Data sets of the Hugging Face Hub that need no script, read by their id through `datasets`."""

from collections.abc import Iterator, Mapping
from typing import Any

from cptjax.command.errors import reason
from eval.tasks.files import SPLIT_NAMES
from eval.tasks.records import FORMS, read_records
from eval.tasks.task import SPLITS, Example, Hub


def read_hub(hub: Hub) -> dict[str, list[Example]]:
    """The examples of a data set, which is fetched where it is not here yet. No code of it is run.

    Raises ValueError, one line, for one that cannot be had, that needs a script, or whose rows are no examples.
    """
    import datasets

    try:
        splits = datasets.load_dataset(hub.id)
    except Exception as error:  # of the network, the Hub, its files and what they hold
        raise ValueError(f"the data set {hub.id} cannot be read from the Hub ({reason(error)})") from None
    examples = {}
    for split in SPLITS:
        for name in SPLIT_NAMES[split]:
            if name in splits:
                examples[split] = read_records(_rows(splits[name], hub, f"{hub.id} {name}"), split)[1]
    return examples


def _rows(rows: Any, hub: Hub, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    given = {*hub.columns.values()}
    kept = [name for name in rows.column_names if name in hub.columns or not (given & {*FORMS} and name in FORMS)]
    named = {name: _names_of(rows.features[name]) for name in kept}
    for number, row in enumerate(rows, start=1):
        yield f"{where}:{number}", {hub.columns.get(name, name): named[name](row[name]) for name in kept}


def _names_of(feature: Any) -> Any:
    """What turns a value into names, where classes are kept as numbers."""
    inner = getattr(feature, "feature", feature)
    if not hasattr(inner, "int2str"):
        return lambda value: value
    return lambda value: inner.int2str(value) if isinstance(value, int | list) else value
