"""All tasks by name, where their data lies, and what must hold of it before anything is trained on it."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from cptjax.command.escape import nearest
from eval.tasks import (
    blurb,
    chemprot,
    diamed,
    e3c,
    fracco,
    frasimed,
    frenchmedmcqa,
    meddialog,
    morfitt,
    mtl,
    physionet,
    quaero,
    uw,
)
from eval.tasks.files import archive_stem
from eval.tasks.hub import read_hub
from eval.tasks.own import own_task
from eval.tasks.task import SPLITS, Example, Examples, Span, Task, said_labels

FRENCH = (fracco, frasimed, meddialog, diamed, quaero)
ENGLISH = (chemprot, physionet, uw, mtl, blurb)
EXTRAS = (morfitt, e3c, frenchmedmcqa)  # open data that the paper does not use
FAMILIES = (*FRENCH, *ENGLISH, *EXTRAS)
TASKS: dict[str, Task] = {task.name: task for family in FAMILIES for task in family.TASKS}
DEEP = 3  # levels below the data's folder at which a task's may lie
ONE_LABEL = ("single_label", "relation")


def chosen(words: Iterable[str], language: str = "en") -> list[Task]:
    """The tasks that words name: one of ours, or NAME=FOLDER, which is the user's own, in this language.

    Raises ValueError for an unknown one, with those known, and for what `own_task` refuses.
    """
    tasks = []
    for word in words:
        name, is_own, folder = word.partition("=")
        if not is_own and name not in TASKS:
            there = f"there are {', '.join(TASKS)}; your own is NAME=FOLDER"
            raise ValueError(f"no task is called {name!r}{nearest(name, TASKS)}: {there}")
        if is_own and name in TASKS:
            raise ValueError(f"{name} is a task of ours: give yours another name")
        tasks.append(own_task(name, Path(folder), language) if is_own else TASKS[name])
    if again := [name for name, times in Counter(task.name for task in tasks).items() if times > 1]:
        raise ValueError(f"the task {again[0]} is named twice")
    return tasks


def find_folder(data: Path, task: Task) -> Path | None:
    """The folder of a task's data, or its archive, at most three levels below `data`; None where there is none.

    Of names that its data goes by the first that is there counts. Raises ValueError where two folders have it.
    """
    places: dict[str, list[Path]] = {name: [] for name in task.folders}
    level = [data]
    for _ in range(DEEP):
        level = [path for folder in level for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
        for path in level:
            name = path.name if path.is_dir() else archive_stem(path.name)
            if name in places:
                places[name].append(path)
        level = [path for path in level if path.is_dir()]
    for name, paths in places.items():
        folders = [path for path in paths if path.is_dir()] or paths  # an archive may lie beside what it was
        if len(folders) > 1:
            listed = " and ".join(map(str, folders))
            raise ValueError(f"{data} has two folders {name} for {task.name}, {listed}: leave one")
        if folders:
            return folders[0]
    return None


def load(task: Task, data: Path | None, from_hub: bool = False) -> Examples:
    """The examples of a task whose data lies below `data`, checked; of what is not there, those of the Hub where
    `from_hub` says so and it is hosted.

    Raises FileNotFoundError that says where to get what is not there, ValueError for data that does not hold together.
    """
    if data is not None and not data.is_dir():
        raise FileNotFoundError(f"{data} is no folder: --data is the one that the tasks' data lies in")
    folder = Path(task.access) if task.is_own else None if data is None else find_folder(data, task)
    if folder is not None:
        examples, where = task.read(folder), str(folder)
    elif from_hub and task.hub is not None:
        examples, where = read_hub(task.hub), task.hub.id
    elif data is None:
        raise ValueError(f"{task.name} needs --data, the folder that its data lies in")
    else:
        raise FileNotFoundError(f"{data} has no folder {' or '.join(task.folders)} for {task.name}: {task.access}")
    check(task, examples, where)
    return examples


def labels_of(task: Task, examples: Examples) -> tuple[str, ...]:
    """The labels of a task in their order: its own, or those said of its examples; none of multiple_choice."""
    if task.labels is not None or task.kind == "multiple_choice":
        return task.labels or ()
    splits = SPLITS if task.vocabulary == "all" else SPLITS[:1]
    return tuple(sorted({label for split in splits for label in said_labels(task.kind, examples[split])}))


def data_hash(examples: Examples) -> str:
    """The sha256 of examples: of all that a model is given and asked."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for example in examples[split]:
            line = json.dumps([split, asdict(example)], ensure_ascii=False)
            digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


