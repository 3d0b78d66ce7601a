"""MORFITT (Labrak et al. 2023, https://github.com/qanastek/MORFITT): specialities of French abstracts.

Form: train.tsv, dev.tsv and test.tsv with columns identifier, abstract and specialities, the last with bars between;
cells may be quoted.
"""

from pathlib import Path

from eval.tasks.files import split_files
from eval.tasks.tables import read_table
from eval.tasks.task import Answer, Example, Examples, Task


def read(folder: Path) -> Examples:
    """The abstracts with their specialities."""
    examples = {}
    for split, path in split_files(folder, (".tsv",)).items():
        rows = read_table(path, ("identifier", "abstract", "specialities"), quotes=True)
        examples[split] = [
            Example(row["identifier"], row["abstract"].strip(), Answer(tuple(sorted(row["specialities"].split("|")))))
            for _, row in rows
        ]
    return examples


TASKS = (
    Task(
        name="morfitt",
        kind="multi_label",
        language="fr",
        folders=("MORFITT",),
        read=read,
        metrics=("micro_f1", "macro_f1", "weighted_f1"),
        protocol="french_text",
        licence="CC BY-SA 4.0",
        access="https://github.com/qanastek/MORFITT, free",
        sizes={"train": 1514, "dev": 1022, "test": 1088},
    ),
)
