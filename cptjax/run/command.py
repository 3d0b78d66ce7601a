"""The commands of runs: train, replay, compare, verify."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tyro.conf import Positional

from cptjax.command import errors
from cptjax.command.escape import say
from cptjax.command.line import Options
from cptjax.command.signals import Signals
from cptjax.files import check_out, naming, write_json, written

if TYPE_CHECKING:  # help is there at once
    from cptjax.config import Run


@dataclass(frozen=True, kw_only=True)
class OfConfig(Options):
    """What the commands of a config take."""

    config: Positional[Path]  # a file of configs/
    passes: float | None = None  # over the text: phases are made longer or shorter to read it so many times in all
    tokens: int | None = None  # of all phases together, instead

    @classmethod
    def passes_on(cls, words: Sequence[str]) -> bool:
        """Other options are for the config."""
        return True

    @classmethod
    def tell_more(cls, words: Sequence[str]) -> None:
        """The fields of the config that is named."""
        if named := [word for word in words if word.endswith(".py")]:
            from cptjax.config import load_config, override

            override(load_config(Path(named[0])), ["--help"])

    def run(self, overrides: Sequence[str]) -> "Run":
        """The run that config and words mean."""
        from cptjax import config
        from cptjax.run.sizing import sized

        return sized(config.override(config.load_config(self.config), overrides), self.passes, self.tokens)


@dataclass(frozen=True, kw_only=True)
class Train(OfConfig):
    """Train a config, or go on with what is in the work folder. Any field of the config can be given too, such as
    --phases.0.tokens 1000: train CONFIG --help lists them, docs/configs.md explains them."""

    workdir: Path  # run folder
    mlm_twin: bool = False  # the matched baseline: no causal phase
    from_step: int | None = None  # go back to this checkpoint, perhaps with another schedule
    branch_from: Path | None = None  # begin with the weights and moments of another run, by a clock of its own
    step: int | None = None  # at this step of it
    strict: bool = False  # stop at what is damaged, do not go on without it
    distributed: str = "auto"  # the other processes: as a launcher says, off, or HOST:PORT,PROCESSES,NUMBER
    join_within: float = 300.0  # seconds in which they must all have come
    stuck_after: float = 60.0  # seconds in which all have ended when one of them is killed, stopped or hangs

    goes_on: ClassVar[bool] = True

    def __call__(self, rest: Sequence[str]) -> None:
        """Join the processes, and train."""
        with Signals() as signals:  # before jax is imported, which takes seconds
            from cptjax.machine import processes

            with processes.joined(signals, self.distributed, self.stuck_after, self.join_within):
                self._train(rest)

    def _train(self, overrides: Sequence[str]) -> None:
        import jax

        from cptjax.machine import host, processes

        is_cpu = host.ready_to_compute()
        if not is_cpu and jax.config.values["jax_compilation_cache_dir"] is None:  # jax's own setting goes before ours
            jax.config.update("jax_compilation_cache_dir", str(host.cache_folder()))

        from cptjax.config import mlm_twin
        from cptjax.run.branch import branched
        from cptjax.train import train

        if self.strict:
            warnings.simplefilter("error", errors.DamageWarning)
        with processes.together():
            run = self.run(overrides)
            run = branched(mlm_twin(run) if self.mlm_twin else run, self.branch_from, self.step)
        folder = train(run, self.workdir, self.from_step)
        say(f"{folder}: trained; plot in {folder / 'plot.png'}, export with python -m convert to-hf {folder} OUT")


@dataclass(frozen=True, kw_only=True)
class Replay(Options):
    """One step of a run again, row by row: what gave a loss that is high or no number. Of the fields of the run's own
    config those can be given that decide no number, such as --mesh.data 1 or --data.stores DIR 1."""

    workdir: Path  # run folder
    step: int  # from 0, as events.jsonl has it
    float32: bool = False  # that step in float32, whatever the run computes in
    out: Path | None = None  # JSON file

    @classmethod
    def passes_on(cls, words: Sequence[str]) -> bool:
        """Other options are for the config."""
        return True

    def __call__(self, rest: Sequence[str]) -> None:
        """Print the table and, if asked, write the JSON."""
        check_out(self.out)
        from cptjax.config import override
        from cptjax.run.replay import replay, run_of, text

        run = override(run_of(self.workdir), rest)
        report = replay(run, self.workdir, self.step, float32=self.float32)
        say(text(report))
        if self.out is not None:
            write_json(self.out, report)


@dataclass(frozen=True, kw_only=True)
class Compare(Options):
    """Runs side by side: what they were told, what they spent, and how their held-out text went."""

    runs: Positional[tuple[Path, ...]]  # run folders, finished or not; others are set beside the first
    out: Path | None = None  # page with the table and pictures

    def __call__(self, rest: Sequence[str]) -> None:
        """Print the table and, if asked, write the page."""
        from cptjax.run import compare

        check_out(self.out)
        runs = compare.sides(self.runs)
        say(compare.text(runs))
        if self.out is not None:
            with naming(self.out), written(self.out) as partial:
                partial.write_text(compare.page(runs), encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Verify(Options):
    """Read all of run folders, token stores and released models, and compare it with the hashes written with it."""

    folders: Positional[tuple[Path, ...]]  # of any of these kinds

    def __call__(self, rest: Sequence[str]) -> int:
        """Print a line for each thing; returns 0 when all are what was written, 1 when not."""
        from cptjax.run.verify import kind_of

        if not self.folders:
            raise ValueError("no folder is given: name a run folder, a token store or a released model")
        kinds = [(kind_of(folder), folder) for folder in self.folders]  # a wrong name is told before anything is read
        count = damaged = 0
        for verdicts, folder in kinds:
            for path, read, damage in verdicts(folder):
                count, damaged = count + 1, damaged + bool(damage)
                say(f"DAMAGED  {damage}" if damage else f"ok       {path}: {read}")
        say(f"{damaged} of {count} are not what was written" if damaged else f"all {count} are what was written")
        return 1 if damaged else 0
