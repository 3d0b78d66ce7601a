"""Is a sentence in a long text? What a probe reads from the states of frozen models, by length: tables, JSON, a plot.

N layers, T texts (E examples), D width; S seeds of the probe, F fours of pairs, M pairs, C counts of a four: right
answers, pairs.
"""

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cptjax.command.escape import listed, say
from cptjax.corpus.sources import read_all
from cptjax.data.tokenizer import Encoder
from cptjax.files import naming, written
from cptjax.machine import host
from eval.analysis.collect import Opened, collect, open_model
from eval.analysis.command import NeedleCommand
from eval.analysis.haystack import FOUR, Four, make_fours, sizes
from eval.analysis.two_layers import Answered, Asked, answer
from eval.plots import plain
from eval.protocols import Protocol
from eval.render import NOTHING, Table, percent
from eval.statistics import CONFIDENCE, Difference, difference
from eval.tasks.task import Answer, Example
from eval.texts import tokenise

LEAST_LENGTH = 128  # tokens: two needles and as much beside them
CHARACTERS = 10  # that are read for a token; English has half as many
FEWEST_TEXTS = 100  # that are read, where there are so many
LEAST_FOR_INTERVALS = 10  # fours
ALL = "all"  # lengths together
HOLDS_4 = np.array([needle == haystack for needle, haystack in FOUR])

Fours = dict[str, dict[int, list[Four]]]  # by split and length


class Figure(NamedTuple):
    """A share of right answers, or how much more it is than the first model's, and its interval."""

    model: str
    length: str
    measure: str  # accuracy, difference
    value: float
    low: float | None
    high: float | None


