"""The page of a study, made of nothing but the study and its figures: the same figures give the same bytes."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas

from cptjax.command.escape import markdown
from cptjax.command.page import escape
from cptjax.config import Phase
from cptjax.files import write_text
from eval.analysis.alike import EVERY, MEAN
from eval.analysis.cka import ESTIMATORS, ROUNDING
from eval.analysis.drift import EVERY as EVERY_COMPONENT
from eval.render import NOTHING, Table, as_html, as_markdown, percent
from eval.statistics import over_seeds
from eval.study.figures import FIGURES, Figure, of_study
from eval.study.study import CKA, DRIFT, HELD_OUT, Comparison, Study, control_seed
from eval.tables import points

HELD_OUT_NAME, AVERAGE = "held-out accuracy", "average of tasks"
DEBIASED = ESTIMATORS[1]

Scores = Mapping[str, Mapping[str, Mapping[int, float]]]  # by name of the score, arm and seed


def write_page(study: Study, figures: Sequence[Figure], folder: Path) -> list[Path]:
    """page.md, with its pictures beside it, and page.html, with them inside; returns the two. Raises ValueError for
    figures of other settings."""
    figures = of_study(folder / FIGURES, study, figures)
    made, drawn = tables(study, figures), pictures(study, figures)
    for name, picture in drawn.items():
        write_text(folder / f"{name}.svg", picture)
    linked = "\n\n".join(f"![{name}]({name}.svg)" for name in drawn)
    head = f"# Study: {markdown(study.name)}\n\n{markdown(study.question)}\n"
    paths = [folder / "page.md", folder / "page.html"]
    write_text(paths[0], f"{head}\n{as_markdown(made)}\n{linked}\n")
    inline = "\n".join(picture[picture.index("<svg") :] for picture in drawn.values())
    write_text(paths[1], as_html(made, f"Study: {study.name}", f"<p>{escape(study.question)}</p>", inline))
    return paths


# ---- tables


def tables(study: Study, figures: Sequence[Figure]) -> list[Table]:
    """All that the figures say: differences first, then what they are made of."""
    by_score = scores(study, figures)
    made = [_compared(each, by_score) for each in study.comparisons if by_score]
    made += [
        _scores(study, by_score),
        *_likeness(study, figures),
        *_drift(study, figures),
        _runs(study),
        _spent(figures),
    ]
    return [table for table in made if table.rows]


def scores(study: Study, figures: Sequence[Figure]) -> Scores:
    """Each score by arm and seed: accuracy on held-out text under the last phase's objective, at the last step; the
    mean of each task's fine-tunings; and the average of all tasks, where there are several."""
    by_score: dict[str, dict[str, dict[int, float]]] = {}
    for arm in study.arms:
        wanted = f"{arm.change(study.run).phases[-1].name} accuracy"
        for seed in study.seeds:
            mine = [each for each in figures if (each.arm, each.seed) == (arm.name, seed)]
            by_step = {int(each.part): each.value for each in _of(mine, HELD_OUT) if each.metric == wanted}
            if (value := by_step[max(by_step)] if by_step else None) is not None:
                by_score.setdefault(HELD_OUT_NAME, {}).setdefault(arm.name, {})[seed] = value
            means = []
            for task in study.task_names:
                if values := [each.value for each in _of(mine, task) if each.value is not None]:
                    means.append(mean(values))
                    by_score.setdefault(task, {}).setdefault(arm.name, {})[seed] = means[-1]
            if len(means) == len(study.task_names) > 1:
                by_score.setdefault(AVERAGE, {}).setdefault(arm.name, {})[seed] = mean(means)
    return by_score


def _of(figures: Sequence[Figure], evaluation: str) -> list[Figure]:
    return [each for each in figures if each.evaluation == evaluation]


def differences(by_arm: Mapping[str, Mapping[int, float]], arm: str, against: str) -> list[float]:
    """Of the seeds that both arms have."""
    first, second = by_arm.get(arm, {}), by_arm.get(against, {})
    return [first[seed] - second[seed] for seed in first if seed in second]


def _compared(asked: Comparison, by_score: Scores) -> Table:
    rows, header = [], [f"less {asked.against}", *by_score]
    if asked.gain:
        header.append("share of the gain")
    for arm in asked.arms:
        cells = [_difference(differences(by_arm, arm, asked.against)) for by_arm in by_score.values()]
        if asked.gain:
            cells.append(_share(asked, arm, by_score))
        rows.append([arm, *cells])
    notes = [
        "Points: mean over the seeds that both have, with Student's 95 % interval (seeds). Texts are the same in all."
    ]
    if asked.gain:
        notes.append(
            f"The share is that of the mean gain of {asked.gain} in the last column of scores, over the seeds that all "
            "three have: none where the interval of that gain does not lie above 0. Tables are not corrected for how "
            "many differences they hold."
        )
    return Table(asked.title, header, rows, notes)


