"""Pictures of runs, from their events: one run with its phases, or several over the tokens that they read."""

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cptjax.files import naming, written

Events = Sequence[Mapping[str, Any]]
BEFORE = 20  # losses that the next is compared with
SPIKE = 10.0  # median deviations of theirs above their median
LEAST_SPIKE = 0.1  # nats
SENTENCES, COLUMNS = 6, 4  # that are shown of a run, and the evaluations of them that have room after the first
LETTERS, LINE = 20, 110  # of a cell, and of a sentence


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


def best_word(mask: Sequence[tuple[str, float]]) -> str:
    """The first of the likeliest words of a mask, with its probability."""
    word, share = mask[0]
    return f"{word} {share:.0%}"


def plot(events: Events, path: Path, title: str = "") -> None:
    """Loss, held-out loss and accuracy, and learning rate over the optimiser steps, as a PNG, and how sentences are
    filled: phases are shaded in turn, an objective has one colour throughout, and spikes of the loss and skipped steps
    are marked."""
    from matplotlib.figure import Figure

    fillings = [event for event in events if event.get("filled")]
    sentences = list(dict.fromkeys(text for event in fillings for text in event["filled"]))
    shown = sentences[:SENTENCES]
    figure = Figure(figsize=(9, 9 + 0.5 * len(shown)), layout="constrained")
    heights = (3, 2, 1, *([0.25 * len(shown)] if shown else []))
    loss_axes, accuracy_axes, rate_axes, *below = all_axes = figure.subplots(
        len(heights), 1, sharex=True, height_ratios=heights
    )
    phases = list(dict.fromkeys(event["phase"] for event in events if "loss" in event))
    evaluations = [event for event in events if "held_out" in event]
    objectives = dict.fromkeys(name for event in evaluations for name in event["held_out"])
    colour_of = {name: f"C{number}" for number, name in enumerate(dict.fromkeys([*phases, *objectives]))}
    for number, phase in enumerate(phases):
        steps = [event for event in events if event["phase"] == phase and "loss" in event]
        x, losses = ([event[name] for event in steps] for name in ("step", "loss"))
        colour = colour_of[phase]
        loss_axes.plot(x, losses, color=colour, alpha=0.5, linewidth=0.8, label=f"training, {_plain(phase)}")
        rate_axes.plot(x, [event["learning_rate"] for event in steps], color=colour)
        for axes in all_axes:
            axes.axvspan(x[0], x[-1] + 1, color="black", alpha=0.03 + 0.05 * (number % 2), linewidth=0)
        loss_axes.annotate(
            _plain(phase), ((x[0] + x[-1] + 1) / 2, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom"
        )
    if high := [(event["step"], event["loss"]) for event in events if "spike" in event]:
        loss_axes.plot(*zip(*high, strict=True), "x", color="red", label="spikes")
    for number, step in enumerate(event["step"] for event in events if "skipped" in event):
        label = None if number else "skipped steps"
        loss_axes.axvline(step, color="red", linestyle=":", linewidth=0.8, label=label)
    for objective in objectives:
        mine = [event for event in evaluations if objective in event["held_out"]]
        x = [event["step"] for event in mine]
        for axes, what in ((loss_axes, "loss"), (accuracy_axes, "accuracy")):
            values = [event["held_out"][objective][what] for event in mine]
            axes.plot(
                x, values, marker="o", markersize=3, color=colour_of[objective], label=f"held out, {_plain(objective)}"
            )
    labels = ("loss (nats a target)", "held-out accuracy", "learning rate")
    for axes, label in zip(all_axes, labels, strict=False):
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    for axes in below:
        _write_filled(axes, fillings, shown, len(sentences))
    all_axes[-1].set_xlabel("optimiser step")
    all_axes[-1].locator_params(axis="x", integer=True)
    figure.align_ylabels()
    figure.suptitle(_plain(title))
    with naming(path), written(path) as partial, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the font has not is drawn as a box
        figure.savefig(partial, dpi=120)


def _write_filled(axes: Any, fillings: Events, shown: Sequence[str], known: int) -> None:
    """Each sentence as a line, and below it its likeliest words, each at the step of its evaluation."""
    kept = _apart([event["step"] for event in fillings])
    for number, text in enumerate(shown):
        top, line = 1 - number / len(shown), " ".join(text.split())
        line = line if len(line) <= LINE else f"{line[: LINE - 3]}..."
        axes.text(
            0.01, top - 0.05 / len(shown), _plain(line), transform=axes.transAxes, fontsize=8, va="top", color="0.35"
        )
        for event in fillings:
            if event["step"] in kept and text in event["filled"]:
                words = ", ".join(map(best_word, event["filled"][text]))
                place = {kept[0]: "left", kept[-1]: "right"} if len(kept) > 1 else {}
                axes.text(
                    event["step"],
                    top - 0.55 / len(shown),
                    _plain(words if len(words) <= LETTERS else f"{words[: LETTERS - 3]}..."),
                    transform=axes.get_xaxis_transform(),
                    fontsize=8,
                    va="top",
                    ha=place.get(event["step"], "center"),
                )
    axes.set_yticks([])
    axes.set_ylabel("filled" if len(shown) == known else f"filled\n({len(shown)} of {known})")


def _apart(steps: Sequence[int]) -> list[int]:
    """Of ascending steps the first and last, and of those between as many as have room beside each other."""
    room, kept = (steps[-1] - steps[0]) / COLUMNS, list(steps[:1])
    for step in steps[1:-1]:
        if step - kept[-1] >= room and steps[-1] - step >= room:
            kept.append(step)
    return [*kept, *steps[1:][-1:]]


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
    figure.align_ylabels()
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]
