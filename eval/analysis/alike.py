"""Two models beside each other: CKA by layer, with what seeds and texts add to it, in tables, JSON and a plot.

N layers, T texts, D width, R draws of texts, S estimators.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cptjax.corpus.sources import read_all
from cptjax.files import naming, written
from cptjax.machine import host
from eval.analysis import cka
from eval.analysis.collect import Opened, States, collect, draw, open_model
from eval.analysis.command import CkaCommand
from eval.plots import plain
from eval.render import NOTHING, Table

EVERY, FEW_LESS = "all dimensions", "without massive dimensions"
MEAN = "mean"  # of the layers: the embeddings are none


class Figure(NamedTuple):
    """One number, and its interval over texts."""

    of: str  # dimensions
    estimator: str
    layer: str
    measure: str  # cka, divergence, control (its divergence), ratio (of the two)
    value: float | None
    low: float | None
    high: float | None


def measure(asked: CkaCommand) -> None:
    """Read all, compare, write. Raises ValueError for what cannot be compared."""
    host.ready_to_compute()
    models = [open_model(name) for name in (*asked.models, *([asked.control] if asked.control else []))]
    _check_control(models)
    texts = draw(read_all(asked.texts, asked.reading), asked.samples)
    if len(texts) < cka.LEAST_TEXTS:
        raise ValueError(f"{','.join(asked.texts)} has {len(texts)} texts: CKA takes at least {cka.LEAST_TEXTS}")
    states = [collect(model, texts, asked.pooling, asked.length, asked.states) for model in models]
    if asked.pooling == "token" and len({each.tokens for each in states}) > 1:
        raise ValueError(
            "the models read other tokens, so none of one is one of the other: compare texts, with --pooling mean"
        )
    notes = _notes(models, states, len(texts))
    figures, massive = both([each.state_NTD for each in states])
    if any(each.of == FEW_LESS for each in figures):
        notes += _massive_notes(models, massive)
    else:
        notes.append("No dimension of the models is massive.")
    pair_SNN = cka.every_pair(states[0].state_NTD, states[1].state_NTD)
    told = _told(asked, models, states, massive, pair_SNN, notes)
    drawn = partial(plot, figures, pair_SNN[0], [model.name for model in models])
    asked.tell(figures, told, tables(figures, asked.models, notes), drawn)


def _check_control(models: Sequence[Opened]) -> None:
    first, second, *control = models
    for model in (first, second):
        if control and control[0].weights == model.weights:
            raise ValueError(
                f"the control has the weights of {model.name}: name {second.name} as trained with another seed"
            )


def _notes(models: Sequence[Opened], states: Sequence[States], texts: int) -> list[str]:
    """What to read the numbers with."""
    notes = [f"{texts} texts."]
    if texts < cka.LEAST_FOR_INTERVALS:
        notes.append(f"An interval takes at least {cka.LEAST_FOR_INTERVALS} texts: there is none.")
    widest = max(each.state_NTD.shape[2] for each in states)
    if texts < 2 * widest:
        notes.append(f"So few texts for {widest} dimensions make the plain estimator large: read the debiased one.")
    for model, each in zip(models, states, strict=True):
        if each.cut:
            notes.append(f"{model.name} reads {each.length} tokens of a text: {each.cut} are cut.")
    if models[0].weights == models[1].weights:
        notes.append("The two have the same weights.")
    if len({each.tokens for each in states}) > 1:
        notes.append("The models read other tokens of the same texts: compared are vectors of texts, nothing below.")
    depths = [len(each.state_NTD) - 1 for each in states]
    if len({*depths}) > 1:
        notes.append(
            f"The models have {', '.join(map(str, depths))} layers: compared are those of the same number, up to "
            f"{min(depths)}; the last of each comes after its last norm."
        )
    return notes


def _massive_notes(models: Sequence[Opened], massive: Sequence[Sequence[dict[int, float]]]) -> list[str]:
    """The massive dimensions of each model, in how many layers they are, and their largest share there."""
    notes = []
    for model, of_model in zip(models, massive, strict=True):
        told = []
        for dimension in dict.fromkeys(i for of_layer in of_model for i in of_layer):
            shares = [of_layer[dimension] for of_layer in of_model if dimension in of_layer]
            told.append(f"{dimension} (in {len(shares)} layers, up to {max(shares):.1%} of the variance)")
        notes.append(f"Massive dimensions of {model.name}: {', '.join(told) or 'none'}.")
    return notes


def both(states: Sequence[np.ndarray]) -> tuple[list[Figure], list[list[dict[int, float]]]]:
    """The figures of `compared`, of all layers that the models have, and where any dimension is massive those without
    such; and the massive ones of each model and layer, with their share."""
    layers = min(map(len, states))
    figures = compared(states, layers, EVERY)
    massive = [[cka.massive(state_TD) for state_TD in state_NTD[:layers]] for state_NTD in states]
    if any(of_layer for of_model in massive for of_layer in of_model):
        figures += compared([cka.without_massive(state_NTD) for state_NTD in states], layers, FEW_LESS)
    return figures, massive


def compared(states: Sequence[np.ndarray], layers: int, of: str) -> list[Figure]:
    """The figures of A with B, and of a control with B where there is a third, of the first `layers`, embeddings
    included, and of their mean."""
    first_NTD, second_NTD, *control = states
    chosen_RT = cka.draws(first_NTD.shape[1])
    alike_RSN, *control_RSN = cka.by_layer([first_NTD, *control], second_NTD, chosen_RT, layers)
    figures = []
    for number, estimator in enumerate(cka.ESTIMATORS):
        by_measure = {"cka": alike_RSN[:, number], "divergence": 1 - alike_RSN[:, number]}
        if control:
            by_measure["control"] = 1 - control_RSN[0][:, number]
        by_measure = {name: _with_mean(drawn_RN) for name, drawn_RN in by_measure.items()}
        if control:
            with np.errstate(invalid="ignore", divide="ignore"):
                control_RN = by_measure["control"]
                by_measure["ratio"] = by_measure["divergence"] / np.where(
                    np.abs(control_RN) > cka.ROUNDING, control_RN, np.nan
                )
        for layer in range(layers + 1):
            for name, drawn_RN in by_measure.items():
                drawn_R = drawn_RN[:, layer]
                value = float(drawn_R[0]) if np.isfinite(drawn_R[0]) else None
                low, high = cka.interval(drawn_R) or (None, None)
                figures.append(Figure(of, estimator, MEAN if layer == layers else str(layer), name, value, low, high))
    return figures


def _with_mean(drawn_RN: np.ndarray) -> np.ndarray:
    """The mean over layers after them, which the embeddings, first, are no part of."""
    return np.concatenate([drawn_RN, drawn_RN[:, 1:].mean(1, keepdims=True)], 1)


def tables(figures: Sequence[Figure], models: Sequence[str], notes: Sequence[str]) -> list[Table]:
    """A table for each estimator with and without massive dimensions; notes below the last."""
    made = []
    for of, estimator in dict.fromkeys((each.of, each.estimator) for each in figures):
        mine = {(each.layer, each.measure): each for each in figures if (each.of, each.estimator) == (of, estimator)}
        header = ["layer", "CKA", "1 - CKA", "95 %"]
        if controlled := (MEAN, "ratio") in mine:
            header += ["control", "ratio", "95 %"]
        rows = []
        for layer in dict.fromkeys(layer for layer, _ in mine):
            own = mine[layer, "divergence"]
            cells = [layer if layer != "0" else "embeddings", _cell(mine[layer, "cka"].value), _cell(own.value)]
            cells.append(_interval(own))
            if controlled:
                ratio = mine[layer, "ratio"]
                cells += [_cell(mine[layer, "control"].value), _cell(ratio.value), _interval(ratio)]
            rows.append(cells)
        made.append(Table(f"{models[0]} and {models[1]}: {estimator} linear CKA, {of}", header, rows))
    notes = [*notes, "The mean is over layers, without the embeddings; its ratio is that of the means."]
    return [*made[:-1], Table(made[-1].title, made[-1].header, made[-1].rows, notes)]


def _cell(value: float | None) -> str:
    return NOTHING if value is None else f"{value:z.4f}"  # no -0.0000


def _interval(figure: Figure) -> str:
    return NOTHING if figure.low is None else f"{_cell(figure.low)} to {_cell(figure.high)}"


def _told(
    asked: CkaCommand,
    models: Sequence[Opened],
    states: Sequence[States],
    massive: Sequence[Sequence[dict[int, float]]],
    pair_SNN: np.ndarray,
    notes: Sequence[str],
) -> dict[str, Any]:
    roles = ("a", "b", "control")
    told = {
        role: {
            "name": model.name,
            "weights": model.weights,
            "tokens": each.tokens,
            "cut": each.cut,
            "massive": of_model,
        }
        for role, model, each, of_model in zip(roles, models, states, massive, strict=False)
    }
    return {
        "models": told,
        "texts": {"source": ",".join(asked.texts), "number": states[0].state_NTD.shape[1], "length": asked.length},
        "pooling": asked.pooling,
        "every_pair": {
            name: [[float(x) if np.isfinite(x) else None for x in row] for row in pair_NN]
            for name, pair_NN in zip(cka.ESTIMATORS, pair_SNN, strict=True)
        },
        "notes": [*notes],
    }


def plot(figures: Sequence[Figure], pair_NN: np.ndarray, models: Sequence[str], path: Path) -> None:
    """Divergence by layer, with intervals and the control's, and plain CKA between all layers of the two models."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(12, 5), layout="constrained")
    left, right = canvas.subplots(1, 2)
    by_layer = [each for each in figures if each.layer != MEAN]
    for number, (of, estimator) in enumerate(dict.fromkeys((each.of, each.estimator) for each in figures)):
        for name, style in (("divergence", "-"), ("control", ":")):
            mine = [each for each in by_layer if (each.of, each.estimator, each.measure) == (of, estimator, name)]
            if mine:
                x = [int(each.layer) for each in mine]
                y, low, high = (
                    np.array([getattr(each, field) for each in mine], float) for field in ("value", "low", "high")
                )
                label = f"{estimator}, {of}" + (", control" if name == "control" else "")
                left.plot(x, y, style, color=f"C{number}", marker=".", label=label)
                left.fill_between(x, low, high, color=f"C{number}", alpha=0.15, linewidth=0)
    left.set(xlabel="layer (0: embeddings)", ylabel="1 - CKA, with 95 % intervals")
    left.legend(fontsize="small")
    for axes, axis in ((left, "x"), (right, "both")):  # layers
        axes.locator_params(axis=axis, integer=True)
    image = right.imshow(pair_NN, origin="lower", vmin=0, vmax=1, cmap="viridis")
    right.set(title="plain CKA", xlabel=f"layer of {plain(models[1])}", ylabel=f"layer of {plain(models[0])}")
    canvas.colorbar(image, ax=right)
    with naming(path), written(path) as partial:
        canvas.savefig(partial, dpi=150)
