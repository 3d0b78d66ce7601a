"""FrenchMedMCQA (Labrak et al. 2022, https://github.com/qanastek/FrenchMedMCQA): questions of French exams in pharmacy
with five answers each, one to five of them right.

Form: train.json, dev.json and test.json, an array of objects with id, question, answers (by letter) and
correct_answers (letters).
"""

from collections import Counter
from pathlib import Path

from eval.tasks.files import split_files
from eval.tasks.tables import read_table
from eval.tasks.task import Answer, Example, Examples, Task


def read(folder: Path) -> Examples:
    """The questions, their answers in the order of the letters."""
    examples = {}
    for split, path in split_files(folder, (".json",)).items():
        seen: Counter[str] = Counter()
        examples[split] = []
        for where, row in read_table(path, ("id", "question", "answers", "correct_answers")):
            seen[row["id"]] += 1
            again = f" again {seen[row['id']]}" if seen[row["id"]] > 1 else ""  # a question stands twice in train
            letters = sorted(row["answers"])
            if not set(row["correct_answers"]) <= set(letters):
                raise ValueError(f"{where} has right answers {row['correct_answers']} that are none of {letters}")
            right = tuple(str(place) for place, letter in enumerate(letters) if letter in row["correct_answers"])
            choices = tuple(row["answers"][letter] for letter in letters)
            examples[split].append(Example(row["id"] + again, row["question"], Answer(right), choices=choices))
    return examples


TASKS = (
    Task(
        name="frenchmedmcqa",
        kind="multiple_choice",
        language="fr",
        folders=("FrenchMedMCQA",),
        read=read,
        metrics=("exact_match", "hamming"),
        protocol="french_text",
        licence="Apache-2.0",
        access="https://github.com/qanastek/FrenchMedMCQA, free",
        sizes={"train": 2171, "dev": 312, "test": 622},
    ),
)
