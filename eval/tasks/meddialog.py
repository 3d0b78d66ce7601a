"""MedDialog-FR, women's health (Liu et al. 2024, Patient-Oriented Language Processing at LREC-COLING): questions and
answers with concepts of UMLS.

Form (as public code that reads it has it; never seen here): two tables with tabs between,
multilabel_annotation/dataset_multilabel_meddialog_22labels.csv with columns id (of a question, NAME_q), split and
labels (`['C1', 'C2']`), and post-editing/meddialog-fr-women_post-editing.csv with columns id (NAME_q, NAME_a),
machine_translation and post-edited.
"""

import re
from pathlib import Path

from eval.tasks.files import list_files, split_of
from eval.tasks.tables import read_table
from eval.tasks.task import SPLITS, Answer, Example, Examples, Hub, Task

LABELS = "dataset_multilabel_meddialog_22labels.csv"
TEXTS = "meddialog-fr-women_post-editing.csv"


def read(folder: Path) -> Examples:
    """The questions that have labels, each with its answer."""
    paths = {path.name: path for path in list_files(folder)} if folder.is_dir() else {}
    if missing := [name for name in (LABELS, TEXTS) if name not in paths]:
        raise ValueError(f"{folder} has no {missing[0]}: unpack MedDialog-FR there")
    texts = {
        row["id"]: row["post-edited"].strip() for _, row in read_table(paths[TEXTS], ("id", "post-edited"), tabs=True)
    }
    examples: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for where, row in read_table(paths[LABELS], ("id", "split", "labels"), tabs=True):
        name, split = row["id"], split_of(row["split"])
        if split is None or name not in texts:
            raise ValueError(f"{where} is of {name} in {row['split']}: it needs a text, and train, dev or test")
        answer = texts.get(f"{name.removesuffix('_q')}_a", "")
        text = f"Question: {texts[name]}" + f"\n\nRéponse: {answer}" * bool(answer)
        if labels := sorted(set(re.findall(r"""['"]([^'"]+)['"]""", row["labels"]))):
            examples[split].append(Example(name, text, Answer(tuple(labels))))
    return examples


TASKS = (
    Task(
        name="meddialog_fr",
        kind="multi_label",
        language="fr",
        folders=("MedDialog-FR", "MedDialog-FR-women"),
        read=read,
        metrics=("micro_f1", "macro_f1", "weighted_f1"),
        protocol="french_text",
        licence="none named",
        access="its authors (Liu et al. 2024, MedDialog-FR), or the Hub",
        hub=Hub("rntc/tabib-meddialog-fr", {"labels_raw": "labels"}),
        vocabulary="all",
        source="form: never seen, read as public code that reads it has it",
        doubts=("the paper says macro F1; its code scores micro F1, and its published numbers fit that",),
    ),
)
