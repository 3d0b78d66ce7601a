"""The rows of a study: one number each, of one arm and seed, all that its page is made of."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cptjax.rows import read_rows
from eval.study.study import Study, Unit, asked_of, units

FIGURES = "figures.jsonl"  # in the work folder


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number of a study, and what is needed to get it again."""

    arm: str
    seed: int
    evaluation: str  # one of study.EVALUATIONS, or a task
    against: str = ""  # the other arm of a likeness
    part: str = ""  # step, layer, phase, seed of fine-tuning
    metric: str
    value: float | None  # None: it diverged, or has no meaning
    settings: str  # hash of all that it depends on
    asked: str = ""  # hash of what the study asked for, wherever texts, weights and tasks lay
    seconds: float  # of the unit; of held-out text those of the run
    devices: str  # with the version of jax
    commit: str | None = None

    @property
    def unit(self) -> Unit:
        """What it was computed with, all at once."""
        return Unit(self.arm, self.seed, self.evaluation, self.against)

    @property
    def of(self) -> tuple[str | int, ...]:
        """What it is of: no two of a study are of the same."""
        return (*self.unit, self.part, self.metric)


def read_figures(path: Path) -> list[Figure]:
    """Those of a file, none where there is none. Raises as `read_rows`."""
    return read_rows(path, kind=Figure) if path.exists() else []


def check_settings(path: Path, figures: Iterable[Figure], wanted: Mapping[Unit, str]) -> None:
    """Raise ValueError for a unit whose figures come from other settings than it has now."""
    for figure in figures:
        if wanted.get(figure.unit, figure.settings) != figure.settings:
            raise _of_other_settings(path, figure)


def of_study(path: Path, study: Study, figures: Sequence[Figure]) -> list[Figure]:
    """The figures of a file that are of a study's arms and seeds, in its order. Raises ValueError for those that were
    made as it does not ask."""
    place = {unit: number for number, unit in enumerate(units(study))}
    own = [figure for figure in figures if figure.unit in place]
    wanted = {unit: asked_of(study, unit) for unit in {figure.unit for figure in own if figure.asked}}
    for figure in own:
        if figure.asked and wanted[figure.unit] != figure.asked:
            raise _of_other_settings(path, figure)
    return sorted(own, key=lambda figure: place[figure.unit])


def _of_other_settings(path: Path, figure: Figure) -> ValueError:
    return ValueError(
        f"{path} has {figure.evaluation} of {figure.arm} with seed {figure.seed} from other settings: give "
        "those again, or another --workdir"
    )