def _difference(values: Sequence[float]) -> str:
    if not values:
        return NOTHING
    interval = over_seeds(values)
    between = "" if interval is None else f" ({points(interval[0])} to {points(interval[1])})"
    return f"{points(mean(values))}{between} [{len(values)}]"


def _share(asked: Comparison, arm: str, by_score: Scores) -> str:
    by_arm = [*by_score.values()][-1]
    arms = [by_arm.get(name, {}) for name in (arm, asked.gain or "", asked.against)]
    seeds = [seed for seed in arms[0] if all(seed in of_arm for of_arm in arms)]
    own, whole = ([of_arm[seed] - arms[2][seed] for seed in seeds] for of_arm in arms[:2])
    interval = over_seeds(whole)
    return NOTHING if interval is None or interval[0] <= 0 else f"{mean(own) / mean(whole):.0%}"


def _scores(study: Study, by_score: Scores) -> Table:
    rows = []
    for arm in study.arms:
        values = [[*by_arm.get(arm.name, {}).values()] for by_arm in by_score.values()]
        rows.append([arm.name, *(_mean(each) for each in values)])
    notes = ["Percent: mean over seeds ± standard deviation (seeds)."]
    return Table("Scores", ("arm", *by_score), rows if by_score else [], notes)


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {percent(stdev(values))}" if len(values) > 1 else ""
    return f"{percent(mean(values))}{spread} ({len(values)})" if values else NOTHING


def _likeness(study: Study, figures: Sequence[Figure]) -> list[Table]:
    """1 - CKA by layer of each pair, beside what another seed does, and their ratio, as means over seeds."""
    made = []
    for pair in study.likeness.pairs if study.likeness else ():
        mine = [each for each in figures if each.evaluation == CKA and (each.arm, each.against) == pair]
        for of in dict.fromkeys(each.metric.split(", ")[1] for each in mine if each.value is not None):
            rows = []
            for layer in dict.fromkeys(each.part for each in mine if each.value is not None):
                beside = [_beside(study, mine, layer, estimator, of) for estimator in ESTIMATORS]
                name = "embeddings" if layer == "0" else layer
                rows.append([name, *(cell for each in beside for cell in _cells(*each)), str(len(beside[1][0]))])
            columns = [f"{estimator}{what}" for estimator in ESTIMATORS for what in ("", ", control", ", ratio")]
            notes = [
                "1 - CKA, mean over seeds; the control is the second arm with another seed, each two seeds once; the "
                "ratio is of the means."
            ]
            title = f"{pair[0]} and {pair[1]}: how far their layers are apart, {of}"
            made.append(Table(title, ["layer", *columns, "seeds"], rows, notes))
    return made


def _beside(
    study: Study, figures: Sequence[Figure], layer: str, estimator: str, of: str
) -> tuple[list[float], list[float]]:
    """How far a layer is apart, of the seeds that have a control too, and the controls, each two seeds once."""
    by_seed = [
        {
            each.seed: each.value
            for each in figures
            if (each.part, each.metric) == (layer, f"{estimator} {what}, {of}") and each.value is not None
        }
        for what in ("divergence", "control")
    ]
    both = [seed for seed in by_seed[0] if seed in by_seed[1]]
    controls = {frozenset((seed, control_seed(study, seed))): by_seed[1][seed] for seed in both}
    return [by_seed[0][seed] for seed in both], [*controls.values()]


def _cells(apart: Sequence[float], control: Sequence[float]) -> list[str]:
    if not apart:
        return [NOTHING] * 3
    means = mean(apart), mean(control)
    ratio = means[0] / means[1] if abs(means[1]) > ROUNDING else None
    return [*(f"{x:z.4f}" for x in means), NOTHING if ratio is None else f"{ratio:.2f}"]


