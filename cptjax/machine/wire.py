"""What the processes of a run tell each other beside their work: that they live, how far they are, why all end.

Process 0 listens where all were told, every other one keeps a connection to it. A process that is killed closes its
own, one that is stopped falls silent, one that hangs falls behind: process 0 sees it, and all end with the line that it
says. By the same way they agree where to end when a signal asks one of them.
"""

import atexit
import contextlib
import ctypes
import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from cptjax.command import errors
from cptjax.command.signals import COME_AGAIN, Signals, Stopped
from cptjax.machine.cluster import Place, in_words

BEAT = 1.0  # seconds between two signs of life
GIVEN_UP = 0.75  # of `stuck_after` seconds: when these are over, all have ended
EVERYWHERE = "in all processes"  # the note of an error that each process raises by itself
LONGEST = 2**16  # bytes of a line
ANSWER = 5.0  # seconds for who connects to say what it is, for the others to end after process 0 failed, to say a line


def of_all(error: ValueError) -> ValueError:
    """An error that each process raises by itself: nobody need be told."""
    error.add_note(EVERYWHERE)
    return error


@dataclass
class _Peer:
    """Another process, as this one sees it."""

    socket: socket.socket
    name: str
    heard: float  # when
    rest: bytes = b""  # of a line that is not all here
    count: int = 0
    excused: bool = True
    frozen: int | None = None  # its count, while it waits for word where to end
    parted: bool = False  # at its end

    def send(self, **message: Any) -> None:
        with contextlib.suppress(OSError):  # that it is gone is met when it is listened to
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def is_gone(self) -> bool:
        """Whether it has closed the connection, of one that has nothing to say."""
        patience = self.socket.gettimeout()
        self.socket.setblocking(False)
        try:
            return not self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self.socket.settimeout(patience)

    def hear(self) -> list[dict[str, Any]] | None:
        """What it said; None when it closed the connection. Raises ValueError for what no process of ours says."""
        try:
            more = self.socket.recv(LONGEST)
        except TimeoutError:
            return []
        except OSError:
            more = b""
        *lines, self.rest = (self.rest + more).split(b"\n")
        if not more or len(self.rest) > LONGEST:
            return None
        self.heard = time.monotonic()
        said = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in said):
            raise ValueError("no message")
        return said


