"""Tasks of BLURB (arXiv:2007.15779): Hallmarks of Cancer (Baker et al. 2016, doi:10.1093/bioinformatics/btv585), and
GAD (Bravo et al. 2015, doi:10.1186/s12859-015-0472-9), whether a gene and a disease of a sentence are associated.

Form of GAD (BioBERT's REdata/GAD/1; never seen here): train.tsv, dev.tsv and test.tsv, whose last two cells are a
sentence with @GENE$ and @DISEASE$, and 0 or 1; a first row may name the columns.

Form of the first: train.tsv, dev.tsv and test.tsv with columns labels, sentence and index; labels is `0_0,1_1,...`, the
place of a hallmark and whether it is there, places in the order of the alphabet.
"""

import re
from pathlib import Path

from eval.tasks.files import as_text, read_file, split_files
from eval.tasks.tables import read_table
from eval.tasks.task import Answer, Example, Examples, Task

HALLMARKS = (
    "activating invasion and metastasis",
    "avoiding immune destruction",
    "cellular energetics",
    "enabling replicative immortality",
    "evading growth suppressors",
    "genomic instability and mutation",
    "inducing angiogenesis",
    "resisting cell death",
    "sustaining proliferative signaling",
    "tumor promoting inflammation",
)


def read_hoc(folder: Path) -> Examples:
    """The sentences, each with its hallmarks, most with none."""
    examples = {}
    for split, path in split_files(folder, (".tsv",)).items():
        rows = read_table(path, ("labels", "sentence", "index"))
        examples[split] = [
            Example(row["index"], row["sentence"], Answer(labels=_hallmarks(row["labels"], where)))
            for where, row in rows
        ]
    return examples


def _hallmarks(cell: str, where: str) -> tuple[str, ...]:
    places = [re.fullmatch(rf"{place}_([01])", part) for place, part in enumerate(cell.split(","))]
    if len(places) != len(HALLMARKS) or None in places:
        raise ValueError(f"{where} has the labels {cell[:60]!r}: they are 0_0,1_0 and so on to 9_0, or _1 each")
    return tuple(name for name, place in zip(HALLMARKS, places, strict=True) if place and place[1] == "1")


def read_gad(folder: Path) -> Examples:
    """The sentences, each with 0 or 1."""
    examples = {}
    for split, path in split_files(folder, (".tsv",)).items():
        rows = [line.rstrip("\r").split("\t") for line in as_text(read_file(path), str(path)).split("\n")]
        examples[split] = [
            Example(f"{split}:{number}", cells[-2].strip(), Answer((cells[-1].strip(),)))
            for number, cells in enumerate(rows, start=1)
            if len(cells) > 1 and cells[-1].strip() != "label"
        ]
    return examples


TASKS = (
    Task(
        name="gad",
        kind="single_label",
        language="en",
        folders=("GAD", "GAD_blurb", "gad"),
        read=read_gad,
        metrics=("weighted_f1", "micro_f1", "macro_f1"),
        protocol="english_text",
        licence="none named",
        access="https://microsoft.github.io/BLURB, GAD, free; its three files in a folder GAD",
        labels=("0", "1"),
        sizes={"train": 4261, "dev": 535, "test": 534},
        source="sizes: BLURB; form: never seen, read as BioBERT hands it out",
        doubts=("which F1 the published number is, and of which of ten divisions, is not said",),
    ),
    Task(
        name="hoc",
        kind="multi_label",
        language="en",
        folders=("HoC_blurb", "HoC", "hoc"),
        read=read_hoc,
        metrics=("weighted_f1", "micro_f1", "macro_f1"),
        protocol="english_text",
        licence="GPL-3.0",
        access="https://microsoft.github.io/BLURB, hoc, or https://github.com/sb895/Hallmarks-of-Cancer, free",
        labels=HALLMARKS,
        sizes={"train": 12119, "dev": 1798, "test": 3547},
        doubts=(
            "whether the published F1 is micro, macro or weighted is not said",
            "a text is a sentence here; BLURB joins the predictions of an abstract's sentences",
        ),
    ),
)
