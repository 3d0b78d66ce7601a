"""The command that tells the whole story."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cptjax.command.line import Options


@dataclass(frozen=True, kw_only=True)
class Demo(Options):
    """The whole story on this machine in minutes."""

    workdir: Path = Path("runs/demo")  # made anew, unless this very demo was interrupted there
    text: tuple[Path, ...] = ()  # your own text instead of the demo's
    init: str | None = None  # your own encoder, a folder or Hub id, instead of a small one that the demo trains

    goes_on: ClassVar[bool] = True

    def __call__(self, rest: Sequence[str]) -> None:
        """Run it."""
        from cptjax.demo.story import demo  # late: help is there at once

        demo(self.workdir, self.text, self.init)