class Wire:
    """This process's end of it. In a run of one process there is no other, and it agrees with itself."""

    def __init__(self, stuck_after: float = 0.0):
        self.port = 0  # for jax: it was free on process 0's host
        self.excuse: Callable[[], bool] = lambda: True  # whether the others may have to wait for this process
        self._place, self._name, self._patience = Place("", 0, 1, 0), "process 0", GIVEN_UP * stuck_after
        self._peers: dict[int, _Peer] = {}
        self._moved, self._met, self._frozen = threading.Condition(), 0, False
        self._signals: Signals | None = None  # of the work at hand
        self._asked: int | None = None  # the signal that one of them was sent
        self._ends_at: int | None = None  # the count at which all end
        self._behind: dict[int, tuple[int, float]] = {}  # the count at which a process is waited for, and since when
        self._failed: tuple[float, int, str, int] | None = None  # when, which process, the line of it, exit code
        self._leaving, self._told = False, threading.Event()

    # ---- joining

    def join(self, place: Place, within: float) -> None:
        """Find the others.

        Raises ValueError for an address that cannot be listened at or, after `within` seconds, be reached, and for
        numbers that do not go together.
        """
        self._place, self._name = place, f"process {place.index} on {socket.gethostname()}"
        (self._listen if place.index == 0 else self._connect)(within)
        for peer in self._peers.values():
            peer.socket.settimeout(BEAT)
        threading.Thread(target=self._attend, daemon=True).start()
        atexit.register(self._tell, parted=True)

    def _listen(self, within: float) -> None:
        until, count, where = time.monotonic() + within, self._place.count, f"{self._place.host}:{self._place.port}"
        own = self._place.host if self._place.is_loopback else ""
        both = not own and socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both or ":" in own else socket.AF_INET
        try:
            server = socket.create_server((own, self._place.port), family=family, dualstack_ipv6=both)
        except OSError as error:
            why = os.strerror(error.errno or 0)  # without Python's own words on it
            raise ValueError(f"process 0 cannot listen at {where} ({why}): give another port") from error
        with server:
            while missing := [i for i in range(1, count) if i not in self._peers or self._peers[i].is_gone()]:
                try:
                    server.settimeout(max(until - time.monotonic(), 0.01))
                    connection, _ = server.accept()
                except TimeoutError:
                    self._refuse(f"{in_words(missing)} of {count} did not come to {where} in {within:g} s")
                self._admit(connection)
        with socket.create_server(("", 0)) as free:
            self.port = free.getsockname()[1]
        self._tell(port=self.port, name=self._name)

    def _admit(self, connection: socket.socket) -> None:
        """A process that came; what else connects, such as a scanner of ports, is sent away."""
        connection.settimeout(ANSWER)
        peer = _Peer(connection, "", 0.0)
        try:
            said = (peer.hear() or [{}])[0]
            index, count, peer.name = int(said["index"]), int(said["count"]), str(said["name"])
        except (ValueError, KeyError, TypeError):
            connection.close()
            return
        if index in self._peers and self._peers[index].is_gone():  # killed, and it came again
            del self._peers[index]
        other = self._peers.setdefault(index, peer)
        if count != self._place.count:
            self._refuse(f"{peer.name} was told of {count} processes, {self._name} of {self._place.count}")
        if other is not peer:
            self._peers[-1] = peer
            self._refuse(f"{other.name} and {peer.name} have the same number: each process needs its own")

    def _refuse(self, words: str) -> NoReturn:
        self._tell(refused=words)
        raise ValueError(words)

    def _connect(self, within: float) -> None:
        until, (host, port, count, index, _), why = time.monotonic() + within, self._place, "it does not answer"
        while (left := until - time.monotonic()) > 0:
            try:
                peer = _Peer(socket.create_connection((host, port), left), "", 0.0)
            except OSError as error:  # it is not up yet, or its name is not known yet
                why = error.strerror or errors.reason(error)
                time.sleep(min(0.5, left))
                continue
            peer.send(index=index, count=count, name=self._name)
            try:
                welcome = (peer.hear() or [{}])[0]
                self.port, peer.name = int(welcome.get("port", 0)), str(welcome.get("name"))
            except (ValueError, TypeError):
                raise ValueError(f"what listens at {host}:{port} is not process 0 of a run") from None
            if "refused" in welcome:
                raise ValueError(str(welcome["refused"]))
            if self.port:
                self._peers[0] = peer
                return
            time.sleep(min(0.5, left))
        raise ValueError(f"process {index} tried for {within:g} s to reach process 0 at {host}:{port}: {why}")

    # ---- working

    @contextlib.contextmanager
    def watched(self, signals: Signals) -> Iterator["Wire"]:
        """A run's work, which these signals end. Where it fails in this process alone, all end with what it said. One
        such block may hold another, whose signals go before its own."""
        outer = self._signals
        with self._moved:
            self._signals, self._asked, self._ends_at = signals, None, None
        try:
            with contextlib.nullcontext() if outer or not self._peers else _slow_to_abort():
                yield self
        except BaseException as error:
            agreed = isinstance(error, Stopped) and self.asked is not None
            if self._peers and not outer and not agreed and EVERYWHERE not in getattr(error, "__notes__", ()):
                self._fail(error)
            raise
        finally:
            self._signals, self.excuse = outer, lambda: True

    @property
    def count(self) -> int:
        """How many processes it joins."""
        return self._place.count

    @property
    def asked(self) -> int | None:
        """The signal that ends the run, once this process has come to where all agreed to end."""
        return self._asked if self._ends_at is not None and self._met >= self._ends_at else None

    def meet(self) -> int | None:
        """Count one more of the things that all processes do in the same order; returns `asked`. One that was sent a
        signal, and then all, wait here for word at which count to end."""
        with self._moved:
            asked = self._signals and self._signals.asked
            if asked is not None and self._asked is None:
                self._frozen = True
                if self._place.index == 0:
                    self._ask(asked)
                else:
                    self._peers[0].send(asks=asked)
                self._asked = asked
            self._moved.wait_for(lambda: not self._frozen)
            self._met += 1
            return self.asked

    def _ask(self, signum: int) -> None:
        """Of process 0: have all say where they are, and wait there."""
        with self._moved:
            if self._asked is None:
                self._asked, self._frozen = signum, True
                self._tell(freeze=True)
                self._settle()

    def _settle(self) -> None:
        """Of process 0: once all have said it, they end at the next that all come to."""
        counts = [peer.frozen for peer in self._others()]
        if None not in counts:
            end = max([self._met, *(count for count in counts if count is not None)]) + 1
            self._tell(ends_at=end, signum=self._asked)
            self._end_at(end, self._asked)

    def _end_at(self, count: int, signum: int | None) -> None:
        with self._moved:
            self._ends_at, self._asked, self._frozen = count, signum, False
            self._moved.notify_all()

    def _others(self) -> list[_Peer]:
        return list(self._peers.values())

    def _tell(self, **message: Any) -> None:
        for peer in self._others():
            peer.send(**message)

    # ---- the thread

    def _attend(self) -> None:
        """Hear the others, tell them of this process, and judge."""
        beaten = 0.0
        with selectors.DefaultSelector() as selector:
            for index, peer in self._peers.items():
                peer.heard = time.monotonic()
                selector.register(peer.socket, selectors.EVENT_READ, index)
            while self._peers:
                for key, _ in selector.select(BEAT / 4):
                    peer = self._peers[key.data]
                    said = peer.hear()
                    for message in said or ():
                        self._take(key.data, peer, message)
                    if said is None:
                        selector.unregister(key.fileobj)
                        del self._peers[key.data]
                        if not peer.parted:
                            self._end(f"stopped: {peer.name} was killed or crashed")
                if time.monotonic() - beaten > BEAT:
                    beaten = time.monotonic()
                    self._tell(count=self._met, excused=self.excuse())
                    self._judge(beaten)

    def _take(self, index: int, peer: _Peer, said: dict[str, Any]) -> None:
        if "count" in said:
            peer.count, peer.excused = said["count"], said["excused"]
        elif "parted" in said:
            peer.parted = True
        elif "asks" in said:
            self._ask(said["asks"])
        elif "freeze" in said:
            with self._moved:
                self._frozen = True
                peer.send(frozen=self._met)
        elif "frozen" in said:
            peer.frozen = said["frozen"]
            self._settle()
        elif "ends_at" in said:
            self._end_at(said["ends_at"], said["signum"])
        elif "failed" in said:
            peer.parted = True
            self._failed = self._failed or (time.monotonic(), index, said["failed"], said["code"])
        elif "ended" in said:
            peer.parted = True
            self._end(said["ended"], said["code"], told_by=said["told_by"])

    def _judge(self, now: float) -> None:
        for peer in self._others():
            if now - peer.heard > self._patience:  # one that is at its end, too: jax waits there for all
                self._end(f"stopped: {peer.name} was not heard of for {now - peer.heard:.0f} s")
        if self._place.index > 0:
            return
        stands = [(0, self._name, self._met, self.excuse())]
        stands += [(index, peer.name, peer.count, peer.excused) for index, peer in [*self._peers.items()]]
        most = max(count for _, _, count, _ in stands)
        for index, name, count, excused in stands:
            at, since = self._behind.get(index, (None, now))
            self._behind[index] = (count, now if excused or count == most or count != at else since)
            if now - since > self._patience and self._behind[index][1] == since:
                self._end(f"stopped: {name} lives, but the others have waited for it for {now - since:.0f} s")
        if self._failed:
            when, index, line, code = self._failed
            # One that fails because another was killed may say so before the system tells of the latter.
            if now - when > BEAT and all(peer.heard > when for peer in self._others()):
                self._end(line, code, told_by=index)

    # ---- the end

    def fail(self, error: Exception) -> None:
        """End all processes with what went wrong in a thread of this one, whose main thread may wait for the others.
        In a run of one process it does nothing: who waits for the thread hears of it."""
        if self._peers:
            self._fail(error)
            with contextlib.suppress(OSError):
                os.write(2, f"\nerror: {errors.describe(error)}\n".encode())
            _exit(2)

    def _fail(self, error: BaseException) -> None:
        """Tell the others why this process ends, and wait until they know."""
        self._leaving, said = True, f"process {self._place.index}"
        if isinstance(error, KeyboardInterrupt):
            where, code = (error.where, error.code) if isinstance(error, Stopped) else ("", 130)
            line = f"stopped{where}: {said} was asked to"
        else:
            line, code = f"error: {said}: {errors.describe(error)}", 2
        if self._place.index == 0:
            self._failed = self._failed or (time.monotonic(), 0, line, code)
        else:
            self._peers[0].send(failed=line, code=code)
        self._told.wait(self._patience + ANSWER)
        until = time.monotonic() + ANSWER
        while self._place.index == 0 and self._peers and time.monotonic() < until:
            time.sleep(BEAT / 20)  # jax's service ends with this process, and would end them before they have read it
        atexit.register(_exit, code)  # before jax, which would wait for the others

    def _end(self, line: str, code: int = COME_AGAIN, *, told_by: int | None = None) -> None:
        """End all processes with this line; a process that is failing by itself, not one that another's death made
        fail, with its own."""
        self._failed = None
        if self._place.index == 0:
            self._tell(ended=line, code=code, told_by=told_by)
            for peer in self._others():
                peer.parted = True
        if self._leaving and told_by is not None:
            self._told.set()
            return
        last = threading.Timer(ANSWER, os._exit, [code])  # nobody may read what is said: a pipe that is full holds us
        last.daemon = True
        last.start()
        again = "" if line.startswith("error") else "; the same command goes on"
        with contextlib.suppress(OSError):
            os.write(2, f"\n{line}{again}\n".encode())
        if self._place.index == 0 and self._peers:
            time.sleep(BEAT)  # for the same reason
        _exit(code)


@contextlib.contextmanager
def _slow_to_abort() -> Iterator[None]:
    """In its block abort() waits 6 s. What exchanges with another process in C++ calls it when that one is killed, at
    times before the thread here has said so, and ended this one with the code that asks to come again. `kill -ABRT`
    holds this process up for as long, and ends nothing: only a handler in C could tell it from abort()."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    # Python's own handlers run in the main thread, once it is out of C++; this one sleeps, in C, for as many seconds as
    # the signal's number.
    before = libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
    try:
        yield
    finally:
        libc.signal(signal.SIGABRT, before)


def _exit(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)
