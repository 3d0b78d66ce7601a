"""Two tasks on data of PhysioNet (https://physionet.org), which is given to those who register; never seen here.

`phenotype` (phenotype-annotations-mimic 1.20.03; Moseley et al. 2020): ACTdb102003.csv, a row for each annotated note
of MIMIC-III with ROW_ID, a column of 0 and 1 for each phenotype, UNSURE and NONE, beside MIMIC-III's NOTEEVENTS.csv
with ROW_ID and TEXT. `deid` (deidentifiedmedicaltext 1.0; Neamatullah et al. 2008, doi:10.1186/1472-6947-8-32):
id.text, records between START_OF_RECORD=PATIENT||||NOTE|||| and ||||END_OF_RECORD, and id.res, the same with what
identifies somebody replaced by its kind, as [**Hospital**]. Form: as public code that reads them has it.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from cptjax.command.errors import warn_of_damage
from eval.tasks.files import as_text, list_files, read_file, unpacked_name
from eval.tasks.splits import drawn_by_datasets, rounded_down, shuffled
from eval.tasks.tables import read_table
from eval.tasks.task import Answer, Example, Examples, Span, Task, span

ANNOTATIONS, NOTES = "ACTdb102003.csv", "NOTEEVENTS.csv"
PHENOTYPES = (
    "ADVANCED.CANCER",
    "ADVANCED.HEART.DISEASE",
    "ADVANCED.LUNG.DISEASE",
    "ALCOHOL.ABUSE",
    "CHRONIC.NEUROLOGICAL.DYSTROPHIES",
    "CHRONIC.PAIN.FIBROMYALGIA",
    "DEMENTIA",
    "DEPRESSION",
    "DEVELOPMENTAL.DELAY.RETARDATION",
    "NON.ADHERENCE",
    "OBESITY",
    "OTHER.SUBSTANCE.ABUSE",
    "SCHIZOPHRENIA.AND.OTHER.PSYCHIATRIC.DISORDERS",
    "UNSURE",
)
RECORD = re.compile(r"START_OF_RECORD=(\d+)\|\|\|\|(\d+)\|\|\|\|\n?(.*?)\|\|\|\|END_OF_RECORD", re.DOTALL)
REPLACED = re.compile(r"\[\*\*(.*?)\*\*\]", re.DOTALL)
KINDS = {  # of what was replaced, the first whose words are in the mark
    "phone_nb": r"phone|fax|pager|beeper",
    "other": r"e-?mail|url|number|mrn|ssn",
    "age": r"\bage\b",
    "location": r"hospital|location|street|address|state|zip|country|county|city|town|university|college|ward|room",
    "name": r"name|initials|doctor|attending",
    "date": r"date|month|year|day|holiday|^[\d\s/.-]+$",
}
LENGTH = "published numbers are of texts of up to 8,192 tokens"


def read_phenotype(folder: Path) -> Examples:
    """The annotated notes, without those of which NONE and a phenotype are said."""
    said = {}
    for place, (where, row) in enumerate(read_table(_named(folder, ANNOTATIONS), ("ROW_ID", "NONE", *PHENOTYPES))):
        phenotypes = tuple(name for name in PHENOTYPES if _is_one(row[name], where))
        if not (_is_one(row["NONE"], where) and phenotypes):
            said[place] = (row["ROW_ID"], phenotypes)
    wanted = {name for name, _ in said.values()}
    notes = read_table(_named(folder, NOTES), ("ROW_ID", "TEXT"))
    texts = {row["ROW_ID"]: row["TEXT"] for _, row in notes if row["ROW_ID"] in wanted}
    seen: Counter[str] = Counter()
    examples = []
    for name, phenotypes in said.values():
        if name in texts:
            seen[name] += 1
            again = f" again {seen[name]}" if seen[name] > 1 else ""  # a note that somebody annotated again
            examples.append(Example(name + again, texts[name], Answer(phenotypes)))
    return drawn_by_datasets(examples, 0.2, 0.125)


def _is_one(cell: str, where: str) -> bool:
    if cell not in ("0", "1"):
        raise ValueError(f"{where} has {cell!r} for a phenotype: it is 0 or 1")
    return cell == "1"


def read_deid(folder: Path) -> Examples:
    """The records, with what identifies somebody. Records that the two files have differently are left out, and
    counted in a warning."""
    records = dict(_records(_named(folder, "id.text")))
    marked = dict(_records(_named(folder, "id.res")))
    spans = {name: _spans(text, marked.get(name, "")) for name, text in records.items()}
    fitting = sorted(name for name, each in spans.items() if each is not None)
    if len(fitting) < len(records):
        warn_of_damage(
            f"{len(records) - len(fitting)} of {len(records)} records of {folder} are left out: the texts differ"
        )
    examples = [Example(f"{name[0]}:{name[1]}", records[name], Answer(spans=spans[name] or ())) for name in fitting]
    return shuffled(examples, rounded_down(len(examples), (0.7, 0.15)))


def _named(folder: Path, name: str) -> Path:
    paths = [path for path in list_files(folder) if unpacked_name(path.name) == name] if folder.is_dir() else []
    if len(paths) != 1:
        raise ValueError(f"{folder} holds {len(paths)} files {name}: put one there")
    return paths[0]


def _records(path: Path) -> Iterator[tuple[tuple[int, int], str]]:
    for match in RECORD.finditer(as_text(read_file(path), str(path))):
        yield (int(match[1]), int(match[2])), match[3].rstrip()


def _spans(text: str, marked: str) -> tuple[Span, ...] | None:
    """What stands in a text where another has marks; None where the two differ otherwise."""
    parts = REPLACED.split(marked)  # what both have, and in between what the marks say
    if not text.startswith(parts[0]):
        return None
    spans, at = [], len(parts[0])
    for place in range(1, len(parts), 2):
        mark, after = parts[place : place + 2]
        if place == len(parts) - 2:
            end = len(text) - len(after)
        else:
            end = text.find(after, at + 1) if after else at  # two marks without anything between: who knows
        if end <= at or text[end : end + len(after)] != after:
            return None
        words = text[at:end]
        start = at + len(words) - len(words.lstrip())
        spans.append(span([(start, start + len(words.strip()))], _kind(mark)))
        at = end + len(after)
    return tuple(spans) if at == len(text) else None


def _kind(mark: str) -> str:
    return next((kind for kind, words in KINDS.items() if re.search(words, mark.strip().lower())), "other")


TASKS = (
    Task(
        name="phenotype",
        kind="multi_label",
        language="en",
        folders=("phenotype", "phenotype-annotations-mimic"),
        read=read_phenotype,
        metrics=("weighted_f1", "micro_f1", "macro_f1"),
        protocol="english_text",
        licence="PhysioNet credentialed health data licence",
        access="https://physionet.org/content/phenotype-annotations-mimic/1.20.03, and NOTEEVENTS.csv of "
        "https://physionet.org/content/mimiciii/1.4, for registered users; put both in a folder phenotype",
        labels=PHENOTYPES,
        source="form: never seen, read as public code that reads it has it",
        doubts=(
            "a note annotated twice is two examples, which may be of two splits, as in the published code",
            LENGTH,
        ),
    ),
    Task(
        name="deid",
        kind="entities",
        language="en",
        folders=("deid", "deidentifiedmedicaltext"),
        read=read_deid,
        metrics=("entity_f1", "span_f1_partial"),
        protocol="english_entities",
        licence="PhysioNet credentialed health data licence",
        access="https://physionet.org/content/deidentifiedmedicaltext/1.0, for registered users; id.text and id.res "
        "in a folder deid",
        labels=("age", "date", "location", "name", "other", "phone_nb"),
        source="form: never seen, read as public code that reads it has it",
        doubts=(
            LENGTH,
            "how the published numbers make six kinds of the marks of id.res is not said; here by words in them",
            "a card of one of the models calls its data n2c2 2006, another corpus",
            "the published split is 70/15/15 by seed 42, of records in an order that is not said",
        ),
    ),
)
