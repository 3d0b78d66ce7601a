"""QUAERO French Medical Corpus, CLEF eHealth release (Névéol et al. 2014): brat files of EMEA leaflets and MEDLINE
titles, ten groups of UMLS, nested, overlapping and discontinuous mentions.

Form: https://quaerofrenchmed.limsi.fr, folders corpus/{train,dev,test}/{EMEA,MEDLINE}. An example is a line of a
leaflet, or a title.
"""

from functools import partial
from pathlib import Path

from eval.tasks.brat import FILES, read_brat
from eval.tasks.files import read_files, split_of
from eval.tasks.pieces import cut, lines
from eval.tasks.task import SPLITS, Example, Examples, Task


def read(folder: Path, part: str) -> Examples:
    """The examples of one part, EMEA or MEDLINE."""
    examples: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for document in read_brat(read_files(folder, rf"(^|/){part}/[^/]*{FILES}")):
        if split := split_of(document.name):
            bounds = lines(document.text) if part == "EMEA" else [(0, len(document.text))]
            examples[split] += cut(document.name, document.text, document.spans, bounds)
    return examples


def _task(name: str, part: str, sizes: tuple[int, int, int], *doubts: str) -> Task:
    return Task(
        name=name,
        kind="nested_entities",
        language="fr",
        folders=("QUAERO_FrenchMed", "QUAERO_FrenchMed_brat"),
        read=partial(read, part=part),
        metrics=("entity_f1", "span_f1_exact", "span_f1_partial"),
        protocol="french_spans",
        licence="GNU FDL 1.3",
        access="https://quaerofrenchmed.limsi.fr/QUAERO_FrenchMed_brat.zip, free",
        labels=("ANAT", "CHEM", "DEVI", "DISO", "GEOG", "LIVB", "OBJC", "PHEN", "PHYS", "PROC"),
        sizes=dict(zip(SPLITS, sizes, strict=True)),
        doubts=(
            "how the published numbers count a mention changed between drafts of the paper and is not said",
            *doubts,
        ),
    )


TASKS = (
    _task("quaero_emea", "EMEA", (706, 649, 578), "how the paper divides documents is not said; here a line is a text"),
    _task("quaero_medline", "MEDLINE", (833, 832, 833)),
)
