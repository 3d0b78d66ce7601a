"""What a reader of a number should know of the data behind it: each guard gives notes, one line each.

W words, G n-grams of words.
"""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from cptjax.command.escape import listed
from cptjax.corpus.cleaning import NGRAM, Evaluation, hash_ngrams, hash_words
from eval.tasks.task import SPLITS, Example, Examples, Task, said_labels


class Shared(NamedTuple):
    """Ids of examples of test whose text train has: word for word, or 13 words in a row of it."""

    whole: frozenset[str]
    in_part: frozenset[str]  # those of `whole` that have 13 words too


def data_notes(task: Task, examples: Examples) -> list[str]:
    """What is to be known of a task's examples, whoever is scored on them."""
    return [*_shared_notes(examples), *_label_notes(task, examples), *_repeated_notes(examples)]


def shared_texts(examples: Examples) -> Shared:
    """The examples of test that train gives away. Words are compared in lower case, without punctuation."""
    words = {split: [(each, hash_words(_given(each))) for each in examples[split]] for split in ("train", "test")}
    whole = {word_W.tobytes() for _, word_W in words["train"] if len(word_W)}
    ngram_G = np.unique(np.concatenate([hash_ngrams(word_W, NGRAM) for _, word_W in words["train"]]))
    train = Evaluation(ngram_G, np.zeros(len(ngram_G), np.int32), ("train",), len(words["train"]), 0)
    return Shared(
        frozenset(each.id for each, word_W in words["test"] if word_W.tobytes() in whole),
        frozenset(each.id for each, word_W in words["test"] if train.match(word_W) >= 0),
    )


def _given(example: Example) -> str:
    """All the text that a model is given."""
    return "\n".join((example.text, example.second or "", *example.choices))


def _shared_notes(examples: Examples) -> Iterable[str]:
    shared, size = shared_texts(examples), len(examples["test"])
    if shared.whole:
        yield f"{len(shared.whole):,} of {size:,} texts of test stand in train, word for word"
    if more := shared.in_part - shared.whole:
        others = f"{len(more):,} {'more ' * bool(shared.whole)}of {size:,} texts of test"
        yield f"{others} share {NGRAM} words in a row with train"


def _label_notes(task: Task, examples: Examples) -> Iterable[str]:
    if task.kind == "multiple_choice":  # whose labels are places
        return
    known = set(said_labels(task.kind, examples["train"]))
    for split in SPLITS[1:]:
        unseen = Counter(label for label in said_labels(task.kind, examples[split]) if label not in known)
        if unseen:
            counted = [f"{label} ({times:,})" for label, times in sorted(unseen.items())]
            yield f"labels of {split} that no text of train has: {listed(counted)}"


def _repeated_notes(examples: Examples) -> Iterable[str]:
    for split in SPLITS:
        counts = Counter((_given(each), each.arguments) for each in examples[split])
        if again := sum(times - 1 for times in counts.values()):
            yield f"{again:,} of {len(examples[split]):,} texts of {split} stand there before"
