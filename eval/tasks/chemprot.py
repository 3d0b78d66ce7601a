"""ChemProt (BioCreative VI; Krallinger et al. 2017): what a chemical does to a protein or gene in a sentence.

Form of BLUE (arXiv:1906.05474) and BLURB: train.tsv, dev.tsv and test.tsv with columns index, sentence and label; the
two arguments are words such as @CHEMICAL$ and @GENE$, one @CHEM-GENE$ where both are of the same characters. Another
division of the same corpus (https://github.com/arwhirang/recursive_chemprot) writes bc6entc, bc6entg and bc6other.
Those words stay in the text, as the papers' models read them, and are the arguments.
"""

import re
from pathlib import Path

from eval.tasks.files import split_files
from eval.tasks.tables import read_table
from eval.tasks.task import Answer, Example, Examples, Span, Task

ROLES = {"chemical": r"@CHEMICAL\$|@CHEM-GENE\$|\bbc6entc\b", "gene": r"@GENE\$|@CHEM-GENE\$|\bbc6entg\b"}


def read(folder: Path) -> Examples:
    """The pairs of a chemical and a gene of each sentence."""
    examples = {}
    for split, path in split_files(folder, (".tsv",)).items():
        rows = read_table(path, ("index", "sentence", "label"))
        examples[split] = [
            Example(row["index"], row["sentence"], Answer(labels=(row["label"],)), _arguments(row["sentence"]))
            for _, row in rows
        ]
    return examples


def _arguments(text: str) -> tuple[Span, ...]:
    """The spans of both roles, in the order of the text. A role that no word stands for (45 of 41,324, all `false`) has
    none: its mention overlaps the other's, and the division kept one word for both."""
    places = [(role, re.search(pattern, text)) for role, pattern in ROLES.items()]
    return tuple(sorted(Span((place.span(),), role) for role, place in places if place))


TASKS = (
    Task(
        name="chemprot",
        kind="relation",
        language="en",
        folders=("ChemProt", "chemprot", "ChemProt_spinn"),
        read=read,
        metrics=("weighted_f1", "micro_f1", "macro_f1"),
        protocol="english_text",
        licence="BioCreative's: free for research, once registered",
        access="https://github.com/ncbi-nlp/BLUE_Benchmark, bert_data.zip, folder ChemProt",
        labels=("CPR:3", "CPR:4", "CPR:5", "CPR:6", "CPR:9", "false"),
        sizes={"train": 18035, "dev": 11268, "test": 15745},
        source="sizes: BLURB (arXiv:2007.15779), of which other divisions leave pairs out",
        doubts=(
            "the published number fits a weighted F1 over all six labels; BLURB's micro F1 leaves `false` out",
            "a pair is marked by the words that stand for its names, as in BLUE",
        ),
    ),
)
