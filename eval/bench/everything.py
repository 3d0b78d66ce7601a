"""What tells most of a device, in the minutes there are: other benches, the most telling first.

Each is a process of its own: what fails or runs out of its time takes nothing from the next, and what it had measured
is kept. This process leaves the device to them.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from cptjax.command.line import Options
from cptjax.files import check_out, read_json, write_json

RESULT, TABLE = "bench.json", "bench.txt"
PLATFORM = "import jax; print(jax.default_backend())"
SHARE = 0.5  # of the minutes that are left, at most, for one bench
LEAST = 0.02  # of all minutes: with less left no bench is begun
GRACE = 15.0  # seconds that it has to write what it knows
SIZES = {  # how large each bench is, on a CPU and on an accelerator
    "attention": ("--lengths 512 2048", "--lengths 8192 2048 512 --dtype bfloat16"),
    "step": (
        "--shapes 1x512 --objectives mlm clm",
        "--shapes 1x8192 4x8192 16x8192 --sizes base large --objectives mlm clm",
    ),
    "step --packed": ("--shapes 1x512", "--shapes 4x8192 --sizes base large --objectives mlm clm"),
    "compare": ("--lengths 512 --peers sdpa", "--lengths 8192 2048 --rows 4 --peers sdpa --objectives mlm clm"),
    "loss": ("", ""),
    "rounding": ("", ""),
}
NEED_TORCH = ("compare", "rounding")


def benches(on_cpu: bool) -> dict[str, list[str]]:
    """The words after `python -m` of each bench, by its name."""
    return {"doctor": ["cptjax", "doctor"]} | {
        name: ["eval", "bench", *name.split(), *sizes[0 if on_cpu else 1].split()]
        for name, sizes in SIZES.items()
        if name not in NEED_TORCH or find_spec("torch")
    }


def measure(words: Sequence[str], out: Path, table: TextIO, seconds: float) -> dict[str, Any]:
    """Run one bench for so long at most, its lines going to the terminal and the `table`, a text file; what it was,
    how it ended, and what it wrote to `out`."""
    began = time.perf_counter()
    line = [sys.executable, "-m", *words, "--out", str(out)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    timers = [threading.Timer(seconds, process.terminate), threading.Timer(seconds + GRACE, process.kill)]
    for timer in timers:
        timer.start()
    last = ""
    try:
        for last in process.stdout or ():
            _print(last.rstrip("\n"), table)
        code = process.wait()
    finally:
        process.kill()
        for timer in timers:
            timer.cancel()
    took = time.perf_counter() - began
    ended = "whole" if code == 0 else "out of its time" if took >= seconds else f"exit code {code}: {last.strip()}"
    result = read_json(out) if out.is_file() else None
    return {"command": " ".join(words), "seconds": took, "ended": ended, "result": result}


@dataclass(frozen=True, kw_only=True)
class EverythingBench(Options):
    """What tells most of this device, in the minutes there are."""

    out: Path  # folder that is made, for bench.json, bench.txt and the file of each bench
    minutes: float = 8.0  # of all together

    def __call__(self, rest: Sequence[str]) -> int:
        """Measure; 1 where a bench failed. Raises ValueError for minutes that are not above 0, OSError where the folder
        cannot be made."""
        if not self.minutes > 0:
            raise ValueError(f"--minutes is {self.minutes}: it must be above 0")
        if self.out.exists():
            raise FileExistsError(f"{self.out} is there: name a new folder")
        check_out(self.out)
        self.out.mkdir()
        seconds = 60 * self.minutes
        end = time.perf_counter() + seconds
        done: dict[str, Any] = {}
        with open(self.out / TABLE, "w", encoding="utf-8") as table:
            for name, words in benches(platform() == "cpu").items():
                if (left := end - time.perf_counter()) < LEAST * seconds:
                    done[name] = {"command": " ".join(words), "ended": "not begun"}
                    continue
                _print(f"== {name}, {left / 60:.1f} minutes left", table)
                done[name] = measure(words, self.out / f"{name.replace(' ', '_')}.json", table, SHARE * left)
                write_json(self.out / RESULT, {"minutes": self.minutes, "benches": done})
            failed = False
            for name, result in done.items():
                failed |= result["ended"].startswith("exit code")
                if result["ended"] != "whole":
                    _print(f"{name}: {result['ended']}", table)
        write_json(self.out / RESULT, {"minutes": self.minutes, "benches": done})
        return 1 if failed else 0


def platform() -> str:
    """jax's name of the device that is here, asked in a process that then leaves it."""
    asked = subprocess.run([sys.executable, "-c", PLATFORM], stdout=subprocess.PIPE, text=True, check=True)
    return asked.stdout.strip()


def _print(line: str, table: TextIO) -> None:
    for stream in (sys.stdout, table):
        print(line, file=stream, flush=True)