def measure(asked: NeedleCommand) -> None:
    """Read all, make pairs, probe each model, write. Raises ValueError for what cannot be asked of these models or
    texts."""
    host.ready_to_compute()
    lengths = lengths_of(asked.lengths)
    models = [open_model(name) for name in dict.fromkeys(asked.models.split(","))]
    _check_reach(models, lengths)
    texts, notes = _read(asked, lengths)
    encoders = [Encoder(model.loaded.folder) for model in models]
    fours = make_fours(encoders[0], texts, lengths, asked.pairs // 4, asked.seed)
    _check_number(asked, fours)
    reads = [_reads(model, encoder, encoders[0], fours) for model, encoder in zip(models, encoders, strict=True)]
    pairs = len(pairs_of(fours, lengths[0]))
    notes += _notes(models, reads, fours)
    say(f"{pairs:,} pairs of each length: {pairs * sum(lengths):,} tokens for each model to read", stream=sys.stderr)
    answered = [_answered(asked, model, read, fours) for model, read in zip(models, reads, strict=True)]
    figures = list(compared([model.name for model in models], [_counts(each, fours) for each in answered]))
    told = _told(asked, models, answered, notes)
    asked.tell(figures, told, tables(figures, notes), partial(plot, figures))


# ---- what is asked


def lengths_of(text: str) -> list[int]:
    """The numbers of tokens that --lengths names, the least first. Raises ValueError where it says something else."""
    if not all(word.isdecimal() and int(word) >= LEAST_LENGTH for word in text.split(",")):
        raise ValueError(f"--lengths {text!r}: it is numbers of tokens such as 512,2048, each at least {LEAST_LENGTH}")
    return sorted({int(word) for word in text.split(",")})


def _check_reach(models: Sequence[Opened], lengths: Sequence[int]) -> None:
    for model in models:
        most = model.loaded.config.longest_document
        if beyond := [str(length) for length in lengths if length > most]:
            raise ValueError(f"{model.name} reads at most {most} tokens: take {listed(beyond)} out of --lengths")


def _read(asked: NeedleCommand, lengths: Sequence[int]) -> tuple[list[str], list[str]]:
    """Texts, as many as the pairs need, and a note where there are more."""
    enough = CHARACTERS * asked.pairs // 4 * lengths[-1]
    texts, characters = [], 0
    for text in read_all(asked.text, asked.reading):
        if characters >= enough and len(texts) >= FEWEST_TEXTS:
            return texts, [f"Of {','.join(asked.text)} the first {len(texts):,} texts are read: they are enough."]
        texts.append(text)
        characters += len(text)
    return texts, []


def _check_number(asked: NeedleCommand, fours: Fours) -> None:
    """Raise ValueError where the texts give fewer pairs than are asked for."""
    number = asked.pairs // 4
    for length in reversed(fours["test"]):
        while any(len(fours[split][length]) < size for split, size in sizes(number).items()):
            number -= 1
        if number < asked.pairs // 4:
            raise ValueError(
                f"{','.join(asked.text)} has text for {4 * number} of {asked.pairs} pairs of {length} tokens: "
                f"{f'give --pairs {4 * number}, more text' if number >= 10 else 'give more text'} or shorter --lengths"
            )


def pairs_of(fours: Fours, length: int) -> list[tuple[str, str]]:
    """Needle and haystack of each pair of a length, in the order of splits, fours and FOUR."""
    every = [four for by_length in fours.values() for four in by_length[length]]
    return [(four.needles[needle], four.haystacks[haystack]) for four in every for needle, haystack in FOUR]


def _reads(model: Opened, encoder: Encoder, first: Encoder, fours: Fours) -> dict[int, int]:
    """How many tokens the longest row of each length has for a model. Raises ValueError where it reads fewer."""
    lengths = list(fours["test"])
    if encoder.tokenizer.to_str() == first.tokenizer.to_str():
        return {length: length for length in lengths}
    config, reads = model.loaded.config, {}
    protocol = Protocol(name="needle", max_length=config.longest_document)
    for length in lengths:
        examples = [Example("", needle, Answer(), second=haystack) for needle, haystack in pairs_of(fours, length)]
        reads[length] = int(tokenise(encoder, config, examples, "single_label", protocol).tokens_E.max())
        if reads[length] > config.longest_document:
            raise ValueError(
                f"{model.name} has another tokenizer, which makes {reads[length]} tokens of a row of {length}, and "
                f"reads at most {config.longest_document}: name it first, or take {length} out of --lengths"
            )
    return reads


def _notes(models: Sequence[Opened], reads: Sequence[dict[int, int]], fours: Fours) -> list[str]:
    """What to read the numbers with."""
    train, dev, test = (4 * len(next(iter(fours[split].values()))) for split in ("train", "dev", "test"))
    notes = [f"Of each length {train:,} pairs train the probe, {dev:,} choose it, {test:,} are asked; chance is 50."]
    for model, read in zip(models[1:], reads[1:], strict=True):
        if list(read) != list(read.values()):
            told = ", ".join(f"{most} of {length}" for length, most in read.items())
            notes.append(f"Rows are measured in tokens of {models[0].name}; {model.name} makes up to {told}.")
    if len(fours["test"]) > 1:
        notes.append("All lengths together have no interval, for they are made of the same texts.")
    if test < 4 * LEAST_FOR_INTERVALS:
        notes.append(f"An interval takes at least {4 * LEAST_FOR_INTERVALS} pairs that are asked.")
    return notes


# ---- what is answered


def _answered(asked: NeedleCommand, model: Opened, reads: dict[int, int], fours: Fours) -> Answered:
    """A probe of the states of all lengths together."""
    states = {}
    for length, most in reads.items():
        needles, haystacks = zip(*pairs_of(fours, length), strict=True)
        made = collect(model, needles, asked.pooling, most, asked.states, second=haystacks, first_layer=-1)
        states[length] = made.state_NTD[0]
    splits, first = [], 0
    for of_split in fours.values():
        last = first + 4 * len(of_split[next(iter(reads))])
        state_MD = np.concatenate([state_MD[first:last] for state_MD in states.values()])
        splits.append(Asked(state_MD, np.resize(HOLDS_4, len(state_MD))))
        first = last
    return answer(*splits, seeds=asked.seeds)


def _counts(answered: Answered, fours: Fours) -> dict[str, np.ndarray]:
    """Right answers and pairs of each four of test, [S, F, C], by length."""
    right_SF4 = answered.yes_SM.reshape(len(answered.yes_SM), -1, len(FOUR)) == HOLDS_4[None, None]
    counts_SFC = np.stack([right_SF4.sum(2), np.full(right_SF4.shape[:2], len(FOUR))], 2)
    of_length = np.split(counts_SFC, len(fours["test"]), axis=1)
    return {**dict(zip(map(str, fours["test"]), of_length, strict=True)), ALL: counts_SFC}


def compared(models: Sequence[str], counts: Sequence[dict[str, np.ndarray]]) -> Iterator[Figure]:
    """Accuracy of each model by length, and how much more than the first model's it is on the same pairs. What is drawn
    again for an interval are fours, for their pairs go together."""
    for model, by_length in zip(models, counts, strict=True):
        for length, counts_SFC in by_length.items():
            half_SFC = np.broadcast_to(np.array([len(FOUR) / 2, len(FOUR)]), counts_SFC.shape)
            above_chance = difference(counts_SFC, half_SFC, _share)
            yield _figure(model, length, "accuracy", above_chance, 0.5, counts_SFC.shape[1])
            if model != models[0]:
                above_first = difference(counts_SFC, counts[0][length], _share)
                yield _figure(model, length, "difference", above_first, 0.0, counts_SFC.shape[1])


def _share(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def _figure(model: str, length: str, measure: str, above: Difference, base: float, fours: int) -> Figure:
    ends = base + np.array(above.interval)
    if ends[0] == ends[1]:  # all right, or all as the other model: draws again are the same, other texts need not be
        ends += np.array([-1, 1]) * (1 - ((1 - CONFIDENCE) / 2) ** (1 / fours))  # Clopper and Pearson 1934, of fours
    ends = np.clip(ends, 2 * base - 1, 1).tolist()  # what seeds add may lead beyond a share
    # Lengths are made of the same texts, so draws of their fours are not draws of texts.
    low, high = ends if fours >= LEAST_FOR_INTERVALS and length != ALL else (None, None)
    return Figure(model, length, measure, base + above.measured, low, high)


# ---- how it is shown


def tables(figures: Sequence[Figure], notes: Sequence[str]) -> list[Table]:
    """Accuracy by length, then differences from the first model, a column for each model; notes below the last."""
    first, made = figures[0].model, []
    for measure in dict.fromkeys(each.measure for each in figures):
        mine = {(each.length, each.model): each for each in figures if each.measure == measure}
        models = dict.fromkeys(model for _, model in mine)
        header = ["tokens", *(cell for model in models for cell in (model, "95 %"))]
        lengths = dict.fromkeys(length for length, _ in mine)
        rows = [[length, *(cell for model in models for cell in _cells(mine[length, model]))] for length in lengths]
        title = {"accuracy": "Needle in a haystack: accuracy", "difference": f"Points above {first}, same pairs"}
        made.append(Table(title[measure], header, rows))
    return [*made[:-1], Table(made[-1].title, made[-1].header, made[-1].rows, notes)]


def _cells(figure: Figure) -> tuple[str, str]:
    return percent(figure.value), NOTHING if figure.low is None else f"{percent(figure.low)} to {percent(figure.high)}"


def _told(
    asked: NeedleCommand, models: Sequence[Opened], answered: Sequence[Answered], notes: Sequence[str]
) -> dict[str, Any]:
    probes = [
        [
            {"learning_rate": rate, "epoch": epoch, "dev_loss": loss}
            for rate, epoch, loss in zip(each.rate_S, each.epoch_S, each.loss_S, strict=True)
        ]
        for each in answered
    ]
    return {
        "models": [
            {"name": model.name, "weights": model.weights, "probes": of_seeds}
            for model, of_seeds in zip(models, probes, strict=True)
        ],
        "text": ",".join(asked.text),
        "pairs": asked.pairs,
        "pooling": asked.pooling,
        "seed": asked.seed,
        "notes": [*notes],
    }


def plot(figures: Sequence[Figure], path: Path) -> None:
    """Accuracy by length, a line for each model, with intervals."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(7, 4.5), layout="constrained")
    axes = canvas.subplots()
    mine = [each for each in figures if each.measure == "accuracy" and each.length != ALL]
    for model in dict.fromkeys(each.model for each in mine):
        own = [each for each in mine if each.model == model]
        y, low, high = (
            100 * np.array([getattr(each, name) for each in own], float) for name in ("value", "low", "high")
        )
        x = [int(each.length) for each in own]
        axes.errorbar(x, y, yerr=np.stack([y - low, high - y]), marker=".", capsize=2, label=plain(model))
    axes.axhline(50, color="gray", linewidth=0.8, label="chance")
    axes.set_xscale("log", base=2)
    ticks = list(dict.fromkeys(int(each.length) for each in mine))
    axes.set_xticks(ticks, [f"{length:,}" for length in ticks])
    axes.set(xlabel="tokens of a row", ylabel="accuracy in percent, with 95 % intervals")
    axes.legend(fontsize="small")
    with naming(path), written(path) as partial:
        canvas.savefig(partial, dpi=150)