# ---- what must hold


def check(task: Task, examples: Examples, where: str) -> None:
    """Raise ValueError, one line with `where`, for a split that is missing or empty, an id that stands twice, a text
    or an answer that is no example of the task's kind, and labels that no example of train has."""
    for split in SPLITS:
        if not examples.get(split):
            raise ValueError(f"{where} has no example in {split}")
        for example in examples[split]:
            if wrong := _wrong(task, example):
                raise ValueError(f"{where}: {split} {example.id} {wrong}")
    counts = Counter(example.id for split in SPLITS for example in examples[split])
    again, times = counts.most_common(1)[0]
    if times > 1:
        splits = [split for split in SPLITS if any(example.id == again for example in examples[split])]
        raise ValueError(
            f"{where}: the id {again} stands {times} times, in {' and '.join(splits)}: an id names one text"
        )
    known = set(labels_of(task, examples))
    for split in SPLITS:
        unknown = sorted(set(said_labels(task.kind, examples[split])) - known)
        if unknown and task.kind != "multiple_choice":
            whose = task.name if task.labels is not None and not task.is_own else "train"
            raise ValueError(f"{where}: {split} has the label {', '.join(unknown)}, which {whose} has not")
    if not known and task.kind != "multiple_choice":
        raise ValueError(f"{where}: no text of train has a label: there is nothing to learn")


def _wrong(task: Task, example: Example) -> str | None:
    """What is wrong with an example, if anything is."""
    gold = example.gold
    if not example.text.strip() or (example.second is not None and not example.second.strip()):
        return "has an empty text"
    names = (*gold.labels, *(each.label for each in gold.spans))
    written = "".join((example.id, example.text, example.second or "", *names))
    if any("\ud800" <= character <= "\udfff" for character in written):
        return "has half a surrogate pair, which is no character: correct it"
    if "" in names:
        return "has an empty label"
    if task.kind in ONE_LABEL and len(gold.labels) != 1:
        return f"has {len(gold.labels)} labels: {task.kind} takes one"
    if len(set(gold.labels)) < len(gold.labels):
        return f"has the label {Counter(gold.labels).most_common(1)[0][0]} twice"
    if task.kind == "relation" and not example.arguments:
        return "has no argument that its relation is of"
    if task.kind == "multiple_choice" and not (
        gold.labels and len(example.choices) > 1 and set(gold.labels) <= {*map(str, range(len(example.choices)))}
    ):
        return f"has the right answers {', '.join(gold.labels) or 'none'} of {len(example.choices)}"
    for span in (*gold.spans, *example.arguments):
        if wrong := _wrong_span(span, example.text):
            return wrong
    if task.kind == "entities":
        for before, after in zip(gold.spans, gold.spans[1:], strict=False):
            if after.start < before.end:
                return f"has entities that overlap, at {before.start} and {after.start}: entities are flat"
    return None


def _wrong_span(span: Span, text: str) -> str | None:
    ends = [place for pair in span.ranges for place in pair]
    if not ends or ends != sorted(set(ends)):
        return f"has a {span.label} at {ends}: ranges go forward, apart from each other"
    if ends[0] < 0 or ends[-1] > len(text):
        return f"has a {span.label} at {span.start} to {span.end}, but its text has {len(text)} characters"
    if any(not text[start:end].strip() for start, end in span.ranges):
        return f"has a {span.label} at {span.start} to {span.end}, where its text is empty"
    return None
