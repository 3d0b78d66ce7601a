"""FRACCO (arXiv:2510.13873): French oncology cases with codes of ICD-O, here those of a whole document.

Form (https://zenodo.org/records/17284817, FRACCO.zip, as code that reads it has it; never seen here): texts
ann_txt_files/NAME.txt, and DetectOnco_Final.csv with columns doc_name (NAME.ann), label, code, content and full_span;
the rows labelled expression_CIM are used, a code of more than one with semicolons between.
"""

from collections import defaultdict
from functools import partial
from pathlib import Path, PurePosixPath

from eval.tasks.codes import DOUBTS, keep_most_frequent
from eval.tasks.files import as_text, list_files, read_files
from eval.tasks.splits import largest_remainders, shuffled
from eval.tasks.tables import read_table
from eval.tasks.task import Answer, Example, Examples, Task

TABLE = "DetectOnco_Final.csv"
LABEL = "expression_CIM"


def read(folder: Path, most: int) -> Examples:
    """The documents with their codes, divided by a seed."""
    tables = [path for path in list_files(folder) if path.name == TABLE] if folder.is_dir() else []
    if len(tables) != 1:
        raise ValueError(f"{folder} holds {len(tables)} files {TABLE}: unpack FRACCO.zip there")
    codes: dict[str, set[str]] = defaultdict(set)
    for _, row in read_table(tables[0], ("doc_name", "label", "code")):
        if row["label"].strip() == LABEL:
            name = row["doc_name"].strip().removesuffix(".ann")
            codes[name] |= {code.strip() for code in row["code"].split(";") if code.strip()}
    texts = {PurePosixPath(name).stem: as_text(data, name) for name, data in read_files(folder, r"\.txt$").items()}
    if lost := sorted(set(codes) - set(texts)):
        raise ValueError(f"{folder} has codes of {lost[0]}, but no {lost[0]}.txt")
    kept = keep_most_frequent(codes, most)
    return {
        split: [Example(name, texts[name], Answer(kept[name])) for name in names]
        for split, names in shuffled(list(kept), largest_remainders(len(kept), (0.8, 0.1))).items()
    }


TASKS = tuple(
    Task(
        name=f"fracco_{most}",
        kind="multi_label",
        language="fr",
        folders=("FRACCO",),
        read=partial(read, most=most),
        metrics=("micro_f1", "macro_f1", "weighted_f1"),
        protocol="french_text",
        licence="none named",
        access="https://zenodo.org/records/17284817, FRACCO.zip, free; unpack it in a folder FRACCO",
        vocabulary="all",
        source="form: never seen, read as public code that reads it has it",
        doubts=(
            *DOUBTS,
            "its texts are those of cantemist_fr",
        ),
    )
    for most in (30, 100)
)
