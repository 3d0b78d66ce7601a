"""Fine-tuning a model on a task with all its seeds, and learning rates, in one compiled program; then its answers.

The numbers of a run are those of it alone: its order of texts and what is dropped follow from its seed, and no shape
that a draw has depends on who trains beside it.

R runs, T texts of a step.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from cptjax.command.bar import bar
from cptjax.data.tokenizer import Encoder
from cptjax.machine.host import device_memory
from cptjax.shape import ModelConfig, Precision
from cptjax.step import TrainState
from eval.choose_head import head_of
from eval.heads import Head, Scores
from eval.packed import Piece, Shape, batch, by_text, few_shapes, row_lengths, rows_needed
from eval.problem import Problem
from eval.protocols import Protocol
from eval.tasks.task import Answer
from eval.texts import Text, Texts, tokenise
from eval.update import Programs, programs

THRESHOLDS = tuple(np.arange(0.05, 0.96, 0.05).round(2).tolist())  # tried on dev where the protocol asks for it
STEPS_AHEAD = 2  # that may wait at the device: one who stops a run waits for no more
MEMORY_SHARE = 0.8  # of a device's memory that training may fill: answering has programs of its own


class Run(NamedTuple):
    """One training among those of a task."""

    seed: int
    learning_rate: float


class Look(NamedTuple):
    """What dev said after so many steps, and the threshold it said it with."""

    step: int
    score: float
    threshold: float


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a run."""

    seed: int
    learning_rate: float
    losses: np.ndarray  # of each step
    diverged: bool  # a loss was not finite: there are no answers
    head: Head
    texts: Mapping[str, Texts]  # each split as tokens, the same for all runs
    looks: tuple[Look, ...] = ()
    chosen: Look | None = None  # of the parameters that answered; None without dev
    answers: Mapping[str, list[Answer]] = field(default_factory=dict)  # by split
    scores: Mapping[str, list[Scores]] = field(default_factory=dict)  # by split, where labels of texts have any
    params: Any = None  # where they are kept
    config: ModelConfig | None = None  # their shape
    seconds: float = 0.0  # its share of all that was done together


@dataclass(frozen=True, eq=False)
class Split:
    """The tokens of a split and what is right of them."""

    texts: Texts
    pieces: list[Piece]


@dataclass(frozen=True, eq=False)
class Setting:
    """What all runs share."""

    config: ModelConfig
    params: Any
    problem: Problem
    head: Head
    splits: dict[str, Split]
    programs: Programs
    devices: Sequence[Any]
    sharding: Any


def prepare_splits(config: ModelConfig, encoder: Encoder, problem: Problem, head: Head) -> dict[str, Split]:
    """Each split as tokens with what is right of them."""
    splits = {}
    for name, examples in problem.examples.items():
        texts = tokenise(encoder, config, examples, problem.kind, problem.protocol)
        pieces = [
            Piece(text, head.targets(text, texts.words[text.example], examples[text.example])) for text in texts.texts
        ]
        splits[name] = Split(texts, pieces)
    return splits


def finetune(
    config: ModelConfig,
    params: Any,
    encoder: Encoder,
    problem: Problem,
    seeds: Sequence[int],
    learning_rates: Sequence[float] = (),
    *,
    at_once: int | None = None,
    devices: Sequence[Any] | None = None,
    keep: bool = False,
) -> Iterator[Outcome]:
    """Train a model with each seed at each learning rate (the protocol's own without any), and answer dev and test.

    `at_once` runs train together, as many as fit by default; `devices` share them. Raises ValueError for what no model
    can be trained on.
    """
    setting = setting_of(config, params, encoder, problem, devices or jax.devices()[:1])
    runs = [Run(seed, rate) for rate in learning_rates or (problem.protocol.learning_rate,) for seed in seeds]
    at_once = at_once or fitting(setting, runs)
    for first in range(0, len(runs), at_once):
        yield from _together(setting, runs[first : first + at_once], keep)


