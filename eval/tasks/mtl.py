"""AnatEM, BC5CDR, JNLPBA and NCBI disease, as the files of Crichton et al. 2017 (doi:10.1186/s12859-017-1776-8) have
them: a token and its tag a line, sentences without their documents.

Form: https://github.com/cambridgeltl/MTL-Bioinformatics-2016.
"""

from pathlib import Path

from eval.tasks.bio import read_bio
from eval.tasks.files import read_file, split_files
from eval.tasks.task import Examples, Task

METRICS = ("entity_f1", "span_f1_partial")
GET = "https://github.com/cambridgeltl/MTL-Bioinformatics-2016, folder data/"
FLAT = "the cards say F1 and not of what; here a mention counts when its characters and its label are right"


def read(folder: Path) -> Examples:
    """The sentences of train, devel and test."""
    files = split_files(folder, (".tsv", ".iob", ".bio", ".conll"))
    return {split: read_bio(read_file(path), split, str(path)) for split, path in files.items()}


def _task(name: str, folders: tuple[str, ...], licence: str, sizes: tuple[int, int, int], **more) -> Task:
    return Task(
        name=name,
        kind="entities",
        language="en",
        folders=folders,
        read=read,
        metrics=METRICS,
        protocol="english_entities",
        licence=licence,
        sizes=dict(zip(("train", "dev", "test"), sizes, strict=True)),
        doubts=(FLAT, *more.pop("doubts", ())),
        **{"access": GET, **more},
    )


TASKS = (
    _task("anatem", ("AnatEM-IOB", "AnatEM"), "CC BY-SA 3.0 (corpus), CC BY 4.0 (this form)", (5861, 2118, 3830)),
    _task("bc5cdr", ("BC5CDR-IOB", "BC5CDR"), "none named (corpus), CC BY 4.0 (this form)", (4560, 4581, 4797)),
    _task(
        "jnlpba",
        ("JNLPBA", "JNLPBA-IOB"),
        "GENIA licence, CC BY 3.0",
        (16807, 1739, 3856),
        labels=("DNA", "RNA", "cell_line", "cell_type", "protein"),
        source="sizes: 18,546 and 3,856 sentences, Kim et al. 2004; dev as BLURB (arXiv:2007.15779) cuts it from train",
    ),
    _task(
        "ncbi_disease",
        ("NCBI-disease-IOB", "NCBI-disease"),
        "CC0 1.0 (corpus), CC BY 4.0 (this form)",
        (5424, 923, 940),
        source="form and sizes: the repository named above, as its other corpora; never seen here",
    ),
)
