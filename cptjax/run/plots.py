"""Pictures of runs, from their events: one run with its phases, or several over the tokens that they read."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cptjax.files import naming, written

Events = Sequence[Mapping[str, Any]]
BEFORE = 20  # losses that the next is compared with
SPIKE = 10.0  # median deviations of theirs above their median
LEAST_SPIKE = 0.1  # nats


def _plain(name: str) -> str:
    """A name for matplotlib to show as it is: without glyphs it does not know, and no formula."""
    return name.encode("utf-8", "replace").decode().replace("$", "\\$")


def spikes(losses: Sequence[float]) -> list[int]:
    """Numbers of the losses that stand far above those before them."""
    high = []
    for number in range(BEFORE, len(losses)):
        before = np.asarray(losses[number - BEFORE : number])
        median = np.median(before)
        spread = np.median(np.abs(before - median))
        if losses[number] - median > max(LEAST_SPIKE, SPIKE * spread):
            high.append(number)
    return high


def plot(events: Events, path: Path, title: str = "") -> None:
    """Loss, held-out loss and accuracy, and learning rate over the optimiser steps, as a PNG: phases are shaded in
    turn, an objective has one colour throughout, and spikes of the loss and skipped steps are marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 9), layout="constrained")
    loss_axes, accuracy_axes, rate_axes = all_axes = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 1))
    phases = list(dict.fromkeys(event["phase"] for event in events if "loss" in event))
    evaluations = [event for event in events if "held_out" in event]
    objectives = dict.fromkeys(name for event in evaluations for name in event["held_out"])
    colour_of = {name: f"C{number}" for number, name in enumerate(dict.fromkeys([*phases, *objectives]))}
    for number, phase in enumerate(phases):
        steps = [event for event in events if event["phase"] == phase and "loss" in event]
        x, losses = ([event[name] for event in steps] for name in ("step", "loss"))
        colour = colour_of[phase]
        loss_axes.plot(x, losses, color=colour, alpha=0.5, linewidth=0.8, label=f"training, {_plain(phase)}")
        if high := [(event["step"], event["loss"]) for event in steps if "spike" in event]:
            loss_axes.plot(*zip(*high, strict=True), "x", color="red", label="spikes")
        for step in (event["step"] for event in events if event["phase"] == phase and "skipped" in event):
            loss_axes.axvline(step, color="red", linestyle=":", linewidth=0.8)
        rate_axes.plot(x, [event["learning_rate"] for event in steps], color=colour)
        for axes in all_axes:
            axes.axvspan(x[0], x[-1] + 1, color="black", alpha=0.03 + 0.05 * (number % 2), linewidth=0)
        loss_axes.annotate(
            _plain(phase), ((x[0] + x[-1] + 1) / 2, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom"
        )
    for objective in objectives:
        mine = [event for event in evaluations if objective in event["held_out"]]
        x = [event["step"] for event in mine]
        for axes, what in ((loss_axes, "loss"), (accuracy_axes, "accuracy")):
            values = [event["held_out"][objective][what] for event in mine]
            axes.plot(
                x, values, marker="o", markersize=3, color=colour_of[objective], label=f"held out, {_plain(objective)}"
            )
    labels = ("loss (nats a target)", "held-out accuracy", "learning rate")
    for axes, label in zip(all_axes, labels, strict=True):
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    rate_axes.set_xlabel("optimiser step")
    figure.suptitle(_plain(title))
    with naming(path), written(path) as partial:
        figure.savefig(partial, dpi=120)


def together(runs: Mapping[str, Events], objective: str) -> str:
    """Held-out loss and accuracy of an objective, a colour a run, over the millions of tokens that each has read: as an
    element of HTML."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    loss_axes, accuracy_axes = figure.subplots(2, 1, sharex=True)
    for name, events in runs.items():
        read = np.cumsum([0.0, *(event["tokens"] for event in events if "loss" in event)]) / 1e6
        mine = [event for event in events if objective in event.get("held_out", {})]
        x = [read[min(event["step"], len(read) - 1)] for event in mine]
        for axes, what in ((loss_axes, "loss"), (accuracy_axes, "accuracy")):
            values = [event["held_out"][objective][what] for event in mine]
            axes.plot(x, values, marker="o", markersize=3, label=_plain(name))
            axes.set_ylabel(f"held-out {what}")
            axes.grid(alpha=0.3)
    loss_axes.legend(fontsize="small")
    accuracy_axes.set_xlabel("millions of tokens read")
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]
