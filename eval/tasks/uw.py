"""Corpora of the University of Washington (https://depts.washington.edu/bionlp): social histories of MTSamples' notes
(Yetisgen and Vanderwende 2017, doi:10.1007/978-3-319-59758-4_18), and changes of state in sentences of chest X-ray
reports (Klassen et al. 2014, LREC).

Form of the first: brat files in folders train, dev and test; what an event is of, its trigger, is a mention as its
arguments are. Form of the second (README.txt of events-COS-corpus.zip; never seen here): brat files data/snippet*, a
sentence a line.
"""

from pathlib import Path

from eval.tasks.brat import FILES, read_brat
from eval.tasks.files import read_files, split_of
from eval.tasks.pieces import cut, flat, lines
from eval.tasks.splits import rounded_down, shuffled
from eval.tasks.task import SPLITS, Answer, Example, Examples, Task

TYPES = tuple(
    "Alcohol Amount Drug EnvironmentalExposure ExposureHistory Extent Family Frequency History InfectiousDiseases "
    "LivingSituation LivingStatus Location MaritalStatus MedicalCondition Method Occupation Other PhysicalActivity "
    "QuitHistory Residence SexualHistory StatusTime Time Tobacco Type".split()
)


def read_social_history(folder: Path) -> Examples:
    """The sections that hold text, each an example."""
    examples: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for document in read_brat(read_files(folder, FILES), _without_status):
        if (split := split_of(document.name)) and document.text.strip():
            examples[split].append(Example(document.name, document.text, Answer(spans=flat(document.spans))))
    return examples


def read_cos(folder: Path) -> Examples:
    """The sentences, divided by a seed."""
    examples: list[Example] = []
    for document in read_brat(read_files(folder, rf"(^|/)snippet[^/]*{FILES}")):
        examples += cut(document.name, document.text, flat(document.spans), lines(document.text))
    return shuffled(examples, rounded_down(len(examples), (0.7, 0.15)))


def _without_status(words: str) -> str:
    # The corpus had "state" replaced by "Status" in its .ann files, in "real estate" too.
    return words.lower().replace("status", "state")


TASKS = (
    Task(
        name="cos",
        kind="entities",
        language="en",
        folders=("events-COS-corpus",),
        read=read_cos,
        metrics=("entity_f1", "span_f1_partial"),
        protocol="english_entities",
        licence="none named",
        access="https://depts.washington.edu/bionlp, events-COS-corpus.zip, free",
        labels=("Attr", "Cos", "Loc", "Ref", "Val"),
        source="form: never seen, read as its README.txt has it",
        doubts=("the published split is 70/15/15 by seed 42, of sentences in an order that is not said",),
    ),
    Task(
        name="social_history",
        kind="entities",
        language="en",
        folders=("SocialHistoryMTSamples", "social_history_mtsamples", "social_history_mtsamples_brat"),
        read=read_social_history,
        metrics=("entity_f1", "span_f1_partial"),
        protocol="english_entities",
        licence="none named (public samples)",
        access="https://depts.washington.edu/bionlp, SocialHistoryMTSamples.zip, free",
        labels=TYPES,
        sizes={"train": 251, "dev": 73, "test": 37},
        doubts=(
            "1,275 of 3,778 mentions overlap a longer one and are left out; which the published code keeps is not said",
            "the published numbers are of a split 70/15/15 by seed 42, here of the corpus's own",
        ),
    ),
)
