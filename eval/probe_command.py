"""`python -m eval probe`: what it takes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from tyro.conf import OmitArgPrefixes, arg

from cptjax.command.line import Options
from cptjax.corpus.command import TextReading, written_values
from cptjax.files import check_out
from eval.render import Format


@dataclass(frozen=True, kw_only=True)
class ProbeCommand(Options):
    """Fill masks in a text, and read tasks from the states of each layer; no weight is changed."""

    model: str  # folders or Hub ids with commas between
    text: tuple[str, ...] = ()  # where masks are filled: files, folders, patterns, data sets; separated by commas
    general: tuple[str, ...] = ()  # text of no domain: words ten times as frequent in --text are the domain's
    reading: OmitArgPrefixes[TextReading] = field(default_factory=TextReading)
    words: int = 500  # drawn; each of their tokens is masked
    length: int = 128  # tokens around a masked one
    task: str | None = None  # names of tasks with commas between, or NAME=FOLDER of your own
    data: Annotated[Path | None, arg(metavar="DIR")] = None  # the folder that the tasks' folders lie in
    examples: str = "train=500,dev=500"  # so many are drawn
    language: str = "en"  # of your own tasks
    protocol: str | None = None  # how texts are cut and marked, by name or Python file; the task's own by default
    format: Format = "text"
    out: Annotated[Path | None, arg(metavar="FILE")] = None  # without it on the terminal

    rules: ClassVar[tuple[Any, ...]] = (written_values,)

    def __call__(self, rest: Sequence[str]) -> None:
        """Probe."""
        check_out(self.out)
        from eval.probe import measure  # late: help is there at once

        measure(self)
