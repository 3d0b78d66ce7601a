"""Whatever becomes of one process, all end, soon, and say why: three processes without jax, which die many deaths."""

import contextlib
import fcntl
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cptjax.command.signals import Signals
from cptjax.machine.cluster import Place
from cptjax.machine.wire import Wire

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def process(port: int, index: int, what: str) -> subprocess.Popen:
    """One of three."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.machine.wire_process", f"127.0.0.1:{port},3,{index}", what],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def three(what: str, *, comes_again: bool = False) -> Iterator[list[subprocess.Popen]]:
    """Processes 0, 1, 2 of a run; 1 has met the others nine times, and may have been killed once before."""
    port = free_port()
    started = [process(port, 0, what)]
    if comes_again:
        with socket.socket() as lost:
            while lost.connect_ex(("127.0.0.1", port)):
                time.sleep(0.05)
            lost.sendall(b'{"index": 1, "count": 3, "name": "process 1"}\n')
            time.sleep(0.2)  # it is heard
    started.append(process(port, 2, what))
    time.sleep(1.0 * comes_again)  # it comes before the other
    started.insert(1, process(port, 1, what))
    try:
        assert started[1].stdout is not None and started[1].stdout.readline() == "ready\n"
        yield started
    finally:
        for each in started:
            each.kill()
            each.communicate()


def ended(process: subprocess.Popen) -> tuple[int, str]:
    """Exit code and last line, in time."""
    _, said = process.communicate(timeout=20)
    return process.returncode, said.strip().splitlines()[-1]


@pytest.mark.parametrize(("victim", "others"), [(0, (1, 2)), (1, (0, 2))])
@pytest.mark.parametrize(
    ("signum", "says"), [(signal.SIGKILL, "was killed or crashed"), (signal.SIGSTOP, "was not heard of for 2 s")]
)
def test_a_process_that_is_killed_or_stopped_ends_the_others(victim, others, signum, says):
    # Broken by: `peer.heard` not looked at in _judge.
    with three("nothing") as processes:
        processes[victim].send_signal(signum)
        for other in others:
            code, line = ended(processes[other])
            assert code == 75 and re.fullmatch(
                rf"stopped: process {victim} on .* {says}; the same command goes on", line
            )


def test_a_process_that_aborts_because_another_was_killed_says_that():
    """As native code does that met it first."""
    # Broken by: _slow_to_abort left out of `watched`.
    with three("nothing") as processes:
        for process, signum in zip(processes, (signal.SIGABRT, signal.SIGKILL, signal.SIGABRT), strict=True):
            process.send_signal(signum)
        for other in (0, 2):
            code, line = ended(processes[other])
            assert code == 75 and re.match("stopped: process 1 on .* was killed or crashed; the same command", line)


def test_a_process_whose_words_nobody_reads_ends_too():
    # Broken by: `last.start()` left out of _end.
    with three("nothing") as processes:
        assert processes[0].stderr is not None
        fcntl.fcntl(processes[0].stderr, fcntl.F_SETPIPE_SZ, 4096)
        with open(f"/proc/{processes[0].pid}/fd/2", "wb") as pipe:
            pipe.write(bytes(4096))
        processes[1].kill()
        assert processes[0].wait(20) == 75


def test_a_process_that_lives_but_hangs_ends_all():
    # Broken by: its `_end` left out of _judge.
    with three("hang") as processes:
        for process in processes:
            code, line = ended(process)
            assert code == 75 and re.match("stopped: process 1 on .* lives, but the others have waited for it", line)


@pytest.mark.parametrize("what", ["fail", "thread fails"])
def test_a_process_that_fails_alone_ends_all_with_its_words(what):
    # Broken by: _fail left out of watched, or of fail (the others say that it was killed).
    with three(what) as processes:
        told = [ended(process) for process in processes]
    assert told[1] == (2, "error: the disk is full")
    assert told[0] == told[2] == (2, "error: process 1: the disk is full")


def test_a_process_that_is_stopped_at_its_end_ends_the_others():
    # Broken by: `and not peer.parted` in _judge.
    with three("linger") as processes:
        time.sleep(0.5)  # seconds: all have said that they part
        processes[1].send_signal(signal.SIGSTOP)
        for other in (0, 2):
            code, line = ended(processes[other])
            assert code == 75 and re.match("stopped: process 1 on .* was not heard of for 2 s", line)


def test_a_process_that_is_asked_to_end_before_its_work_ends_all():
    # Broken by: `outer` taken for set in the first `watched`, as if nobody had to be told.
    with three("early") as processes:
        told = [ended(process) for process in processes]
    assert told[1] == (75, "stopped before its first step")
    says = "stopped before its first step: process 1 was asked to; the same command goes on"
    assert told[0] == told[2] == (75, says)


def test_a_process_that_was_killed_while_others_were_awaited_may_come_again():
    # Broken by: is_gone not asked in _admit ("have the same number"), or in _listen: 2 comes, and 1 is taken for there.
    with three("nothing", comes_again=True):
        pass


def test_what_all_raise_each_says_by_itself():
    # Broken by: EVERYWHERE not looked at.
    with three("all fail") as processes:
        assert [ended(process) for process in processes] == [(2, "error: of all")] * 3


@pytest.mark.parametrize("sent", [0, 2])
def test_a_signal_to_one_ends_all_at_the_same_count(sent):
    """Although their counts differ when it comes."""
    # Broken by: `max` of the counts without `+ 1`.
    with three("nothing") as processes:
        processes[sent].send_signal(signal.SIGINT)
        told = {ended(process) for process in processes}
    ((code, line),) = told
    assert code == 130 and re.fullmatch(r"stopped at \d+", line)


def test_a_process_by_itself_ends_where_it_is():
    signals = Signals()
    with Wire().watched(signals) as wire:
        assert wire.meet() is None and wire.asked is None
        signals.asked = signal.SIGTERM
        assert wire.meet() == wire.asked == signal.SIGTERM


# ---- joining


def joined(*places: tuple[int, int], port: int) -> list[str]:
    """What each of these processes, (count, index), says when it joins."""
    said = [""] * len(places)

    def join(number: int, count: int, index: int) -> None:
        try:
            Wire().join(Place("127.0.0.1", port, count, index), 1.5)
        except ValueError as error:
            said[number] = str(error)

    threads = [threading.Thread(target=join, args=(number, *place)) for number, place in enumerate(places)]
    for thread in threads:
        thread.start()
        time.sleep(0.1)  # in this order
    for thread in threads:
        thread.join()
    return said


@pytest.mark.parametrize(
    ("places", "says"),
    [
        ([(2, 1)], "process 1 tried for 1.5 s to reach process 0 at 127.0.0.1:.*: Connection refused"),
        ([(3, 0), (3, 2)], "process 1 of 3 did not come to 127.0.0.1:.* in 1.5 s"),
        ([(2, 0), (3, 1)], "process 1 on .* was told of 3 processes, process 0 on .* of 2"),
        ([(3, 0), (3, 1), (3, 1)], "process 1 on .* and process 1 on .* have the same number"),
    ],
)
def test_processes_that_do_not_go_together_all_say_so(places, says):
    # Broken by: _refuse without its _tell.
    said = joined(*places, port=free_port())
    assert all(re.match(says, words) for words in said), said


def test_a_port_that_another_has_is_named():
    # Broken by: ValueError not caught in _connect.
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        def greet() -> None:
            connection, _ = other.accept()
            connection.sendall(b"SSH-2.0-OpenSSH_9.6\n")

        threading.Thread(target=greet, daemon=True).start()
        occupied, stranger = joined((2, 0), (2, 1), port=port)
    assert re.match(
        rf"process 0 cannot listen at 127.0.0.1:{port} \(Address already in use\): give another port", occupied
    )
    assert stranger == f"what listens at 127.0.0.1:{port} is not process 0 of a run"


def test_who_is_no_process_is_sent_away():
    # Broken by: _admit without its except.
    port = free_port()

    def scan() -> None:
        time.sleep(0.3)
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"index": "x"}\n', b"7\n"):
            with socket.create_connection(("127.0.0.1", port)) as scanner:
                scanner.sendall(said)

    threading.Thread(target=scan, daemon=True).start()
    (said,) = joined((2, 0), port=port)
    assert said.startswith("process 1 of 2 did not come")
