"""Where the numbers of a run's log are shown, too: TensorBoard and Weights & Biases. The first process alone writes.

TensorBoard's files are on our disk: what it refuses is raised, as for the log. Weights & Biases is elsewhere: whatever
fails there is said once, and the run goes on without it.
"""

import contextlib
import secrets
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from cptjax.command.errors import reason
from cptjax.command.escape import say
from cptjax.files import naming

LOGIN, CONNECTING, SENDING = 60, 30, 120  # seconds that Weights & Biases is waited for: an answer, a server, the end


class Board(Protocol):
    """Somewhere that events go."""

    def write(self, event: Mapping[str, Any]) -> None:
        """Show the numbers of an event; it has a `step`."""

    def flush(self) -> None:
        """Keep what was written, whatever happens."""

    def close(self, failed: bool = False) -> None:
        """End it, of a run that failed or not."""


def _numbers(event: Mapping[str, Any]) -> dict[str, float]:
    gradients = {f"gradients/{name}": norm for name, norm in event.get("gradients", {}).items()}
    return {name: value for name, value in {**event, **gradients}.items() if isinstance(value, float)}


class TensorBoard:
    """FOLDER/tensorboard, each file from a step on. All methods raise OSError when the disk refuses.

    Everything is written when it is given and by no other thread, so that what the disk refuses is raised here.
    """

    def __init__(self, folder: Path, step: int):
        with _hidden("torch"):  # tensorboardX imports it where it finds it: seconds, and memory, for nothing
            from tensorboardX.proto import event_pb2
            from tensorboardX.record_writer import RecordWriter
            from tensorboardX.summary import scalar

        self._path, self._scalar = folder / "tensorboard", scalar
        self._messages: Any = event_pb2
        with naming(self._path):
            self._path.mkdir(exist_ok=True)
            name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{step}"
            self._writer = RecordWriter(str(self._path / name))
        self._record(step, file_version="brain.Event:2")
        # TensorBoard then leaves out what earlier files say of this step and those after it.
        self._record(step, session_log=self._messages.SessionLog(status=self._messages.SessionLog.START))

    def _record(self, step: int, **content: Any) -> None:
        record = self._messages.Event(wall_time=time.time(), step=step, **content)
        with naming(self._path):
            self._writer.write(record.SerializeToString())

    def write(self, event: Mapping[str, Any]) -> None:
        """A record for each number."""
        for name, value in _numbers(event).items():
            self._record(event["step"], summary=self._scalar(name, value))

    def flush(self) -> None:
        """Put the records on the disk."""
        with naming(self._path):
            self._writer.flush()

    def close(self, failed: bool = False) -> None:
        """Put the rest on the disk."""
        with naming(self._path):
            self._writer.close()


@contextlib.contextmanager
def _hidden(module: str) -> Iterator[None]:
    """An import of `module` fails in here, unless it was imported before."""
    imported = module in sys.modules
    if not imported:
        sys.modules[module] = cast(Any, None)
    try:
        yield
    finally:
        if not imported:
            del sys.modules[module]


def check_wandb() -> None:
    """Raise ValueError where Weights & Biases is not installed."""
    try:
        # Not the module alone: a folder `wandb` of its runs, in the one that we are in, can be imported too.
        from wandb import init  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("--wandb needs Weights & Biases: pip install wandb, or leave --wandb out") from None


class WeightsAndBiases:
    """A run there: the one of this folder, which an attempt goes on with, a new one for each other `course` that the
    run took. How it is sent, and where it is kept until then, is for its own variables to say, such as WANDB_MODE and
    WANDB_DIR: its folder is full of links, which a run folder must not hold."""

    def __init__(self, folder: Path, project: str, name: str, told: dict[str, Any], course: int):
        self._run: Any = None
        with self._harmless():
            from wandb import Settings, init  # pyright: ignore[reportMissingImports]

            known = folder / "wandb.id"
            if not known.exists():
                known.write_text(secrets.token_hex(8))
            limits = {"login_timeout": LOGIN, "init_timeout": CONNECTING, "finish_timeout": SENDING}
            run = init(
                project=project,
                name=name,
                id=f"{known.read_text()}-{course}",
                resume="allow",
                config=told,
                settings=Settings(silent=True, console="off", **limits),
            )
            run.define_metric("*", step_metric="step")  # its own count of steps never goes back
            where = f"{Path(run.dir).parent}, kept for wandb sync" if run.offline else run.url
            say(f"Weights & Biases: {'disabled' if run.disabled else where}")
            self._run = run

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._run = None
            with contextlib.suppress(OSError):
                say(f"warning: Weights & Biases: {reason(error)}; the run goes on without it", stream=sys.stderr)

    def write(self, event: Mapping[str, Any]) -> None:
        """All numbers at once."""
        if self._run is not None:
            with self._harmless():
                self._run.log({"step": event["step"], **_numbers(event)})

    def flush(self) -> None:
        """Nothing: it is sent by a process of its own."""

    def close(self, failed: bool = False) -> None:
        """Send the rest."""
        if self._run is not None:
            with self._harmless():
                self._run.finish(exit_code=int(failed))
