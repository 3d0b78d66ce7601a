"""How far each layer of a model moved in each phase of a run, from its checkpoints, in tables, JSON and a plot: the
relative change of weights, the effective rank of the change, and the norms of gradients that the run logged.

O outputs and I inputs of a matrix.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from itertools import groupby
from operator import getitem
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.special import entr

from cptjax.command.bar import bar
from cptjax.command.escape import listed
from cptjax.families import encoder
from cptjax.files import hash_of, naming, written
from cptjax.model import init_params
from cptjax.run import checkpoint
from cptjax.run.checkpoint import ReadParameter, path_keys
from cptjax.run.events import read_events
from cptjax.schedules import phase_bounds
from cptjax.shape import ModelConfig, parameter_names, part_of
from cptjax.sharding import is_stacked
from eval.analysis.collect import open_model
from eval.analysis.command import DriftCommand
from eval.plots import plain
from eval.render import NOTHING, Table
from eval.update import ON_THE_ENCODER

WHOLE = "whole run"  # all phases, in the place of one's name
EVERY = "all"  # of a layer's components together
CHANGE, RANK, LARGEST, GRADIENT = "relative_change", "effective_rank", "largest_rank", "gradient_norm"
HEADS = (*ON_THE_ENCODER, "decoder")  # what one of two models may have, and the other not


class Moved(NamedTuple):
    """One number of a layer (its number, or embeddings, final_norm, head and so on). A component is attn, mlp, norms or
    what is named as the layer is; of ranks it is one of its matrices, such as attn/query."""

    phase: str
    layer: str
    component: str
    measure: str
    value: float | None  # None: of nothing, such as a share of weights that began as 0


class State(NamedTuple):
    """The weights of a model at some time, read one parameter after the other."""

    name: str
    config: ModelConfig
    read: ReadParameter


class Span(NamedTuple):
    """A phase, as far as the run has come, between the numbers of two states."""

    phase: str
    before: int
    after: int


class Course(NamedTuple):
    """The states that a run went through, and the spans between them."""

    states: list[State]
    spans: list[Span]
    events: list[dict[str, Any]]  # with norms of gradients


def measure(asked: DriftCommand) -> None:
    """Read, measure, write. Raises as `drift`."""
    course = _course(Path(asked.run), asked.start)
    moved, notes = _moved(course), _notes(course)
    spans = [
        {"phase": span.phase, "from": course.states[span.before].name, "to": course.states[span.after].name}
        for span in course.spans
    ]
    asked.tell(moved, {"spans": spans, "notes": notes}, tables(moved, course, notes), partial(plot, moved))


def drift(folder: Path, start: str | None = None) -> list[Moved]:
    """How far each layer and component of a run's model moved in each phase and in all of it.

    - relative_change: |W1 - W0| over |W0|, Frobenius norms over all weights of the component.
    - effective_rank: of W1 - W0, matrix by matrix: the exponential of the entropy of its singular values, as shares of
      their sum (Roy and Vetterli 2007, "The effective rank"); largest_rank: what it could be at most.
    - gradient_norm: the mean over the steps that the run logged (`gradients_every`), where it did.

    Products are computed in float64. `start` is the model that the first phase begins with, by folder, Hub id or run
    folder, RUN@STEP a step of it; without it what the run itself began with. With `start`, `folder` may be any such
    model, and is compared with it. Raises FileNotFoundError where there is no such model, ValueError where the start
    cannot be had, for damage, models of other shapes, and weights that are no finite numbers.
    """
    return _moved(_course(folder, start))


# ---- what is compared


def _course(folder: Path, start: str | None) -> Course:
    """What lies between the start and the last checkpoint."""
    facts: dict[str, Any] = {}
    if (folder / checkpoint.MODEL).is_file():
        _, _, facts = checkpoint.find(folder, None)
    first = _named(start) if start is not None else _start(folder, facts)
    if "config" not in facts:
        last = _named(str(folder))
        return Course([first, last], [Span(WHOLE, 0, 1)], [])
    phases, data = facts["config"]["phases"], facts["config"]["data"]
    bounds = phase_bounds(
        tuple(phase["tokens"] for phase in phases), data["global_batch_size"] * data["sequence_length"]
    )
    ends = [min(last, facts["step"]) for before, last in bounds if before < facts["step"]]
    states = [first, *(_at(folder, step) for step in ends)]
    spans = [Span(phase["name"], number, number + 1) for number, phase in enumerate(phases[: len(ends)])]
    if len(spans) > 1:
        spans.append(Span(WHOLE, 0, len(ends)))
    phase_names = {span.phase for span in spans}
    events = [event for event in read_events(folder / "events.jsonl") if "gradients" in event]
    return Course(states, spans, [event for event in events if event["phase"] in phase_names])


def _at(folder: Path, step: int | None) -> State:
    step, config, read = checkpoint.open_params(folder, step)
    return State(f"{folder}@{step}", config, read)


def _named(name: str) -> State:
    loaded = open_model(name).loaded
    return State(name, loaded.config, _in_memory(loaded.params))


def _in_memory(params: Any) -> ReadParameter:
    return lambda path: np.asarray(reduce(getitem, path, params))


def _start(folder: Path, facts: Mapping[str, Any]) -> State:
    """What a run began with: a step of its parent, the model that it was given, or random weights drawn again. Raises
    ValueError where that is not there any more."""
    if "config" not in facts:
        raise ValueError(f"{folder} is no folder of a run that was trained: name what it began as with --from")
    config = facts["config"]
    if branch := config.get("branch"):
        parent, step = Path(branch["folder"]), branch["step"]
        _check_there(folder, parent, branch["folder"])
        if hash_of(checkpoint.find(parent, step)[2]) != facts["parents"][-1]["facts_sha256"]:
            raise ValueError(f"step {step} of {parent} is not the one that {folder} began with: name that with --from")
        return _at(parent, step)
    if config["init"]:
        given = Path(config["init"])  # a run folder, or else converted beside the run
        home = given if (given / checkpoint.MODEL).is_file() else folder / "init"
        _check_there(folder, home, config["init"])
        return _at(home, None)
    shape = checkpoint.model_config(config["model"], where=f"{folder}: model")
    params = jax.jit(init_params, static_argnums=0)(encoder(shape), jax.random.key(config["seed"]))
    return State(f"random weights of seed {config['seed']}", shape, _in_memory(params))


def _check_there(folder: Path, home: Path, name: str) -> None:
    if not (home / checkpoint.MODEL).is_file():
        raise ValueError(f"{folder} began with {name}, whose weights are not in {home}: name that model with --from")


# ---- how far it is


def _moved(course: Course) -> list[Moved]:
    phases, layers = [span.phase for span in course.spans], _layers(course.states[0].config)
    moved = [*_of_weights(course), *(each for each in _of_gradients(course) if each.layer in layers)]
    return sorted(moved, key=lambda each: (phases.index(each.phase), layers.index(each.layer)))


def _layers(config: ModelConfig) -> list[str]:
    """All there may be, from the first to the last."""
    numbers = map(str, range(config.num_hidden_layers))
    return ["embeddings", *numbers, "final_norm", "head", "pooler", "decoder", "classifier"]


def _where(part: str) -> tuple[str, str]:
    """Layer and component of a part (`shape.part_of`)."""
    *layer, component = part.removeprefix("layers/").split("/")
    return "/".join(layer) or component, component


def _of_weights(course: Course) -> Iterator[Moved]:
    squares: dict[tuple[str, str, str], np.ndarray] = defaultdict(lambda: np.zeros(2))  # of the change, of the start
    paths = _shared_paths(course.states)
    with bar(len(paths), " parameters") as shown:
        for path in paths:
            arrays = [_read(state, path) for state in course.states]
            for index, name in enumerate(parameter_names(course.states[0].config, path)):
                own = [array[index] for array in arrays] if is_stacked("/".join(path)) else arrays
                layer, component = _where(part_of(name))
                for phase, before, after in course.spans:
                    change = own[after] - own[before]
                    added = np.square(change).sum(), np.square(own[before]).sum()
                    for each in (EVERY, component):
                        squares[phase, layer, each] += added
                    for matrix, change_OI in _matrices(path[-1], change):
                        place = phase, layer, f"{component}/{matrix}"
                        yield Moved(*place, RANK, effective_rank(change_OI))
                        yield Moved(*place, LARGEST, float(min(change_OI.shape)))
            shown.update()
    for (phase, layer, component), (change, start) in squares.items():
        value = math.sqrt(change / start) if start else None if change else 0.0
        yield Moved(phase, layer, component, CHANGE, value)


def _read(state: State, path: tuple[str, ...]) -> np.ndarray:
    array = np.asarray(state.read(path), np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{state.name} has weights that are no finite numbers ({'/'.join(path)}): take another step")
    return array


def _shared_paths(states: Sequence[State]) -> list[tuple[str, ...]]:
    """Those of all models: heads may be missing. Raises ValueError for what else differs."""
    shapes = [_shapes(state.config) for state in states]
    for state, its in zip(states[1:], shapes[1:], strict=True):
        for path in {**shapes[0], **its}:
            own, other = shapes[0].get(path), its.get(path)
            if own != other and not (path[0] in HEADS and None in (own, other)):
                raise ValueError(
                    f"{states[0].name} and {state.name} are models of other shapes ({'/'.join(path)} is "
                    f"{_told(own)} and {_told(other)}): name a model of the run's shape with --from"
                )
    return [path for path in shapes[0] if all(path in its for its in shapes)]


def _shapes(config: ModelConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(checkpoint.parameter_shapes(config))
    return {path_keys(path): x.shape for path, x in leaves}


def _told(shape: tuple[int, ...] | None) -> str:
    return "not there" if shape is None else str([*shape])


def _matrices(kind: str, change: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The matrices [O, I] that a layer's parameter of this kind is made of, with their names; none of a vector."""
    if kind.endswith("bias") or kind == "scale":
        return
    if kind == "Wqkv":
        yield from zip(("query", "key", "value"), change.reshape(3, -1, change.shape[-1]), strict=True)
    elif kind == "Wi":
        yield from zip(("in", "gate"), change, strict=False)  # some families have no gate
    else:
        yield ("out" if kind == "Wo" else kind), change.reshape(len(change), -1)