def _drift(study: Study, figures: Sequence[Figure]) -> list[Table]:
    """How far each layer moved in each phase, as means over seeds, a column for each arm that has the phase itself."""
    by_place: dict[str, dict[str, dict[str, list[float]]]] = {}
    for each in _of(figures, DRIFT):
        if each.metric == EVERY_COMPONENT and each.value is not None:
            phase, layer = each.part.rsplit("/", 1)
            by_place.setdefault(phase, {}).setdefault(layer, {}).setdefault(each.arm, []).append(each.value)
    made = []
    for phase, by_layer in by_place.items():
        arms = [arm.name for arm in study.arms if any(arm.name in by_arm for by_arm in by_layer.values())]
        rows = [
            [layer, *(f"{mean(by_arm[arm]):.4f} ({len(by_arm[arm])})" if arm in by_arm else NOTHING for arm in arms)]
            for layer, by_arm in by_layer.items()
        ]
        notes = ["The norm of the change of weights over that of the weights before, mean over seeds (seeds)."]
        made.append(Table(f"How far each layer moved in the phase {phase}", ("layer", *arms), rows, notes))
    return made


def _runs(study: Study) -> Table:
    rows = [[arm.name, "; ".join(map(_phase, arm.change(study.run).phases))] for arm in study.arms]
    run = study.run
    notes = [
        f"Steps of {run.data.global_batch_size} rows of {run.data.sequence_length} tokens; seeds "
        f"{', '.join(map(str, study.seeds))}, of masks, new weights and the order of the text."
    ]
    return Table("Runs", ("arm", "phases"), rows, notes, named=2)


def _phase(phase: Phase) -> str:
    frozen = f", frozen {' '.join(phase.frozen)}" if phase.frozen else ""
    return f"{phase.name} {phase.tokens:,} tokens, rate {phase.schedule.peak:g}{frozen}"


def _spent(figures: Sequence[Figure]) -> Table:
    by_unit = {each.unit: each for each in figures}.values()
    rows = []
    for name, devices in dict.fromkeys((each.evaluation, each.devices) for each in by_unit):
        seconds = [each.seconds for each in by_unit if (each.evaluation, each.devices) == (name, devices)]
        what = "training, with its evaluations" if name == HELD_OUT else name
        rows.append([what, devices, str(len(seconds)), f"{mean(seconds):,.0f}", f"{sum(seconds):,.0f}"])
    return Table("Spent", ("what", "on", "times", "seconds each", "seconds"), rows, named=2)


# ---- pictures


def pictures(study: Study, figures: Sequence[Figure]) -> dict[str, str]:
    """SVG by name: held-out accuracy over the steps, and likeness by layer."""
    drawers: dict[str, Callable[[Any], bool]] = {
        "held_out": lambda axes: _draw_held_out(axes, study, figures),
        "cka": lambda axes: _draw_likeness(axes, study, figures),
    }
    return {name: svg for name, draw in drawers.items() if (svg := _drawn(draw))}


def _drawn(draw: Callable[[Any], bool]) -> str:
    canvas, drawn = Canvas(figsize=(8, 4.5), layout="constrained"), io.StringIO()
    axes = canvas.subplots()
    if not draw(axes):
        return ""
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    axes.locator_params(axis="x", integer=True)  # steps, or layers
    with mpl.rc_context({"svg.hashsalt": "study", "svg.fonttype": "none"}):  # the same bytes each time
        canvas.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()


def _draw_held_out(axes: Any, study: Study, figures: Sequence[Figure]) -> bool:
    drawn = False
    for arm in study.arms:
        metric = f"{arm.change(study.run).phases[-1].name} accuracy"
        by_step: dict[int, list[float]] = {}
        for each in figures:
            if (each.arm, each.evaluation, each.metric) == (arm.name, HELD_OUT, metric) and each.value is not None:
                by_step.setdefault(int(each.part), []).append(each.value)
        if by_step:
            steps = sorted(by_step)
            axes.plot(steps, [100 * mean(by_step[step]) for step in steps], marker=".", label=arm.name)
            drawn = True
    axes.set(xlabel="optimiser step", ylabel="masked held-out tokens right, percent", title="Mean over seeds")
    return drawn


def _draw_likeness(axes: Any, study: Study, figures: Sequence[Figure]) -> bool:
    drawn = False
    for pair in study.likeness.pairs if study.likeness else ():
        mine = [each for each in figures if each.evaluation == CKA and (each.arm, each.against) == pair]
        layers = sorted({int(each.part) for each in mine if each.value is not None and each.part != MEAN})
        beside = {layer: _beside(study, mine, str(layer), DEBIASED, EVERY) for layer in layers}
        beside = {layer: each for layer, each in beside.items() if each[0]}
        for number, look, label in ((0, "-", " and ".join(pair)), (1, ":", f"{pair[1]}, two seeds")):
            if beside:
                axes.plot([*beside], [mean(each[number]) for each in beside.values()], look, marker=".", label=label)
                drawn = True
    axes.set(xlabel="layer, 0 the embeddings", ylabel=f"1 - {DEBIASED} CKA", title="How far layers are apart")
    return drawn
