"""How a command ends: whatever goes wrong becomes one line on stderr and an exit code, never a traceback.

What a user can mend is raised as ValueError, OSError or FloatingPointError, in words of its own. All else is told with
its type and the file at hand; `--traceback`, an option of every command, shows the rest.
"""

import contextlib
import contextvars
import gc
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cptjax.command.escape import printable
from cptjax.command.signals import Stopped

FORESEEN = (ValueError, OSError, FloatingPointError, ImportError)  # the last: an optional package that is not there
UNFORESEEN = (UnicodeError, json.JSONDecodeError)  # of ValueError, but not in words of ours
OPTION = "--traceback"
LONGEST = 2000  # characters of a line
AT_HAND = "while reading "
_SILENCE = threading.Lock()
_SHOWN = contextvars.ContextVar("tracebacks are shown", default=False)


def run_command(work: Callable[[], int | None], arguments: Sequence[str]) -> int:
    """Do the work of a command and return its exit code: what `work` returns, 0 for None; 2 with one line on stderr
    for whatever it raises; 130 for Ctrl-C, whose message says what to do, and the code of a Stopped; 141, without a
    word, when nobody reads what is printed (`| head`). SystemExit passes: help was printed."""
    _print_anything()
    before = _SHOWN.set(OPTION in arguments)
    try:
        with _nobody_speaks_unasked(OPTION in arguments):
            return _ended(work, arguments)
    finally:
        _SHOWN.reset(before)


def own_command(*words: str) -> list[str]:
    """A command of ours, such as `convert shape FOLDER`, for a process of its own: it shows tracebacks where this one
    does."""
    return [sys.executable, "-m", *words, *[OPTION] * _SHOWN.get()]


def _ended(work: Callable[[], int | None], arguments: Sequence[str]) -> int:
    try:
        with _damage_told():
            code = work() or 0
            _flush()
        return code
    except KeyboardInterrupt as stop:
        where, code = (stop.where, stop.code) if isinstance(stop, Stopped) else ("", 128 + signal.SIGINT)
        _say("; ".join([f"stopped{where}", *map(str, stop.args)]))
        with contextlib.suppress(OSError):
            _flush()
        return code
    except BrokenPipeError:
        _print_nothing()
        return 128 + signal.SIGPIPE
    except SystemExit:
        raise
    except BaseException as error:  # pyo3's PanicException is no Exception
        if OPTION in arguments:
            traceback.print_exception(error)
        if isinstance(error, subprocess.CalledProcessError) and error.returncode > 0:
            return error.returncode  # a command of ours: it said on stderr what was wrong
        _say(f"error: {describe(error)}")
        with contextlib.suppress(OSError):
            _flush()
        return 2


class DamageWarning(UserWarning, ValueError):
    """Something kept is not what was written, and the work goes on without it; `--strict` makes an error of it."""


def warn_of_damage(message: str) -> None:
    """Say in one line what is damaged and how the work goes on."""
    warnings.warn(printable(message), DamageWarning, stacklevel=2)


@contextlib.contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Whatever unforeseen comes out of the block is told with this file; of nested blocks the innermost is named."""
    try:
        yield
    except BaseException as error:
        if not _at_hand(error):
            error.add_note(f"{AT_HAND}{path}")
        raise


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """What other languages print on stderr meanwhile, such as Rust of a panic, goes nowhere. One thread at a time."""
    with _SILENCE:
        try:
            kept = os.dup(2)
        except OSError:  # it is closed
            yield
            return
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def describe(error: BaseException) -> str:
    """What an error says, in one line, and the file at hand, unless it is of the system and names its own; for one that
    nobody foresaw also its type."""
    error = first_of_group(error)
    said = _said(error)
    names_its_own = isinstance(error, OSError) and (error.filename is not None or error.errno is None)
    at_hand = [] if names_its_own else _at_hand(error)
    file = next((f" ({AT_HAND}{path})" for path in at_hand if path not in said), "")
    if isinstance(error, FORESEEN) and not isinstance(error, UNFORESEEN) and said:
        return one_line(f"{said}{file}")
    if isinstance(error, subprocess.CalledProcessError):
        code = error.returncode  # below 0 of a signal, perhaps the system's, for memory
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return one_line(f"{' '.join(map(str, error.cmd))} {how}")
    return one_line(f"unforeseen {type(error).__name__}{file}: {reason(error)}; {OPTION} shows where")


def reason(error: BaseException) -> str:
    """The first line of what an error says, or its type."""
    return next(iter(_said(error).splitlines()), type(error).__name__)


def first_of_group(error: BaseException) -> BaseException:
    """The first error of a group, and of groups inside it; an error by itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _said(error: BaseException) -> str:
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):  # of many files, each with its place
        _, path, why = error.args[0][0]
        return f"cannot write {path}: {why}"
    try:
        return str(error).strip()
    except Exception:  # of a class that a config defines, say
        return ""


def one_line(text: str) -> str:
    """Text as one line that no terminal takes for a command, cut where it is very long."""
    line = " ".join(text.split())
    more = len(line) - LONGEST
    line = f"{line[:LONGEST]}... ({more} characters more)" if more > 0 else line
    return printable(line)


def _at_hand(error: BaseException) -> list[str]:
    """The file that `reading` named, if any; jax leaves notes too."""
    notes = getattr(error, "__notes__", ())
    return [note.removeprefix(AT_HAND) for note in notes if note.startswith(AT_HAND)]


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # stderr may be closed
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _nobody_speaks_unasked(with_tracebacks: bool) -> Iterator[None]:
    """A library's thread that dies leaves one line, not a traceback; who waits for it raises what it raised. What is
    raised where things are thrown away, by Orbax for each array of a damaged checkpoint, was told when it was met; so
    was what a library in another language prints, TensorStore of the loop that waited for it."""

    def tell(died: threading.ExceptHookArgs) -> None:
        if died.exc_value is not None and not issubclass(died.exc_type, SystemExit):
            _say(f"warning: a thread ended: {describe(died.exc_value)}")

    before = threading.excepthook, sys.unraisablehook, sys.excepthook
    threading.excepthook = tell
    if not with_tracebacks:
        sys.unraisablehook = sys.excepthook = lambda *_: None
    gc.freeze()  # or the collection below would look through every module there is
    try:
        yield
    finally:
        gc.collect()  # what the error of a command held is thrown away now, not after the hook is gone
        gc.unfreeze()
        threading.excepthook, sys.unraisablehook, sys.excepthook = before


@contextlib.contextmanager
def _damage_told() -> Iterator[None]:
    """What is damaged is told in one line, once, without the line of the program that says so."""
    with warnings.catch_warnings():
        usual, told = warnings.showwarning, set()

        def show(message, category, *arguments) -> None:
            line = one_line(str(message))
            if not issubclass(category, DamageWarning):
                usual(message, category, *arguments)
            elif line not in told:
                told.add(line)
                _say(f"warning: {line}")

        warnings.showwarning = show
        yield


def _print_anything() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where it is closed
            stream.reconfigure(errors="backslashreplace")  # what a terminal has no character for


def _flush() -> None:
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:
            _print_nothing()
            raise


def _print_nothing() -> None:
    """Stdout takes no more: without this the interpreter would complain when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