def effective_rank(matrix_OI: np.ndarray) -> float | None:
    """From 1, all along one direction, to the smaller side, all directions alike; None of a matrix of zeros."""
    value_N = np.linalg.svd(matrix_OI, compute_uv=False)
    return float(np.exp(entr(value_N / value_N.sum()).sum())) if value_N.any() else None


def _of_gradients(course: Course) -> Iterator[Moved]:
    """Means over the steps of a phase that were logged; a step whose gradient is not finite changed nothing."""
    norms: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for event in course.events:
        if None not in event["gradients"].values():
            squares: dict[tuple[str, str], float] = defaultdict(float)
            for part, norm in event["gradients"].items():
                layer, component = _where(part)
                for each in (EVERY, component):
                    squares[layer, each] += norm**2
            for place, square in squares.items():
                norms[event["phase"], *place].append(math.sqrt(square))
    for place, each in norms.items():
        yield Moved(*place, GRADIENT, float(np.mean(each)))


# ---- what is told


def _notes(course: Course) -> list[str]:
    first, last = course.states[0], course.states[-1]
    notes = [
        "Change is the norm of W1 - W0 over that of W0, over all weights of a component; of weights that began as 0 it "
        "is none.",
        "Effective rank is that of W1 - W0 (Roy and Vetterli 2007), with its share of the largest there can be.",
    ]
    lacking = {path[0] for path in _shapes(first.config).keys() ^ _shapes(last.config).keys()}
    if lacking:
        notes.append(f"Of {first.name} and {last.name} one has no {listed(sorted(lacking))}: left out.")
    if course.events:
        notes.append(f"Norms of gradients are means over {len(course.events)} logged steps, before clipping.")
    else:
        notes.append("No norms of gradients are logged: train writes them with --gradients-every.")
    return notes


