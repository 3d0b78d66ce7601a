"""Corpora of the University of Washington (https://depts.washington.edu/bionlp): social histories of MTSamples' notes
(Yetisgen and Vanderwende 2017, doi:10.1007/978-3-319-59758-4_18).

Form: brat files in folders train, dev and test; what an event is of, its trigger, is a mention as its arguments are.
"""

from pathlib import Path

from eval.tasks.brat import FILES, read_brat
from eval.tasks.files import read_files, split_of
from eval.tasks.pieces import flat
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


def _without_status(words: str) -> str:
    # The corpus had "state" replaced by "Status" in its .ann files, in "real estate" too.
    return words.lower().replace("status", "state")


TASKS = (
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
