"""DiaMED (DrBenchmark, arXiv:2402.13432): French clinical cases and the chapter of ICD-10 that each is of.

Form (as public code that reads it has it; never seen here): train.json, validation.json and test.json, arrays of
objects with clinical_case and icd-10, the name of a chapter; cases without either are left out.
"""

from pathlib import Path

from eval.tasks.files import split_files
from eval.tasks.tables import read_table
from eval.tasks.task import Answer, Example, Examples, Task


def read(folder: Path) -> Examples:
    """The cases that have a text and a chapter."""
    examples = {}
    for split, path in split_files(folder, (".json", ".jsonl")).items():
        rows = [row for _, row in read_table(path, ())]
        examples[split] = [
            Example(f"{split}:{number}", row["clinical_case"].strip(), Answer((row["icd-10"].strip(),)))
            for number, row in enumerate(rows, start=1)
            if isinstance(row.get("icd-10"), str) and (row.get("clinical_case") or "").strip() and row["icd-10"].strip()
        ]
    return examples


TASKS = (
    Task(
        name="diamed",
        kind="single_label",
        language="fr",
        folders=("DiaMED", "diamed"),
        read=read,
        metrics=("weighted_f1", "macro_f1", "accuracy"),
        protocol="french_single",
        licence="Apache-2.0 (of its loader)",
        access="https://huggingface.co/datasets/DrBenchmark/DiaMED, whose loader is a script: save its splits as JSON",
        vocabulary="all",
        sizes={"train": 509, "dev": 76, "test": 154},
        source="sizes: DrBenchmark; form: never seen, read as public code that reads it has it",
        doubts=("the paper says macro F1, its code and DrBenchmark's score weighted F1",),
    ),
)
