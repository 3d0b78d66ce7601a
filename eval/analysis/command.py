"""`python -m eval cka`, `drift`, `transplant` and `needle`: what they take."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from cptjax.command.escape import say
from cptjax.command.line import Options
from cptjax.corpus.command import TextReading, written_values
from cptjax.files import check_out, write_json
from eval.plots import FORMATS
from eval.render import RENDERED, Format, Table, csv_lines, put

Pooling = Literal["mean", "cls", "token"]
Component = Literal["attn", "mlp", "all"]


@dataclass(frozen=True, kw_only=True)
class Report(Options):
    """How an analysis is told."""

    format: Format = "text"
    out: Annotated[Path | None, arg(metavar="FILE")] = None  # of the tables; without it on the terminal
    json: Annotated[Path | None, arg(metavar="FILE")] = None  # every number
    plot: Annotated[Path | None, arg(metavar="FILE.png|svg|pdf")] = None

    def check(self) -> None:
        """Raise ValueError or OSError for what could not be written once all is measured."""
        if self.plot and self.plot.suffix not in FORMATS:
            raise ValueError(f"{self.plot} ends in none of {', '.join(FORMATS)}")
        for path in (self.out, self.json, self.plot):
            check_out(path)

    def tell(
        self, figures: Sequence[Any], told: Mapping[str, Any], tables: Sequence[Table], draw: Callable[[Path], None]
    ) -> None:
        """Write what is asked for: figures, which are named tuples, with what else is `told` of them; the plot that
        `draw` makes; tables, or the figures as lines."""
        lines = [each._asdict() for each in figures]
        if self.json:
            write_json(self.json, {**told, "figures": lines})
            say(f"wrote {self.json}")
        if self.plot:
            draw(self.plot)
            say(f"wrote {self.plot}")
        csv = self.format == "csv"
        put(csv_lines(figures[0]._fields, lines) if csv else RENDERED[self.format](tables), self.out)


def _check_states(folder: Path | None) -> None:
    if folder and folder.is_file():
        raise NotADirectoryError(f"{folder} is a file: name a folder for --states")


@dataclass(frozen=True, kw_only=True)
class CkaCommand(Report):
    """How alike two models are, layer by layer, on texts. A model is a folder, a Hub id or a run folder; RUN@STEP is a
    step of a run."""

    models: Annotated[Positional[tuple[str, str]], arg(metavar="A B")]
    control: str | None = None  # B trained with another seed: how far seeds alone take it
    texts: tuple[str, ...]  # files, folders, patterns, data sets; separated by commas
    reading: OmitArgPrefixes[TextReading] = field(default_factory=TextReading)
    samples: int = 500  # texts that are drawn
    length: int = 512  # tokens of a text; what is longer is cut
    pooling: Pooling = "mean"  # of a text: all tokens, the first, one that is drawn
    states: Annotated[Path | None, arg(metavar="DIR")] = None  # where states are kept, and read again

    rules: ClassVar[tuple[Any, ...]] = (written_values,)

    def __call__(self, rest: Sequence[str]) -> None:
        """Measure."""
        for name, least in (("samples", 4), ("length", 8)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} is {getattr(self, name)}: at least {least}")
        self.check()
        _check_states(self.states)
        from eval.analysis.alike import measure  # late: help is there at once

        measure(self)


@dataclass(frozen=True, kw_only=True)
class DriftCommand(Report):
    """How far each layer of a model moved in each phase of a run, from its checkpoints. With --from any model may stand
    in the place of the run: a folder, a Hub id or a run folder; RUN@STEP is a step of a run."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    start: Annotated[str | None, arg(name="from", metavar="MODEL")] = None  # without it what the run began with

    def __call__(self, rest: Sequence[str]) -> None:
        """Measure."""
        self.check()
        from eval.analysis.drift import measure  # late: help is there at once

        measure(self)


@dataclass(frozen=True, kw_only=True)
class TransplantCommand(Options):
    """Model A with layers of model B, as a folder that every other command takes. A model is named as for cka."""

    models: Annotated[Positional[tuple[str, str]], arg(metavar="A B")]
    layers: Annotated[str, arg(metavar="LIST")]  # such as 0-7,12; or all, or none
    component: Component = "all"  # of these layers: attention, the feed-forward, each with its norm, or all
    out: Annotated[Path, arg(metavar="DIR")]
    overwrite: bool = False  # replace DIR

    def __call__(self, rest: Sequence[str]) -> None:
        """Make it."""
        from eval.analysis.transplant import write  # late: help is there at once

        write(self)


@dataclass(frozen=True, kw_only=True)
class NeedleCommand(Report):
    """Whether a sentence is in a long text, read from the state of a frozen model by a probe of two layers. A model is
    named as for cka."""

    models: Annotated[Positional[str], arg(metavar="MODEL[,MODEL...]")]
    text: tuple[str, ...]  # what pairs are made of: files, folders, patterns, data sets; separated by commas
    reading: OmitArgPrefixes[TextReading] = field(default_factory=TextReading)
    lengths: str = "512,1024,2048,4096,8192"  # tokens of a row: both texts of a pair, and what stands around them
    pairs: int = 1500  # of each length; 70 % train the probe, 15 % choose it, 15 % are asked
    pooling: Literal["cls", "mean"] = "cls"  # the state of the first token, or the mean of all
    seeds: int = 5  # trainings of the probe
    seed: int = 0  # of the pairs
    states: Annotated[Path | None, arg(metavar="DIR")] = None  # where states are kept, and read again

    rules: ClassVar[tuple[Any, ...]] = (written_values,)

    def __call__(self, rest: Sequence[str]) -> None:
        """Measure."""
        for name, least in (("pairs", 40), ("seeds", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} is {getattr(self, name)}: at least {least}")
        if self.pairs % 4:
            raise ValueError(f"--pairs is {self.pairs}: a multiple of 4, for two needles and two haystacks make four")
        self.check()
        _check_states(self.states)
        from eval.analysis.needle import measure  # late: help is there at once

        measure(self)