OTHERS = "others"  # column of what is named as its layer is: tables of embeddings, a head's dense layer
SUMS = (EVERY, "attn", "mlp", "norms", OTHERS)
RANKED = ("attn/query", "attn/key", "attn/value", "attn/out", "mlp/in", "mlp/gate", "mlp/out", OTHERS)
SHOWN = {
    CHANGE: ("relative change of weights", SUMS),
    RANK: ("effective rank of the change", RANKED),
    GRADIENT: ("mean norm of the gradient", SUMS),
}


def tables(moved: Sequence[Moved], course: Course, notes: Sequence[str]) -> list[Table]:
    """A table for each measure and span, a row a layer; notes below the last."""
    made = []
    for measured, (title, columns) in SHOWN.items():
        for span in course.spans:
            cells: dict[str, dict[str, str]] = defaultdict(dict)
            mine = {each[1:4]: each.value for each in moved if each.phase == span.phase}
            for (layer, component, name), value in mine.items():
                if name == measured:
                    alone = measured == RANK and not layer.isdecimal()  # a row for each of its tables
                    row = f"{layer}/{component.split('/')[-1]}" if alone else layer
                    largest = mine.get((layer, component, LARGEST))
                    cells[row][component if component in columns else OTHERS] = _cell(value, largest)
            if cells:
                used = [name for name in columns if any(name in row for row in cells.values())]
                rows = [[row, *(own.get(name, "") for name in used)] for row, own in cells.items()]
                ends = f"{course.states[span.before].name} to {course.states[span.after].name}"
                made.append(Table(f"{span.phase} ({ends}): {title}", ["layer", *used], rows))
    return [*made[:-1], replace(made[-1], notes=notes)]


def _cell(value: float | None, largest: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:.3g}" if largest is None else f"{value:.1f} ({value / largest:.0%})"


def plot(moved: Sequence[Moved], path: Path) -> None:
    """Relative change by layer, a line for each phase."""
    from matplotlib.figure import Figure

    mine = [each for each in moved if (each.component, each.measure) == (EVERY, CHANGE)]
    layers = list(dict.fromkeys(each.layer for each in mine))
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    for phase, each in groupby(mine, lambda moved: moved.phase):
        by_layer = {moved.layer: moved.value for moved in each}
        values = np.array([by_layer[layer] for layer in layers], float)
        axes.plot(values, ":" if phase == WHOLE else "-", marker=".", label=plain(phase))
    axes.set_xticks(range(len(layers)), layers, rotation=90)
    axes.set(xlabel="layer", ylabel="relative change of weights", ylim=(0, None))
    axes.legend()
    with naming(path), written(path) as partial:
        figure.savefig(partial, dpi=150)
