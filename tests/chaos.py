"""Runs of one, two and four processes that are killed, stopped, told to end, damaged and starved at random, until they
have ended: every loss must be that of a run that nobody touched, and damage must be named or change nothing.

    python -m tests.chaos --minutes 20 --seed 0 --out chaos.json

Bounded, on loopback, in a temporary folder. Each attempt goes on with the run, on as many processes as are drawn for
it: damage is done before it begins, one fault more while it starts up or works. A disk is filled where `unshare` lets
this program mount one in memory; storage is slow where `strace` is at hand; what cannot be tried is said.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from cptjax.run import checkpoint
from cptjax.run.events import read_events
from tests.fixtures_run import CONFIG, ROOT
from tests.fixtures_text import WORDS, make_store, make_tokenizer

DEVICES, STUCK_AFTER, JOIN_WITHIN, LIMIT = 4, 15, 25, 300  # of all processes together; seconds; of an attempt
STEPS, EVERY, LENGTH = 48, 8, 128  # steps of the run and between checkpoints, tokens of a row: a save is short beside
STARTING_UP = 12.0  # seconds, about
TOLERANCE = 1e-6  # relative, of a loss: sums over devices of several processes
SIGNALS = {
    "kill one": signal.SIGKILL,
    "kill all": signal.SIGKILL,
    "stop one": signal.SIGSTOP,
    "ask one": signal.SIGTERM,
}
HARMS = ("flip", "cut", "delete")
PLACES = ("checkpoint", "store")  # the newest one; a file of either is harmed
DISK = 64 * 2**20  # bytes
SLOW = "fsync,fdatasync,rename,mkdir,pwrite64"  # calls that take up to this many microseconds longer
MOST_SLOW = 400_000
# What is damaged, in a line.
NAMES = ("is damaged", "cannot read", "is missing", "has changed", "copy the", "it holds no", "is not JSON")


@dataclass
class Tally:
    """What became of the faults, by kind."""

    faults: Counter = field(default_factory=Counter)
    found: Counter = field(default_factory=Counter)  # damage that was named
    harmless: Counter = field(default_factory=Counter)  # damage that changed nothing
    undecided: Counter = field(default_factory=Counter)  # damage to what nobody came to read
    early: int = 0  # faults that met processes which had not made a step yet
    other_counts: int = 0  # attempts that went on with a run on another number of processes
    lost: Counter = field(default_factory=Counter)  # attempts by the steps that they left unsaved
    lost_on_slow_storage: Counter = field(default_factory=Counter)
    slowest: dict[str, float] = field(default_factory=dict)  # seconds until the last process had ended
    runs: int = 0  # that came to their end
    not_tried: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """Where the runs of this program are, and what may be done to them."""

    config: Path
    store: Path
    folder: Path
    disk: Path | None  # a small one, of which the folder is part

    def command(self, count: int, slow: int = 0) -> list[subprocess.Popen]:
        """The processes of an attempt, with storage that is so many microseconds slower."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = []
        for index in range(count):
            place = f"127.0.0.1:{port},{count},{index}" if count > 1 else "off"
            line = [sys.executable, "-m", "cptjax", "train", str(self.config), "--workdir", str(self.folder)]
            line += ["--distributed", place, "--stuck-after", str(STUCK_AFTER), "--join-within", str(JOIN_WITHIN)]
            if slow:
                inject = f"inject={SLOW}:delay_exit={slow}"
                line = ["strace", "-D", "-f", "-qqq", "--seccomp-bpf", "-o", os.devnull, "-e", inject, *line]
            env = os.environ | {
                "JAX_NUM_CPU_DEVICES": str(DEVICES // count),
                "JAX_PLATFORMS": "cpu",
                "JAX_COMPILATION_CACHE_DIR": str(self.config.with_name("compiled")),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "PYTHONPATH": str(ROOT),
            }
            with self.said(index).open("w") as out:
                started.append(subprocess.Popen(line, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT))
        return started

    def said(self, index: int) -> Path:
        """What a process of the last attempt printed."""
        return self.config.with_name(f"said_{index}")

    def losses(self) -> dict[int, float]:
        """The loss of each step of the log."""
        return {e["step"]: e["loss"] for e in read_events(self.folder / "events.jsonl") if "loss" in e}

    def made(self) -> int:
        """How many steps the log has."""
        return max(self.losses(), default=-1) + 1

    def logged(self) -> int:
        """When the log was last written."""
        log = self.folder / "events.jsonl"
        return log.stat().st_mtime_ns if log.exists() else 0


def harm(path: Path, how: str, draws: random.Random) -> str:
    """Damage one file of a folder; its name."""
    file = draws.choice(sorted(file for file in path.rglob("*") if file.is_file() and file.stat().st_size))
    content = file.read_bytes()
    if how == "delete":
        file.unlink()
    elif how == "cut":
        file.write_bytes(content[: draws.randrange(len(content))])
    else:
        at = draws.randrange(len(content))
        file.write_bytes(content[:at] + bytes([content[at] ^ (1 << draws.randrange(8))]) + content[at + 1 :])
    return str(file.relative_to(path.parent))


def strike(fault: str, processes: list[subprocess.Popen], place: Place, draws: random.Random) -> None:
    """Let this fault happen."""
    if fault == "full disk":
        assert place.disk is not None
        with (place.disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(2**16))
        return
    for process in processes if fault == "kill all" else [draws.choice(processes)]:
        process.send_signal(SIGNALS[fault])


def wait(until: Callable[[], bool], seconds: float) -> float:
    """How long it took until this was so, or these seconds."""
    began = time.monotonic()
    while not until() and time.monotonic() - began < seconds:
        time.sleep(0.02)
    return time.monotonic() - began


def attempt(place: Place, faults: list[str], slow: bool, count: int, draws: random.Random, tally: Tally) -> None:
    """Go on with the run on so many processes, and meet what is drawn."""
    steps, made = checkpoint.survey(place.folder), place.made()
    harmed, how, damage = draws.choice(PLACES), draws.choice(HARMS), ""
    whole = place.store.with_name("whole")
    if draws.random() < 0.5 and (harmed == "store" or len(steps.whole) > 1):
        target = place.store if harmed == "store" else place.folder / "checkpoints" / str(steps.latest)
        damage, name = f"{harmed}: {how}", harm(target, how, draws)
        tally.faults[damage] += 1

    logged, last = place.logged(), steps.latest or 0
    processes = place.command(count, draws.randrange(MOST_SLOW) if slow else 0)
    tally.faults["slow storage"] += slow

    def ended() -> bool:
        return any(process.poll() is not None for process in processes)

    fault, at = draws.choice(faults), draws.randrange(min(made, STEPS - 1), STEPS)
    early = draws.random() < 0.2
    if early:
        wait(ended, draws.uniform(0, STARTING_UP))
    else:
        wait(lambda: ended() or place.made() > at, LIMIT)
    struck = not ended()
    if struck:
        early = place.logged() == logged or place.made() <= last
        strike(fault, processes, place, draws)
        tally.faults[fault] += 1
        tally.early += early
    stopped = struck and fault == "stop one"
    took = wait(lambda: sum(process.poll() is None for process in processes) <= stopped, LIMIT)
    late = [process for process in processes if process.poll() is None]
    for process in late:
        process.kill()
        process.wait()
    if struck and not early:
        tally.slowest[fault] = max(tally.slowest.get(fault, 0.0), round(took, 1))

    said = "".join(place.said(i).read_text() for i in range(count))
    codes = {process.returncode for process in processes if process not in late}
    where = (
        f"{damage or 'nothing'}, then {fault if struck else 'nothing'} of {count}{' (early)' * early}{' (slow)' * slow}"
    )
    print(f"{tally.faults.total():4} faults; {where}: exit codes {sorted(codes)}, {took:.1f} s", file=sys.stderr)
    allowed = {0} | ({75, -signal.SIGKILL} if struck else set())
    if damage or (struck and fault == "full disk") or early:  # early: a process that never came is missed by the others
        allowed |= {2} | ({-signal.SIGTERM} if early else set())
    if len(late) > stopped or not codes <= allowed or "unforeseen" in said:
        tally.wrong.append(f"{where}: exit codes {codes}, {len(late)} late: {said.strip().splitlines()[-1:]}")
    if damage:
        named = any(str(target) in line and any(name in line for name in NAMES) for line in said.splitlines())
        (tally.found if named else tally.undecided if early else tally.harmless)[damage] += 1
        if not named and 2 in codes and fault != "full disk" and not early:
            tally.wrong.append(f"{where}: {name} is not named: {said.strip().splitlines()[-1:]}")
        if harmed == "store":
            shutil.rmtree(place.store)
            shutil.copytree(whole, place.store)
    if place.logged() > logged and place.made() > last:
        lost = place.made() - (checkpoint.survey(place.folder).latest or 0)
        (tally.lost_on_slow_storage if slow else tally.lost)[lost] += 1
        if lost > 2 * EVERY:  # a save begins once the one before it has ended
            tally.wrong.append(f"{where}: {lost} steps were not saved")
    if place.disk is not None:
        (place.disk / "filler").unlink(missing_ok=True)


def run_chaos(work: Path, minutes: float, seed: int, faults: list[str], disk: Path | None, slow: bool) -> Tally:
    """Faults for so many minutes."""
    draws, tally, end = random.Random(seed), Tally(), time.monotonic() + 60 * minutes
    texts = [" ".join(draws.choices(WORDS, k=draws.randrange(3, 60))) for _ in range(400)]
    store = make_store(work / "store", make_tokenizer(work / "tokenizer"), texts)
    shutil.copytree(store, store.with_name("whole"))
    config = work / "chaos.py"
    text = CONFIG.format(store=str(store))
    config.write_text(text.replace("small_run", "chaos_run").replace("tests.fixtures_run", "tests.chaos"))
    alone = Place(config, store, work / "alone", None)
    for process in alone.command(1):
        assert process.wait() == 0, alone.said(0).read_text()
    expected = alone.losses()
    assert len(expected) == STEPS
    place, before = Place(config, store, (disk or work) / "run", disk), 0
    while time.monotonic() < end:
        count = draws.choice((1, 2, 4))
        tally.other_counts += before not in (0, count)
        attempt(place, faults, slow and draws.random() < 0.2, count, draws, tally)
        made, before = place.losses(), count
        tally.wrong += wrong_losses(expected, made)
        if len(made) == STEPS and (place.folder / "run.json").is_file():
            tally.runs, before = tally.runs + 1, 0
            shutil.rmtree(place.folder)
    return tally


def chaos_run(store: Path):
    """The run that is disturbed: four rows at a time on four devices, a phase boundary inside."""
    from cptjax.sharding import Mesh
    from tests.fixtures_run import small_run

    run = small_run(store, held_out=None, checkpoint_every=EVERY, device_batch_size=1, mesh=Mesh(DEVICES, 1, 1))
    run = replace(run, data=replace(run.data, sequence_length=LENGTH))
    tokens = STEPS // 2 * run.tokens_per_step
    return replace(run, phases=tuple(replace(phase, tokens=tokens) for phase in run.phases))


def wrong_losses(expected: dict[int, float], made: dict[int, float]) -> list[str]:
    """Steps whose loss is another one."""
    return [
        f"loss of step {step} is {loss}, undisturbed {expected[step]}"
        for step, loss in made.items()
        if not abs(loss - expected[step]) <= TOLERANCE * abs(expected[step])
    ]


def main() -> int:
    """Run until the minutes are over; 1 where anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--mounts", action="store_true", help=argparse.SUPPRESS)  # it is where it may mount
    asked = parser.parse_args()
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if not asked.mounts and shutil.which("unshare") and subprocess.run([*unshare, "true"], check=False).returncode == 0:
        os.execvp("unshare", [*unshare, sys.executable, "-m", "tests.chaos", *sys.argv[1:], "--mounts"])
    slow = shutil.which("strace") is not None
    with tempfile.TemporaryDirectory() as name:
        disk = Path(name, "disk") if asked.mounts else None
        if disk is not None:
            disk.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", disk], check=True)
        faults = [*SIGNALS, *(["full disk"] if disk else [])]
        try:
            tally = run_chaos(Path(name), asked.minutes, asked.seed, faults, disk, slow)
        finally:
            if disk is not None:
                subprocess.run(["umount", disk], check=True)
    tally.not_tried = [kind for kind, tried in {"full disk": disk, "slow storage": slow}.items() if not tried]
    report = json.dumps(
        {"seed": asked.seed, "all_faults": tally.faults.total(), **vars(tally)}, indent=2, sort_keys=True
    )
    print(report)
    if asked.out is not None:
        asked.out.write_text(report + "\n")
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
