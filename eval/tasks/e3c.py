"""E3C (Magnini et al. 2020, https://github.com/hltfbk/E3C-Corpus): clinical entities of case reports, layer 1.

Form: UIMA XMI in folders data_annotation/LANGUAGE/layer1, and train_test_split.txt, which names the documents of train
by language. An example is a sentence. As in the corpus's own token files, discontinuous entities, of which XMI has
the outer bounds only, and those inside others are left out.
"""

import re
from functools import partial
from pathlib import Path, PurePosixPath

from eval.tasks.files import as_text, read_files
from eval.tasks.pieces import cut, flat
from eval.tasks.splits import cut_dev
from eval.tasks.task import SPLITS, Example, Examples, Span, Task
from eval.tasks.xmi import read_xmi

LIST = "train_test_split.txt"
ENTITY = "CLINENTITY"
DEV_SHARE = 0.2  # of the documents of train


def read(folder: Path, language: str) -> Examples:
    """The sentences of a language's documents; dev is cut from those of train."""
    files = read_files(folder, rf"(^|/){language}/layer1/[^/]*\.xml$|(^|/){LIST}$")
    lists = [as_text(files.pop(name), name) for name in list(files) if name.endswith(LIST)]
    if len(lists) != 1:
        raise ValueError(f"{folder} holds {len(lists)} files {LIST}, which names the documents of train: put one there")
    named = re.search(rf"^{language.upper()}\s+(.*)", lists[0], re.MULTILINE)
    train = re.findall(r"'(\w+)'", named[1]) if named else []
    documents = {PurePosixPath(name).stem: data for name, data in files.items()}
    if missing := sorted(set(train) - set(documents)) or ([] if train else [language]):
        raise ValueError(f"{folder} lacks documents of train that {LIST} names, such as {missing[0]}")
    kept, dev = cut_dev(sorted(train), DEV_SHARE)
    names = {"train": kept, "dev": dev, "test": sorted(set(documents) - set(train))}
    return {
        split: [example for name in names[split] for example in _sentences(name, documents[name])] for split in SPLITS
    }


def _sentences(name: str, data: bytes) -> list[Example]:
    text, marks = read_xmi(data, name, ("Sentence", ENTITY))
    whole = [mark for mark in marks[ENTITY] if not mark.attributes.get("discontinuous")]
    spans = flat(Span(((mark.start, mark.end),), ENTITY) for mark in whole)
    return cut(name, text, spans, ((mark.start, mark.end) for mark in marks["Sentence"]))


def _task(name: str, language: str, folder_language: str, test: int) -> Task:
    return Task(
        name=name,
        kind="entities",
        language=language,
        folders=("E3C", "E3C-Corpus"),
        read=partial(read, language=folder_language),
        metrics=("entity_f1", "span_f1_partial"),
        protocol="french_entities" if language == "fr" else "english_entities",
        licence="CC BY-NC 4.0",
        access="https://github.com/hltfbk/E3C-Corpus, free",
        sizes={"test": test},
        source="size: the sentences of its own token files",
        doubts=("dev is a fifth of the documents of train, by seed 42: the corpus names none",),
    )


TASKS = (
    _task("e3c_fr", "fr", "French", 605),
    _task("e3c_en", "en", "English", 851),
)
