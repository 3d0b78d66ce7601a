"""Whatever goes wrong in a command: one line, an exit code, no traceback."""

import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

from convert.tensors import write_tensors
from cptjax.command import errors
from cptjax.command.errors import describe, one_line, reading, run_command, silenced
from cptjax.corpus import pool

ROOT = Path(__file__).parents[2]


class Panic(BaseException):
    """As pyo3's PanicException: no Exception."""


def failing(error: BaseException, file: str | None = None):
    def work():
        if file is None:
            raise error
        with reading("the run"), reading(file):
            raise error

    return work


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("a.json: field b"), "a.json: field b (while reading shard_7)"),
        (ValueError("shard_7 is damaged"), "shard_7 is damaged"),
        (FloatingPointError("loss nan"), "loss nan (while reading shard_7)"),
        (
            KeyError("layer_types"),
            "unforeseen KeyError (while reading shard_7): 'layer_types'; --traceback shows where",
        ),
        (Panic("called `unwrap`\nmore"), "unforeseen Panic (while reading shard_7): called `unwrap`; --traceback ..."),
        (MemoryError(), "unforeseen MemoryError (while reading shard_7): MemoryError; --traceback shows where"),
        (RecursionError("too deep"), "unforeseen RecursionError (while reading shard_7): too deep; --traceback ..."),
        (ExceptionGroup("many", [RuntimeError("first"), ValueError()]), "unforeseen RuntimeError: first; --traceback"),
        (ExceptionGroup("many", [OSError("disk full")]), "disk full"),
        (
            json.JSONDecodeError("Expecting value", "", 0),
            "unforeseen JSONDecodeError (while reading shard_7): Expecting",
        ),
        (OSError(5, "Input/output error"), "[Errno 5] Input/output error (while reading shard_7)"),
        (FileNotFoundError(2, "No such file", "words"), "[Errno 2] No such file: 'words'\n"),
        (FileExistsError("out exists"), "out exists\n"),
        (ValueError(), "unforeseen ValueError (while reading shard_7): ValueError; --traceback"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, BaseException) else "",
)
def test_every_error_is_one_line_and_exit_code_2(error, said, capsys):
    # Broken by: `except Exception` in run_command (Panic); no UNFORESEEN; error.args instead of the innermost file;
    # a note for an OSError that names another file.
    assert run_command(failing(error, "shard_7"), []) == 2
    found = capsys.readouterr().err
    assert found.startswith(f"error: {said.removesuffix('...')}") and found.count("\n") == 1
    assert "Traceback" not in found


def test_traceback_is_shown_on_request(capsys):
    # Broken by: OPTION in sys.argv.
    assert run_command(failing(KeyError("x")), ["train", "--traceback"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last)") and "in work" in said
    assert said.splitlines()[-1] == "error: unforeseen KeyError: 'x'; --traceback shows where"


def test_a_line_is_fit_for_a_terminal(capsys):
    # Broken by: no isprintable(); no LONGEST.
    assert one_line("a\n\tb\x1b[2J\x07 \u202ec \udcff é 漢") == r"a b\x1b[2J\x07 \u202ec \udcff é 漢"
    assert len(one_line("x" * 10**6)) < 2100
    assert run_command(failing(ValueError("\x1b]0;title\x07\nsecond")), []) == 2
    assert capsys.readouterr().err == "error: \\x1b]0;title\\x07 second\n"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "stopped\n"),
        (KeyboardInterrupt("the same command goes on"), 130, "stopped; the same command goes on\n"),
        (subprocess.CalledProcessError(3, ["convert"]), 3, ""),
        (subprocess.CalledProcessError(-signal.SIGKILL, ["convert"]), 2, "error: convert was ended by SIGKILL\n"),
    ],
)
def test_what_ends_a_command_is_its_exit_code(error, code, said, capsys):
    # Broken by: 1 for the interrupted; `return error.returncode` for a child that a signal ended (-9, and no word).
    assert run_command(failing(error), []) == code
    assert capsys.readouterr().err == said


def test_work_says_its_own_exit_code():
    # Broken by: `return 0`.
    assert [run_command(lambda: None, []), run_command(lambda: 75, [])] == [0, 75]
    with pytest.raises(SystemExit):
        run_command(failing(SystemExit(2)), [])


def test_damage_is_told_once(capsys):
    # Broken by: `told` not asked.
    def work():
        for message in ("shard 3 is damaged", "shard 4 is damaged", "shard 3 is damaged"):
            with warnings.catch_warnings():  # as jax and numpy do: Python forgets then what it has shown
                errors.warn_of_damage(message)

    assert run_command(work, []) == 0
    assert capsys.readouterr().err == "warning: shard 3 is damaged\nwarning: shard 4 is damaged\n"


