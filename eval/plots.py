"""`python -m eval plot`: differences from a baseline by task, with their intervals, and learning curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tyro.conf import Positional, arg

from cptjax.command.escape import printable, say
from cptjax.command.line import Options
from cptjax.files import check_out, naming, written
from eval.summary import Beside, Results, beside, read_results

FORMATS = (".png", ".svg", ".pdf")


@dataclass(frozen=True, kw_only=True)
class PlotCommand(Options):
    """A forest of differences, and learning curves, from rows."""

    rows: Annotated[Positional[tuple[Path, ...]], arg(metavar="ROWS.jsonl [ROWS.jsonl ...]")]
    out: Annotated[Path, arg(metavar="FILE.png|svg|pdf")]
    baseline: Annotated[str | None, arg(metavar="MODEL")] = None  # without it the first model of the rows
    split: str = "test"

    def __call__(self, rest: Sequence[str]) -> None:
        """Read, count, draw."""
        if not self.rows:
            raise ValueError("no file of rows is given: name at least one")
        if self.out.suffix not in FORMATS:
            raise ValueError(f"{self.out} ends in none of {', '.join(FORMATS)}")
        check_out(self.out, *self.rows)
        results = read_results(self.rows, self.split)
        baseline = results.models[0] if self.baseline is None else self.baseline
        compared, curves = beside(results, baseline), learning_curves(results)
        if not compared and not curves:
            raise ValueError(
                f"nothing stands beside {baseline}, and there are no learning curves: there is nothing to draw"
            )
        plot(compared, baseline, curves, self.out)
        say(f"wrote {self.out}")


Curves = dict[str, dict[str, list[np.ndarray]]]  # by task and model, of each seed: [steps, (step, score)]


def learning_curves(results: Results) -> Curves:
    """The main metric on dev over the steps, where predictions hold it."""
    curves: Curves = {}
    for (model, task), by_seed in results.answered.items():
        if drawn := [np.array(each.head.curve) for each in by_seed.values() if each.head.curve]:
            curves.setdefault(task, {})[model] = drawn
    return curves


def plot(compared: Sequence[Beside], baseline: str, curves: Curves, path: Path) -> None:
    """Draw to a file: each model's differences in one forest, the learning curves of each task below."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(each.task for each in compared))
    models = dict.fromkeys(
        [baseline, *(each.model for each in compared), *(name for of in curves.values() for name in of)]
    )
    colour_of = {model: f"C{number}" for number, model in enumerate(models)}
    heights = ([1 + 0.25 * len(compared)] if compared else []) + [2.5] * len(curves)
    figure = Figure(figsize=(8, 1 + sum(heights)), layout="constrained")
    axes = list(figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    if compared:
        _forest(axes.pop(0), compared, tasks, baseline, colour_of)
    for each, (task, by_model) in zip(axes, curves.items(), strict=True):
        _curves(each, task, by_model, colour_of)
    with naming(path), written(path) as partial:
        figure.savefig(partial, dpi=150)


def _forest(
    axes: Any, compared: Sequence[Beside], tasks: Sequence[str | None], baseline: str, colour_of: dict[str, str]
) -> None:
    models = list(dict.fromkeys(each.model for each in compared))
    for number, model in enumerate(models):
        mine = [each for each in compared if each.model == model]
        y = [tasks.index(each.task) + 0.7 * ((number + 0.5) / len(models) - 0.5) for each in mine]
        x = np.array([100 * each.measured for each in mine])
        ends = 100 * np.array([each.interval or (each.measured, each.measured) for each in mine])
        look = {"color": colour_of[model], "fmt": "o", "markersize": 4, "capsize": 2}
        axes.errorbar(x, y, xerr=np.abs(ends.T - x), label=plain(model), **look)
    axes.axvline(0, color="gray", linewidth=0.8)
    axes.set(yticks=range(len(tasks)), yticklabels=["average" if each is None else plain(each) for each in tasks])
    axes.invert_yaxis()
    axes.set_xlabel(f"points above {plain(baseline)}, with 95 % intervals")
    axes.legend(fontsize="small")


def _curves(axes: Any, task: str, by_model: dict[str, list[np.ndarray]], colour_of: dict[str, str]) -> None:
    for model, drawn in by_model.items():
        for seed, points in enumerate(drawn):
            label = plain(model) if seed == 0 else None
            look = {"color": colour_of[model], "alpha": 0.6, "linewidth": 1, "marker": "."}
            axes.plot(points[:, 0], 100 * points[:, 1], label=label, **look)
    axes.set(title=plain(task), xlabel="optimiser step", ylabel="score on dev, percent")
    axes.locator_params(axis="x", integer=True)
    axes.legend(fontsize="small")


def plain(name: str) -> str:
    """A name as matplotlib shows it: no formula, nothing that steers, nor hides from the legend."""
    shown = printable(name).replace("$", "\\$")
    return f" {shown}" if shown.startswith("_") else shown
