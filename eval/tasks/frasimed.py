"""FRASIMED (Zaghir et al. 2023, arXiv:2309.10770): CANTEMIST and DisTEMIST in French, here the codes of a document.

Form (https://zenodo.org/records/8355629, as code that reads it has it; never seen here): brat files in the folders
CANTEMIST-FRASIMED and DISTEMIST-FRASIMED, codes as notes `#1 ICD-O-3.1 T9<tab>8500/3` and `#2 SNOMED T9<tab>58477004`.
"""

from functools import partial
from pathlib import Path

from eval.tasks.brat import FILES, read_brat
from eval.tasks.codes import DOUBTS, keep_most_frequent
from eval.tasks.files import read_files
from eval.tasks.splits import rounded_down, shuffled
from eval.tasks.task import Answer, Example, Examples, Hub, Task

MOST = 100  # codes


def read(folder: Path, part: str, scheme: str) -> Examples:
    """The documents with their codes of a scheme, divided by a seed."""
    # Codes are of a document: where mentions were projected to need not be where their words stand.
    documents = {each.name: each for each in read_brat(read_files(folder, rf"(^|/){part}/[^/]*{FILES}"), lambda _: "")}
    noted = {name: [note for each in document.mentions for note in each.notes] for name, document in documents.items()}
    codes = {name: {code.strip() for kind, code in notes if kind == scheme} for name, notes in noted.items()}
    kept = keep_most_frequent(codes, MOST)
    return {
        split: [Example(name, documents[name].text, Answer(kept[name])) for name in names]
        for split, names in shuffled(list(kept), rounded_down(len(kept), (0.8, 0.1))).items()
    }


def _task(name: str, part: str, scheme: str, hub: str, *doubts: str) -> Task:
    return Task(
        name=name,
        kind="multi_label",
        language="fr",
        folders=("FRASIMED",),
        read=partial(read, part=part, scheme=scheme),
        metrics=("micro_f1", "macro_f1", "weighted_f1"),
        protocol="french_text",
        licence="none named",
        access="https://zenodo.org/records/8355629, free; unpack it in a folder FRASIMED",
        hub=Hub(hub, {"codes": "labels", "doc_name": "id"}),
        vocabulary="all",
        source="form: never seen, read as public code that reads it has it",
        doubts=(
            *DOUBTS,
            *doubts,
        ),
    )


TASKS = (
    _task(
        "cantemist_fr",
        "CANTEMIST-FRASIMED",
        "ICD-O-3.1",
        "rntc/tabib-frasimed-cantemist-doc",
        "its texts are those of fracco_30 and fracco_100",
    ),
    _task("distemist_fr", "DISTEMIST-FRASIMED", "SNOMED", "rntc/tabib-frasimed-distemist-doc"),
)
