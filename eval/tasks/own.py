"""A user's own task: a folder with train, dev and test, whose kind follows from what is in them.

A split is a file: .tsv, .conll, .bio or .iob with a token and its tag a line; .jsonl or .csv with `text` and `label`,
`labels` (in a .csv with bars between) or `spans`, or with `tokens` and their `tags`. Without dev, a tenth of train is
drawn by a seed.
"""

import re
from pathlib import Path

from eval.tasks.bio import read_bio
from eval.tasks.files import read_file, split_files, unpacked_name
from eval.tasks.records import Form, kind_of, read_records
from eval.tasks.splits import SEED, cut_dev
from eval.tasks.tables import read_table
from eval.tasks.task import Example, Kind, Task, said_labels

TAGGED = (".tsv", ".conll", ".bio", ".iob")
TABLES = (".jsonl", ".csv")
METRICS: dict[Kind, tuple[str, ...]] = {
    "single_label": ("macro_f1", "accuracy", "weighted_f1"),
    "multi_label": ("micro_f1", "macro_f1", "weighted_f1"),
    "entities": ("entity_f1", "span_f1_partial"),
    "nested_entities": ("entity_f1", "span_f1_exact", "span_f1_partial"),
}
NAME = re.compile(r"\w[\w.-]*")  # it becomes part of names of files


def own_task(name: str, folder: Path, language: str = "en", seed: int = SEED) -> Task:
    """The task of a folder, read. Raises ValueError or OSError, one line, for what it cannot be."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a task: letters, digits, dots, - and _")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: put train, dev and test there")
    files = split_files(folder, (*TABLES, *TAGGED), needed=("train", "test"))
    read = {split: _read(path, split) for split, path in files.items()}
    forms: set[Form] = {form for form, examples in read.values() if examples}
    if len(forms) > 1:
        raise ValueError(f"{folder} has files of {' and of '.join(sorted(forms))}: a task is of one kind")
    examples = {split: each for split, (_, each) in read.items()}
    if len({each.second is None for split in examples.values() for each in split}) > 1:
        raise ValueError(f"{folder} has texts with a second one and texts without: a task is of one kind")
    form: Form = forms.pop() if forms else "label"
    kind = kind_of(form, [each for split in examples.values() for each in split])
    # Before dev is drawn: it may take the only text of a label.
    labels = tuple(sorted(set(said_labels(kind, examples["train"]))))
    if "dev" not in examples:
        if len(examples["train"]) < 2:
            raise ValueError(f"{folder} has {len(examples['train'])} examples in train: too few to draw dev from")
        examples["train"], examples["dev"] = cut_dev(examples["train"], seed=seed)
    return Task(
        name=name,
        kind=kind,
        language=language,
        folders=(),
        read=lambda _: examples,
        metrics=METRICS[kind],
        protocol="french" if language == "fr" else "english",
        licence="its owner's",
        access=str(folder),
        labels=labels,
    )


def _read(path: Path, split: str) -> tuple[Form, list[Example]]:
    if unpacked_name(path.name).lower().endswith(TAGGED):
        return "tags", read_bio(read_file(path), split, str(path), strict=True)
    columns = ("text",) if unpacked_name(path.name).lower().endswith(".csv") else ()  # else a row may have tokens
    form, examples = read_records(read_table(path, columns), split, strict=True)
    return form or "label", examples
