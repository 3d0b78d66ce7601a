"""The commands of the benches: each a dataclass whose fields are its options. What they measure with is imported when
they do it: their help is there at once."""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from cptjax.command.line import Options
from cptjax.files import check_out

LARGEST = 2**31 - 1  # side of an array


def several(name: str, read: Callable[[str], Any] = str) -> PrimitiveConstructorSpec:
    """How an option that takes one word or more is written: `name` stands for each, which `read` makes a value."""

    def values(words: list[str]) -> tuple[Any, ...]:
        if not words:
            raise ValueError(f"no {name} is given: name at least one, or leave the option out")
        return tuple(map(read, words))

    def written(given: Sequence[Any]) -> list[str]:
        return ["x".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in given]

    return PrimitiveConstructorSpec("*", f"{name} [{name} ...]", values, lambda _: True, written)


def written_shapes(names: str) -> PrimitiveConstructorSpec:
    """Shapes of arrays, each written with an x between its sides: 2x512 where `names` is ROWSxTOKENS."""

    def sides(word: str) -> tuple[int, ...]:
        numbers = tuple(map(whole_number, word.split("x")))
        if len(numbers) != names.count("x") + 1:
            raise ValueError(f"{word!r} is not {names}: so many whole numbers with an x between them")
        return numbers

    return several(names, sides)


def whole_number(text: str) -> int:
    """A number from 1 on that an array's side may have."""
    if not 1 <= (number := int(text)) <= LARGEST:
        raise ValueError(f"{text!r} is no whole number from 1 to {LARGEST}")
    return number


Count = Annotated[
    int, PrimitiveConstructorSpec(1, "INT", lambda words: whole_number(words[0]), lambda _: True, lambda n: [str(n)])
]
Lengths = Annotated[tuple[int, ...], several("INT", whole_number)]
Names = Annotated[tuple[str, ...], several("NAME")]


@dataclass(frozen=True, kw_only=True)
class Bench(Options):
    """What every bench takes."""

    out: Path | None = None  # JSON file

    bench: ClassVar[str]  # the file beside this one whose `run` measures
    needs: ClassVar[str | None] = None  # a package that nothing else asks for

    def __call__(self, rest: Sequence[str]) -> None:
        """Measure, once the file can be written. Raises ValueError where a package is not there."""
        check_out(self.out)
        if self.needs is not None and importlib.util.find_spec(self.needs) is None:
            raise ValueError(f"bench {self.bench} needs {self.needs}, which is not here: pip install {self.needs}")
        self.work()

    def work(self) -> None:
        """Print what is measured and, if asked, write the JSON."""
        importlib.import_module(f"eval.bench.{self.bench}").run(self)


@dataclass(frozen=True, kw_only=True)
class TimedBench(Bench):
    """A bench that takes time by the clock."""

    rounds: Count = 5


@dataclass(frozen=True, kw_only=True)
class AttentionBench(TimedBench):
    """Every backend of attention: errors, speed, memory."""

    backends: Names = ()  # all without it; splash off a TPU only when named, interpreted
    lengths: Lengths = (512, 2048, 8192)  # tokens of a row
    rows: Count = 1
    heads: Count = 12
    width: Count = 64  # of a head
    dtype: Literal["float32", "bfloat16"] = "float32"

    bench: ClassVar[str] = "attention"


@dataclass(frozen=True, kw_only=True)
class LossBench(TimedBench):
    """The chunked loss, beside the plain one."""

    shapes: Annotated[tuple[tuple[int, int, int], ...], written_shapes("TOKENSxVOCABxWIDTH")] = ((8192, 50368, 768),)

    bench: ClassVar[str] = "loss"


@dataclass(frozen=True, kw_only=True)
class ModelBench(Bench):
    """Which models' steps are measured."""

    sizes: Names = ("base",)  # of base, large
    objectives: Names = ("mlm",)  # of mlm, clm


@dataclass(frozen=True, kw_only=True)
class StepBench(ModelBench, TimedBench):
    """A training step of ours alone."""

    shapes: Annotated[tuple[tuple[int, int], ...], written_shapes("ROWSxTOKENS")] = ((2, 512), (1, 2048))
    packed: bool = False  # several documents in a row, and padding

    bench: ClassVar[str] = "step"


@dataclass(frozen=True, kw_only=True)
class CompareBench(ModelBench, TimedBench):
    """A training step, beside PyTorch's."""

    lengths: Lengths = (512, 2048, 8192)  # tokens of a row
    rows: Count = 1
    peers: tuple[str, ...] = ("eager", "sdpa", "flex", "compile")  # transformers' ways of attention
    forward: bool = False  # the forward pass alone, loss included
    plot_file: Annotated[Path | None, arg(name="plot", metavar="FILE.png")] = None  # speed and memory by length

    bench: ClassVar[str] = "compare"
    needs: ClassVar[str | None] = "torch"


@dataclass(frozen=True, kw_only=True)
class FinetuneBench(TimedBench):
    """A fine-tuning, beside transformers' and PyTorch's."""

    model: str  # folder or Hub id
    task: str  # names of tasks with commas between, or NAME=FOLDER of your own
    data: Annotated[Path | None, arg(metavar="DIR")] = None  # the folder that the tasks' folders lie in
    seeds: Count = 5  # of each side
    steps: Count = 80
    texts: Count = 8  # of a step; train is a draw of as many as make one pass
    learning_rate: float = 1e-4
    test_examples: Count = 1000  # drawn, for the scores; the exported model is asked of all
    rounds: Count = 30  # steps that are timed

    bench: ClassVar[str] = "finetune"
    needs: ClassVar[str | None] = "torch"


@dataclass(frozen=True, kw_only=True)
class RoundingBench(ModelBench):
    """The error of a bfloat16 gradient, beside PyTorch's autocast."""

    shapes: Annotated[tuple[tuple[int, int], ...], written_shapes("ROWSxTOKENS")] = ((1, 512),)

    bench: ClassVar[str] = "rounding"
    needs: ClassVar[str | None] = "torch"


@dataclass(frozen=True, kw_only=True)
class ConvertBench(TimedBench):
    """A conversion, beside transformers'."""

    bench: ClassVar[str] = "convert"
    needs: ClassVar[str | None] = "torch"


@dataclass(frozen=True, kw_only=True)
class DataBench(TimedBench):
    """Reading a token store, and planning its rows."""

    store: Path | None = None  # token store to read; a generated one without it

    bench: ClassVar[str] = "data"


@dataclass(frozen=True, kw_only=True)
class PrepareBench(TimedBench):
    """Preparing text, beside the tokenizer alone."""

    source: Path  # file or folder of text
    tokenizer: Path  # folder with tokenizer.json

    bench: ClassVar[str] = "prepare"
    needs: ClassVar[str | None] = "psutil"


@dataclass(frozen=True, kw_only=True)
class DecideBench(Bench):
    """Which documents of a corpus stay: seconds, memory and disk, of made-up facts without text."""

    documents: Annotated[tuple[int, ...], several("INT", whole_number)] = (1_000_000,)  # a decision for each number
    scratch: Path | None = None  # a folder on the disk to be used; without it where temporary files go

    bench: ClassVar[str] = "decide"