def setting_of(config: ModelConfig, params: Any, encoder: Encoder, problem: Problem, devices: Sequence[Any]) -> Setting:
    """What the runs of a model on a task share. Raises ValueError for what no model can be trained on."""
    if not problem.examples.get("train"):
        raise ValueError("there is no text in train: nothing can be learnt")
    head, protocol = head_of(problem), problem.protocol
    sharding = None
    if len(devices) > 1:
        mesh = jax.make_mesh((len(devices),), ("runs",), axis_types=(AxisType.Auto,), devices=devices)
        sharding = NamedSharding(mesh, P("runs"))
    return Setting(
        config,
        params,
        problem,
        head,
        prepare_splits(config, encoder, problem, head),
        programs(config, head, protocol, precision_of(protocol, devices[0].platform), sharding),
        devices,
        sharding,
    )


def precision_of(protocol: Protocol, platform: str) -> Precision:
    """The dtypes that a protocol computes in on such devices."""
    usual = "float32" if platform == "cpu" else "bfloat16"
    return Precision(usual if protocol.precision == "auto" else protocol.precision)


def fitting(setting: Setting, runs: Sequence[Run]) -> int:
    """How many of these runs fit the devices together, at least one on each. On a CPU one on each: together they are
    slower."""
    count = len(setting.devices)
    if setting.devices[0].platform == "cpu" or len(runs) <= count:
        return count
    memory = device_memory(setting.devices[0])
    if not memory:
        return count
    two = memory_of(setting, [*runs[:2]] * count)  # of one alone the compiler makes a program that needs less
    return count * max(1, int(2 * MEMORY_SHARE * memory // two))


def memory_of(setting: Setting, runs: Sequence[Run]) -> int:
    """Bytes of each device that these runs together need: what the compiler says of their largest step, and a copy of
    the parameters that dev likes best so far."""
    step = max(planned(setting, runs), key=lambda step: sum(length * rows for length, rows in step.shape.rows))
    key_R = keys_of(runs)
    state = jax.eval_shape(setting.programs.start, setting.params, key_R)
    state, key_R, (stacked, *rates) = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=setting.sharding),
        (state, key_R, arguments(setting, runs, step)),
    )
    memory = setting.programs.update.lower(state, stacked, key_R, *rates).compile().memory_analysis()
    need = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    need += memory.output_size_in_bytes - memory.alias_size_in_bytes
    if setting.problem.protocol.selection == "best":
        need += sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.params)) // len(setting.devices)
    return need


# ---- which texts a step holds


