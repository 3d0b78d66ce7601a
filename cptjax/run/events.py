"""events.jsonl: the log of a run, for reading. No number of run.json comes from it.

An event is one line, an object with the `step` and `phase` it belongs to, and what an update gave (all of UPDATE;
`spike`: its loss stands far above those before), or why it was `skipped`, or an evaluation (`held_out`: objective ->
loss and accuracy; perhaps `filled`: sentence -> for each of its masks words and their probabilities), or norms of the
gradient (`gradients`: part of the model -> norm, null where it is not finite), or seconds alone.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cptjax.command.escape import say
from cptjax.files import naming, written
from cptjax.run.boards import Board

LONGEST = 2**20  # bytes of a line that are read at once: ours have some hundred
LARGEST = 2.0**128  # our numbers were float32, or count steps or seconds
UPDATE = ("loss", "learning_rate", "grad_norm", "tokens", "targets", "seconds")
MEASURED = ("loss", "accuracy")


class EventLog:
    """Writes events.jsonl and what goes on to `boards`, in the first process only.

    Opening it at a step drops what an earlier, killed attempt logged after it: updates from that step on, evaluations
    after the one at `evaluated`. A line that is no event goes to events.unreadable, and that is said.

    Everything is written when it is given and by no other thread, so that what the disk refuses is raised here.
    """

    def __init__(self, folder: Path, step: int, active: bool, evaluated: int, boards: Sequence[Board] = ()):
        self._path, self._boards = folder / "events.jsonl", boards
        self._file: Any = None
        if not active:
            return
        with naming(self._path):
            _rewind(self._path, step, evaluated)
            self._file = self._path.open("a", buffering=1)

    def write(self, event: Mapping[str, Any]) -> None:
        """Append one event; it needs `step` and `phase`. Raises OSError with the file when the disk refuses."""
        if self._file is None:
            return
        with naming(self._path):
            self._file.write(json.dumps(event) + "\n")
        for board in self._boards:
            board.write(event)

    def flush(self) -> None:
        """Put the records of boards on the disk. Raises OSError as `write` does."""
        for board in self._boards:
            board.flush()

    def close(self) -> None:
        """Flush everything to disk. Raises OSError as `write` does."""
        if self._file is not None:
            with naming(self._path):
                self._file.close()
        for board in self._boards:
            board.close()

    def abandon(self) -> None:
        """Close after a failure, which may be that nothing can be written."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        for board in self._boards:
            with contextlib.suppress(OSError):
                board.close(failed=True)


def _rewind(path: Path, step: int, evaluated: int) -> None:
    unreadable, count = path.with_name("events.unreadable"), 0
    with written(path) as partial, partial.open("wb") as kept:
        for line, event in _lines(path):
            if event is None:
                count += 1
                with unreadable.open("ab") as rejected:
                    rejected.write(line)
            elif event["step"] <= (
                evaluated if "held_out" in event else step - bool({"loss", "skipped", "gradients"} & event.keys())
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
    gradients = event.get("gradients", {})
    if not isinstance(gradients, dict):
        return False
    numbers += [norm for norm in gradients.values() if norm is not None]
    return all(isinstance(x, int | float) and abs(x) < LARGEST for x in numbers) and _is_filled(event.get("filled", {}))


def _is_filled(filled: Any) -> bool:
    def every(items: Any, check: Callable[[Any], bool]) -> bool:
        return isinstance(items, list) and bool(items) and all(map(check, items))

    def is_word(pair: Any) -> bool:
        word, share = pair if isinstance(pair, list) and len(pair) == 2 else (None, None)
        return isinstance(word, str) and isinstance(share, int | float) and 0 <= share <= 1

    return isinstance(filled, dict) and all(
        every(masks, lambda words: every(words, is_word)) for masks in filled.values()
    )


def read_events(path: Path) -> list[dict[str, Any]]:
    """All events of a log, none where there is none; lines that are no events are passed over."""
    return [event for _, event in _lines(path) if event is not None]
