"""events.jsonl and TensorBoard: the log of a run, for reading. No number of run.json comes from it.

An event is one line, an object with the `step` and `phase` it belongs to, and what an update gave (all of UPDATE;
`spike`: its loss stands far above those before), or why it was `skipped`, or an evaluation (`held_out`: objective ->
loss and accuracy), or seconds alone.
"""

import contextlib
import json
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from cptjax.command.escape import say
from cptjax.files import naming, written

LONGEST = 2**20  # bytes of a line that are read at once: ours have some hundred
LARGEST = 2.0**128  # our numbers were float32, or count steps or seconds
UPDATE = ("loss", "learning_rate", "grad_norm", "tokens", "targets", "seconds")
MEASURED = ("loss", "accuracy")


class EventLog:
    """Writes events.jsonl and TensorBoard's log, in the first process only.

    Opening it at a step drops what an earlier, killed attempt logged after it: updates from that step on, evaluations
    after the one at `evaluated`. A line that is no event goes to events.unreadable, and that is said.

    Everything is written when it is given and by no other thread, so that what the disk refuses is raised here.
    """

    def __init__(self, folder: Path, step: int, active: bool, evaluated: int):
        self._path, self._board_path = folder / "events.jsonl", folder / "tensorboard"
        self._file: Any = None
        self._board: Any = None
        if not active:
            return
        with _hidden("torch"):  # tensorboardX imports it where it finds it: seconds, and memory, for nothing
            from tensorboardX.proto import event_pb2
            from tensorboardX.record_writer import RecordWriter
            from tensorboardX.summary import scalar

        with naming(self._path):
            _rewind(self._path, step, evaluated)
            self._file = self._path.open("a", buffering=1)
        with naming(self._board_path):
            self._board_path.mkdir(exist_ok=True)
            name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{step}"
            self._board = RecordWriter(str(self._board_path / name))
        self._messages: Any = event_pb2
        self._scalar = scalar
        self._record(step, file_version="brain.Event:2")
        # TensorBoard then leaves out what earlier files say of this step and those after it.
        self._record(step, session_log=self._messages.SessionLog(status=self._messages.SessionLog.START))

    def _record(self, step: int, **content: Any) -> None:
        record = self._messages.Event(wall_time=time.time(), step=step, **content)
        with naming(self._board_path):
            self._board.write(record.SerializeToString())

    def write(self, event: Mapping[str, Any]) -> None:
        """Append one event; it needs `step` and `phase`. Raises OSError with the file when the disk refuses."""
        if self._file is None:
            return
        with naming(self._path):
            self._file.write(json.dumps(event) + "\n")
        for name, value in event.items():
            if isinstance(value, float):
                self._record(event["step"], summary=self._scalar(name, value))

    def flush(self) -> None:
        """Put TensorBoard's records on the disk. Raises OSError as `write` does."""
        if self._board is not None:
            with naming(self._board_path):
                self._board.flush()

    def close(self) -> None:
        """Flush everything to disk. Raises OSError as `write` does."""
        for path, log in ((self._path, self._file), (self._board_path, self._board)):
            if log is not None:
                with naming(path):
                    log.close()

    def abandon(self) -> None:
        """Close after a failure, which may be that nothing can be written."""
        for log in (self._file, self._board):
            if log is not None:
                with contextlib.suppress(OSError):
                    log.close()


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


def _rewind(path: Path, step: int, evaluated: int) -> None:
    unreadable, count = path.with_name("events.unreadable"), 0
    with written(path) as partial, partial.open("wb") as kept:
        for line, event in _lines(path):
            if event is None:
                count += 1
                with unreadable.open("ab") as rejected:
                    rejected.write(line)
            elif event["step"] <= (
                evaluated if "held_out" in event else step - bool({"loss", "skipped"} & event.keys())
            ):
                kept.write(line.rstrip(b"\n") + b"\n")
    if count:
        say(f"{path}: {count} of its lines are no events; they are now in {unreadable.name}", stream=sys.stderr)


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Each line of a log with its event, None where it is none; a line that does not end comes in pieces."""
    if path.is_file():
        with path.open("rb") as stream:
            for line in iter(lambda: stream.readline(LONGEST), b""):
                yield line, _event(line)


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):  # the first also of bytes that are no text, and of numbers without end
        return None
    return event if _is_event(event) else None


def _is_event(event: Any) -> bool:
    if not isinstance(event, dict) or not isinstance(event.get("phase"), str):
        return False
    step, held_out = event.get("step"), event.get("held_out", {})
    if not isinstance(step, int) or not 0 <= step < 2**31 or not isinstance(held_out, dict):
        return False
    numbers = [event.get(name) for name in UPDATE] if "loss" in event else []
    for result in held_out.values():
        numbers += [result.get(name) for name in MEASURED] if isinstance(result, dict) else [None]
    return all(isinstance(x, int | float) and abs(x) < LARGEST for x in numbers)  # which NaN is not


def read_events(path: Path) -> list[dict[str, Any]]:
    """All events of a log, none where there is none; lines that are no events are passed over."""
    return [event for _, event in _lines(path) if event is not None]