def test_a_thread_that_dies_leaves_one_line(capsys):
    # Broken by: no excepthook (a traceback of many lines).
    def work():
        thread = threading.Thread(target=failing(RuntimeError("queue\nfull")))
        thread.start()
        thread.join()

    assert run_command(work, []) == 0
    said = capsys.readouterr().err
    assert said == "warning: a thread ended: unforeseen RuntimeError: queue; --traceback shows where\n"


PRINTING = "from cptjax.command.errors import run_command; import sys; sys.exit(run_command(lambda: print({}), []))"


def shell(script: str, **environment: str) -> tuple[int, str, str]:
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "", **environment},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


class Thrown:
    """Raises when it is thrown away, as a coroutine that nobody ends may."""

    def __del__(self):
        raise ValueError("too late")


@pytest.mark.parametrize(("options", "told"), [([], False), ([errors.OPTION], True)])
@pytest.mark.parametrize("fails", [False, True])
def test_what_is_raised_too_late_is_not_told(capsys, monkeypatch, fails, options, told):
    # Broken by: no hook; no collection, or one while the error that holds the thing is still there.
    monkeypatch.setattr(sys, "unraisablehook", lambda late: print(f"late: {late.exc_value}", file=sys.stderr))

    def work():
        cycle = [Thrown()]
        cycle.append(cycle)
        if fails:
            raise ValueError("no")

    assert errors.run_command(work, options) == (2 if fails else 0)
    gc.collect()
    assert ("late: too late" in capsys.readouterr().err) == told


@pytest.mark.parametrize(("options", "told"), [([], False), ([errors.OPTION], True)])
def test_what_another_language_prints_of_an_error_is_not_told(capsys, options, told):
    # Broken by: sys.excepthook left alone.
    def work():
        ctypes.pythonapi.PyRun_SimpleString(b"raise RuntimeError")  # which prints what it meets

    before = sys.excepthook
    assert errors.run_command(work, options) == 0 and sys.excepthook is before
    assert ("RuntimeError" in capsys.readouterr().err) == told


def test_what_is_printed_may_go_nowhere():
    # Broken by: no _flush in run_command (exit code 120 and "Exception ignored" at the interpreter's end).
    def printing(what: str) -> str:
        return f'{sys.executable} -c "{PRINTING.format(what)}"'

    assert shell(f"{printing('10**6 * chr(97)')} | head -c 1") == (141, "a", "")
    assert shell(f"{printing(1)} >&-") == (0, "", "")
    assert shell(f"{printing(1)} > /dev/full") == (2, "", "error: [Errno 28] No space left on device\n")
    for locale in ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        assert shell(printing("chr(233) + chr(0xdcff)"), **locale) == (0, "\\xe9\\udcff\n", "")


def test_a_bad_setting_of_jax_is_one_line(tmp_path):
    # Broken by: `from convert import from_hf` at the top of convert/__main__.py.
    for command in ("cptjax doctor", f"convert shape {tmp_path}", "eval bench loss"):
        code, _, said = shell(f"{sys.executable} -m {command}", JAX_NUM_CPU_DEVICES="many")
        assert code == 2 and said.startswith("error: ") and said.count("\n") == 1
    assert describe(ImportError("no torch")) == "no torch"


def test_weights_that_cannot_be_written_are_told_with_their_file(tmp_path):
    # Broken by: write_tensors without naming.
    path = tmp_path / "absent" / "model.safetensors"
    with pytest.raises(OSError, match=f"cannot write {path}: "):
        write_tensors(path, {"a": np.zeros(2, np.float32)}, [np.zeros(2, np.float32)], {})


def test_what_rust_prints_of_a_panic_goes_nowhere(capfd):
    # Broken by: `yield` alone in silenced.
    with silenced():
        os.write(2, b"thread panicked at src/lib.rs")
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"


def fails_oddly(task: int) -> None:
    """In a worker: an error that no other process can be given."""
    if task:
        raise Odd(task, "reason")


class Odd(BaseException):
    """It cannot be pickled and made again: its arguments are not those it is made with."""

    def __init__(self, number: int, why: str):
        super().__init__(f"{number} {why}")


def test_an_odd_error_of_a_worker_is_told(tmp_path):
    # Broken by: pool.submit(work, task) (OSError: a worker process died, perhaps for want of memory).
    with pytest.raises(ValueError, match="unforeseen Odd: 1 reason; --traceback shows where"):
        pool.spread(iter, fails_oddly, [[0, 1]], workers=2)