def order_of(seed: int, split: Split, protocol: Protocol) -> list[list[int]]:
    """Numbers of the pieces of each step: every pass in an order of its own, its last step with what is left."""
    together, size = split.texts.steps_of, protocol.texts_per_step
    a_pass, total = steps_of(split, protocol)
    steps: list[list[int]] = []
    for epoch in range(-(-total // a_pass)):
        drawn = np.random.default_rng([seed, epoch]).permutation(len(together)).tolist()
        steps += [
            [piece for place in drawn[first : first + size] for piece in together[place]]
            for first in range(0, len(together), size)
        ]
    return steps[:total]


def steps_of(split: Split, protocol: Protocol) -> tuple[int, int]:
    """Steps of a pass over a split, and of a whole training."""
    a_pass = -(-len(split.texts.steps_of) // protocol.texts_per_step)
    return a_pass, protocol.steps or protocol.epochs * a_pass


def rate_of(protocol: Protocol, step: int, total: int) -> float:
    """Share of the peak rate at a step, as transformers' get_linear_schedule_with_warmup and its like have it."""
    warmup = int(np.ceil(protocol.warmup * total))
    if step < warmup:
        return step / warmup
    return 1.0 if protocol.schedule == "constant" else (total - step) / max(1, total - warmup)


def step_shapes(orders: Sequence[list[list[int]]], split: Split, texts: int, most_tokens: int) -> list[Shape]:
    """The shape of each step, with room for it in each of the orders."""
    length_T = [len(piece.text.token_L) for piece in split.pieces]
    entities = [len(piece.targets.entity_S3) for piece in split.pieces]
    lengths = row_lengths(length_T, most_tokens)
    needed, most = [], 0
    for steps in zip(*orders, strict=True):
        needs = [rows_needed([length_T[piece] for piece in step], lengths) for step in steps]
        needed.append(tuple(map(max, zip(*needs, strict=True))))
        most = max(most, *(sum(entities[piece] for piece in step) for step in steps))
    return [
        Shape(tuple((length, rows) for length, rows in zip(lengths, each, strict=True) if rows), texts, most)
        for each in few_shapes(needed, lengths)
    ]


# ---- runs that train together


class Step(NamedTuple):
    """A step of runs that train together: its shape, the pieces of each seed, and the share of the peak rate."""

    shape: Shape
    pieces: dict[int, list[int]]
    share: float


def planned(setting: Setting, runs: Sequence[Run]) -> list[Step]:
    """The steps of runs that train together."""
    train, protocol = setting.splits["train"], setting.problem.protocol
    orders = {run.seed: order_of(run.seed, train, protocol) for run in runs}
    texts = protocol.texts_per_step * max(map(len, train.texts.steps_of))
    shapes = step_shapes([*orders.values()], train, texts, setting.config.longest_document)
    return [
        Step(shape, {seed: order[step] for seed, order in orders.items()}, rate_of(protocol, step, len(shapes)))
        for step, shape in enumerate(shapes)
    ]


def arguments(setting: Setting, runs: Sequence[Run], step: Step) -> tuple[Any, np.ndarray, np.ndarray]:
    """What a step takes beside state and keys: the batch of each run, its rate, and that of what is on the encoder."""
    pieces, ahead = setting.splits["train"].pieces, setting.problem.protocol.head_learning_rate
    batches = [batch([pieces[number] for number in step.pieces[run.seed]], step.shape).arrays for run in runs]
    rate_R = np.array([step.share * run.learning_rate for run in runs], np.float32)
    ahead_R = rate_R if ahead is None else np.full_like(rate_R, step.share * ahead)
    return jax.tree.map(lambda *each: np.stack(each), *batches), rate_R, ahead_R


def training(setting: Setting, runs: Sequence[Run]) -> Iterator[tuple[TrainState, jax.Array]]:
    """Train runs together; after each step their state, which the next step destroys, and losses, [R]."""
    put = partial(jax.device_put, device=setting.sharding)
    key_R = put(keys_of(runs))
    state = setting.programs.start(setting.params, key_R)
    for step in planned(setting, runs):
        stacked, rate_R, ahead_R = put(arguments(setting, runs, step))
        state, loss_R = setting.programs.update(state, stacked, key_R, rate_R, ahead_R)
        yield state, loss_R


def keys_of(runs: Sequence[Run]) -> jax.Array:
    """The key of each run, [R]."""
    return jnp.stack([jax.random.key(run.seed) for run in runs])


def _together(setting: Setting, runs: Sequence[Run], keep: bool) -> Iterator[Outcome]:
    began = time.perf_counter()
    spread = [*runs, *[runs[-1]] * (-len(runs) % len(setting.devices))]  # a device with nothing to do repeats the last
    progress, params = _Progress(setting, len(spread)), None
    _, total = steps_of(setting.splits["train"], setting.problem.protocol)
    with bar(total, " steps", "seed " + ", ".join(str(run.seed) for run in runs)) as shown:
        for step, (state, loss_R) in enumerate(training(setting, spread), start=1):
            progress.losses.append(loss_R)
            jax.block_until_ready(progress.losses[max(0, step - 1 - STEPS_AHEAD)])
            params = state.params
            shown.update(1)
            if _is_due(setting, step):
                if not progress.look(params, step):
                    break
                shown.set_postfix(dev=[round(looks[-1].score, 3) for looks in progress.looks if looks])
    params = params if progress.best is None else progress.best
    rest = {name: split for name, split in setting.splits.items() if name not in ("train", *progress.told)}
    told = progress.told | {name: tell(setting, params, split) for name, split in rest.items()}
    seconds = (time.perf_counter() - began) / len(runs)
    for number, run in enumerate(runs):
        yield _outcome(setting, progress, told, run, number, params if keep else None, seconds)


def _is_due(setting: Setting, done: int) -> bool:
    a_pass, total = steps_of(setting.splits["train"], setting.problem.protocol)
    return done % (setting.problem.protocol.evaluate_every or a_pass) == 0 or done == total


class _Progress:
    """What is known of the runs so far: losses, looks at dev, and the parameters of the best where they are chosen."""

    def __init__(self, setting: Setting, runs: int):
        self.setting, self.runs = setting, runs
        self.losses: list[jax.Array] = []
        self.looks: list[list[Look]] = [[] for _ in range(runs)]
        self.chosen: list[Look | None] = [None] * runs
        self.best: Any = None
        self.told: dict[str, list[list[np.ndarray]]] = {}  # of dev, by text, then run: what the chosen look saw

    def finite(self) -> np.ndarray:
        """Whether each run's losses are, so far: [R]."""
        finite_NR = np.isfinite(np.stack([np.asarray(loss_R) for loss_R in self.losses]))
        return np.asarray(finite_NR.all(0))

    def look(self, params: Any, step: int) -> bool:
        """Look at dev, and keep what is best there; returns whether any run can go on."""
        finite_R = self.finite()
        dev, is_last = self.setting.splits.get("dev"), self.setting.problem.protocol.selection == "last"
        if dev is None:
            return bool(finite_R.any())
        told = tell(self.setting, params, dev)
        before_told = self.told.get("dev", told)
        better_R = np.zeros(self.runs, bool)
        for run in np.flatnonzero(finite_R):
            look = Look(step, *best_threshold(self.setting, [score[run] for score in told]))
            self.looks[run].append(look)
            before = self.chosen[run]
            better_R[run] = is_last or before is None or look.score > before.score
            self.chosen[run] = look if better_R[run] else before
        self.told["dev"] = [
            [new if better else old for new, old, better in zip(*each, better_R, strict=True)]
            for each in zip(told, before_told, strict=True)
        ]
        if not is_last:
            keep = self.setting.programs.choose
            self.best = jax.tree.map(jnp.copy, params) if self.best is None else keep(better_R, params, self.best)
        return bool(finite_R.any())


def tell(setting: Setting, params: Any, split: Split) -> list[list[np.ndarray]]:
    """What each run's head makes of each text of a split: by text, then run."""

    def read(score_R: np.ndarray, number: int, row: int, start: int, text: Text) -> list[np.ndarray]:
        return [setting.head.of_text(score, number, row, start, text) for score in score_R]

    work = partial(setting.programs.scores, params)
    return by_text(split.pieces, setting.config.longest_document, work, read)


def best_threshold(setting: Setting, told: Sequence[np.ndarray]) -> tuple[float, float]:
    """The score on dev and the threshold it has it at: the protocol's, or the best of THRESHOLDS."""
    own = setting.problem.protocol.threshold

    def at(threshold: float) -> float:
        answers, _ = setting.head.answers(setting.splits["dev"].texts, told, threshold)
        return setting.problem.score("dev", answers)

    if own != "dev":
        return at(own), own
    return max(
        ((at(threshold), threshold) for threshold in THRESHOLDS), key=lambda pair: (pair[0], -abs(pair[1] - 0.5))
    )


def _outcome(
    setting: Setting, progress: _Progress, told, run: Run, number: int, params: Any, seconds: float
) -> Outcome:
    losses = np.array([float(loss_R[number]) for loss_R in map(np.asarray, progress.losses)], np.float32)
    texts = {name: split.texts for name, split in setting.splits.items()}
    outcome = Outcome(
        *run, losses, not np.isfinite(losses).all(), setting.head, texts, tuple(progress.looks[number]), seconds=seconds
    )
    if outcome.diverged:
        return outcome
    chosen, own = progress.chosen[number], setting.problem.protocol.threshold
    threshold = chosen.threshold if chosen else 0.5 if own == "dev" else own
    answered = {
        name: setting.head.answers(texts[name], [each[number] for each in of_texts], threshold)
        for name, of_texts in told.items()
    }
    return replace(
        outcome,
        chosen=chosen,
        answers={name: answers for name, (answers, _) in answered.items()},
        scores={name: scores for name, (_, scores) in answered.items() if scores is not None},
        params=None if params is None else jax.tree.map(lambda x: np.asarray(x[number]), params),
        config=setting.head.shape(setting.config),
    )
