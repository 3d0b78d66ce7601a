"""What models know of a text and of tasks as they are, to choose a checkpoint in minutes."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from convert import from_hf
from cptjax.corpus.sources import read_all
from cptjax.data.tokenizer import Encoder
from cptjax.machine import host
from cptjax.shape import ModelConfig
from eval.fill_mask import Word, count_words, draw, fill
from eval.linear_probe import probe
from eval.probe_command import ProbeCommand
from eval.protocols import protocol_of
from eval.render import RENDERED, Table, csv_lines, percent, put
from eval.sweep import Candidate, Prepared, candidates, prepare, sizes_of
from eval.tasks.registry import chosen
from eval.tasks.task import Task
from eval.texts import ENTITIES

MASKED = "masked tokens"
MOST_CHARACTERS = 10**7  # of a text that are read
LEAST_TOKENS = 8  # around a masked one
DIGITS = {"words": 0, "tokens": 0, "loss of a token": 3, "loss of a word": 3, "pseudo-perplexity": 2}  # else a share


class Figure(NamedTuple):
    """One number of a model: of masked tokens or a task, of a kind of word or a layer."""

    of: str
    measure: str
    part: str
    model: str
    value: float


class Model(NamedTuple):
    """A model to be probed; its weights are read when it is its turn."""

    name: str
    folder: Path
    encoder: Encoder
    fills: bool  # masks: it has a language-model head


Notes = dict[str, list[str]]  # what to read figures with, by what they are of


def measure(asked: ProbeCommand) -> None:
    """Read all, measure each model, write. Raises ValueError for what cannot be asked of these models."""
    _check(asked)
    host.ready_to_compute()
    notes: Notes = defaultdict(list)
    models = [_opened(candidate, notes[MASKED]) for candidate in candidates(asked.model.split(","))]
    tasks = [_prepared(asked, task) for task in chosen(asked.task.split(","), asked.language)] if asked.task else []
    for on in tasks:
        doubts = on.problem.protocol.doubts  # of fine-tuning
        notes[on.task.name] += [note for note in on.notes if note not in doubts]
    words = _words(asked, models, notes[MASKED]) if asked.text else []
    figures: list[Figure] = []
    for model in models:
        config, params = from_hf.load(model.folder)
        if words and model.fills:
            figures += _filled(asked, model, config, params, words)
        for on in tasks:
            figures += _probed(model, config, params, on, notes[on.task.name])
    if asked.format == "csv":
        written = csv_lines(Figure._fields, (each._asdict() for each in figures))
    else:
        written = RENDERED[asked.format](tables(figures, [model.name for model in models], notes))
    put(written, asked.out)


def _check(asked: ProbeCommand) -> None:
    if not asked.text and not asked.task:
        raise ValueError("neither --text nor --task is given: name what to probe with")
    if "test" in sizes_of(asked.examples):
        raise ValueError("--examples names test: a probe reads train and dev, and leaves test unseen")
    if asked.general and not asked.text:
        raise ValueError("--general is for --text: name the text that masks are filled in")
    for name, least in (("words", 1), ("length", LEAST_TOKENS)):
        if getattr(asked, name) < least:
            raise ValueError(f"--{name} is {getattr(asked, name)}: at least {least}")


def _words(asked: ProbeCommand, models: Sequence[Model], notes: list[str]) -> list[Word]:
    """The words to be filled in. Raises ValueError where no model can, or one of them has no mask token."""
    can = [model for model in models if model.fills]
    notes += [f"{model.name} has no language-model head: it fills no mask." for model in models if model not in can]
    if not can:
        raise ValueError(f"{models[0].name} has no language-model head to fill masks with: give --task, not --text")
    for model in can:
        if model.encoder.special.mask is None:
            raise ValueError(f"{model.name} has no mask token: name mask_token in its tokenizer_config.json")
    if len({model.encoder.vocabulary["tokenizer_sha256"] for model in can}) > 1:
        notes.append("The tokenizers differ, and so do their tokens: compare the loss of a word.")
    general = count_words(_read(asked, asked.general, notes)) if asked.general else None
    return draw(_read(asked, asked.text, notes), asked.words, asked.length, general)


def _read(asked: ProbeCommand, sources: Sequence[str], notes: list[str]) -> list[str]:
    """The documents of sources, up to MOST_CHARACTERS."""
    texts, characters = [], 0
    for text in read_all(sources, asked.reading):
        if characters >= MOST_CHARACTERS:
            notes.append(f"Of {','.join(sources)} the first {characters:,} characters are read, and no more.")
            break
        texts.append(text)
        characters += len(text)
    return texts


def _filled(
    asked: ProbeCommand, model: Model, config: ModelConfig, params: Any, words: Sequence[Word]
) -> Iterator[Figure]:
    for kind, measures in fill(config, params, model.encoder, words, asked.length).items():
        yield from (Figure(MASKED, measure, kind, model.name, value) for measure, value in measures.items())


def _prepared(asked: ProbeCommand, task: Task) -> Prepared:
    protocol = protocol_of(asked.protocol or task.protocol, task.kind)
    return prepare(task, asked.data, protocol, sizes=sizes_of(asked.examples))


def _opened(candidate: Candidate, notes: list[str]) -> Model:
    if candidate.folder is None:
        raise ValueError(f"{candidate.name} is no model: name folders or Hub ids")
    shape = from_hf.read_shape(candidate.folder)
    notes += [f"{candidate.name}: {note}" for note in candidate.notes]
    return Model(candidate.name, candidate.folder, Encoder(candidate.folder), shape.head == "lm")


def _probed(model: Model, config: ModelConfig, params: Any, on: Prepared, notes: list[str]) -> Iterator[Figure]:
    metric = "entity_f1" if on.task.kind in ENTITIES else on.problem.metric  # tags say no nested entity
    probed = probe(config, params, model.encoder, replace(on.problem, metric=metric))
    if probed.truncated:
        notes.append(f"{model.name} cuts {probed.truncated:.1%} of the texts.")
    for layer, score in enumerate(probed.score_N):
        yield Figure(on.task.name, metric, f"layer {layer}" if layer else "embeddings", model.name, score)


def tables(figures: Sequence[Figure], models: Sequence[str], notes: Mapping[str, Sequence[str]]) -> list[Table]:
    """A table for each that figures are of, with a column for each model."""
    made = []
    for of in dict.fromkeys(each.of for each in figures):
        values = {(each.measure, each.part, each.model): each.value for each in figures if each.of == of}
        measures, parts = (dict.fromkeys(key[place] for key in values) for place in (0, 1))
        lines = [(m, part) for m in measures for part in parts if any((m, part, model) in values for model in models)]
        rows = [[*line, *(_cell(line[0], values.get((*line, model))) for model in models)] for line in lines]
        title = of.capitalize() if of == MASKED else f"Linear probe on {of}, dev"
        made.append(Table(title, ("measure", "part", *models), rows, notes[of], named=2))
    return made


def _cell(measure: str, value: float | None) -> str:
    return percent(value) if value is None or measure not in DIGITS else f"{value:,.{DIGITS[measure]}f}"
