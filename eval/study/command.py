"""`python -m eval study`: what it takes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from tyro.conf import OmitArgPrefixes, Positional, arg

from cptjax.command.escape import say
from cptjax.command.line import Options
from cptjax.corpus.command import TextReading, written_values
from cptjax.files import locked


@dataclass(frozen=True, kw_only=True)
class StudyCommand(Options):
    """Train and measure the runs of a study, what is not done yet, and write its page. Any field of their config can be
    given too, such as --init MODEL, the same for all runs."""

    study: Annotated[Positional[Path], arg(metavar="FILE.py")]  # a file of configs/studies
    workdir: Annotated[Path, arg(metavar="DIR")]  # runs, figures and the page
    minutes: float | None = None  # begin nothing that would not end in them; 0 writes the page alone
    data: Annotated[Path | None, arg(metavar="TASKS")] = None  # the folder that the tasks' folders lie in
    texts: tuple[str, ...] = ()  # that the likeness of layers is measured on: files, folders; separated by commas
    reading: OmitArgPrefixes[TextReading] = field(default_factory=TextReading)

    goes_on: ClassVar[bool] = True
    rules: ClassVar[tuple[Any, ...]] = (written_values,)

    @classmethod
    def passes_on(cls, words: Sequence[str]) -> bool:
        """Other options are for the config."""
        return True

    def __call__(self, rest: Sequence[str]) -> None:
        """Do what is left, then write what all figures say."""
        if self.minutes is not None and not 0 <= self.minutes < math.inf:
            raise ValueError(f"--minutes is {self.minutes:g}: at least 0, which writes the page alone")
        import jax

        from cptjax.config import override
        from cptjax.corpus.sources import read_all
        from cptjax.machine import host
        from eval.analysis.collect import draw
        from eval.study.figures import read_figures
        from eval.study.page import write_page
        from eval.study.study import load_study
        from eval.study.work import Place, work

        study = load_study(self.study)
        study = replace(study, run=override(study.run, rest))
        place = Place(study, self.workdir, self.data)
        if self.minutes != 0:
            if study.likeness:
                place = replace(place, texts=draw(read_all(self.texts, self.reading), study.likeness.samples))
            host.ready_to_compute()
            if jax.config.values["jax_compilation_cache_dir"] is None:  # jax's own setting goes before ours
                jax.config.update("jax_compilation_cache_dir", str(host.cache_folder()))
            work(place, self.minutes)
        with locked(self.workdir, wait=True):
            for path in write_page(study, read_figures(place.figures), self.workdir):
                say(f"wrote {path}")
