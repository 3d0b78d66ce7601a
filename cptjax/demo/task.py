"""The demo's own task: to find diagnoses and drugs in notes, half of which name ones that no training note has."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from cptjax.demo import grammar

SIZES = {"train": 60, "dev": 60, "test": 120}  # notes
SEED = 100  # of train; dev and test have the next ones. The text for pretraining has others.

# Every third condition is in all splits; every next one in dev alone, so that what is chosen there has learnt to find
# what it has not been told; every last one in test alone.
_THIRDS = {"train": (0,), "dev": (0, 1), "test": (0, 2)}
_THIRD_OF_DRUG = {
    condition.drug: number % 3
    for of_language in grammar.CONDITIONS.values()
    for number, condition in enumerate(of_language)
}


def notes(split: str) -> Iterator[grammar.Document]:
    """The notes of a split, the same every time."""
    drawn = grammar.documents(SEED + list(SIZES).index(split), 10 * SIZES[split], "clinical")
    return islice((note for note in drawn if _third(note) in _THIRDS[split]), SIZES[split])


def _third(note: grammar.Document) -> int:
    """That of the patient's condition."""
    drug = next(mention for mention in note.mentions if mention.label == "DRUG")
    return _THIRD_OF_DRUG[note.text[drug.start : drug.end]]


def write_task(folder: Path) -> Path:
    """Write train, dev and test, a note with its spans a line, as `eval run` reads a task of one's own."""
    folder.mkdir()
    for split in SIZES:
        lines = [{"text": note.text, "spans": [asdict(mention) for mention in note.mentions]} for note in notes(split)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
