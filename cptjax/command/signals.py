"""How a run ends on a signal: what it has learnt is saved first.

Schedulers send SIGTERM or SIGUSR1 before they kill, a terminal that closes sends SIGHUP, Ctrl-C is SIGINT.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
COME_AGAIN = 75  # EX_TEMPFAIL of sysexits.h
GRACE = 1.0  # seconds that the main thread has to end by itself, before there is anything to save


class Stopped(KeyboardInterrupt):
    """A signal ended the work; `where` says at what, `code` is for the shell: 130 for Ctrl-C, else 75."""

    def __init__(self, signum: int, where: str):
        super().__init__()
        self.where, self.code = where, 128 + signum if signum == signal.SIGINT else COME_AGAIN


class Signals:
    """In its block the signals above end the work where it is, by Stopped; once `remember` was called they are kept in
    `asked`, for who can save to look at.

    The main thread hears no signal while a library compiles, for minutes perhaps: as long as there is nothing to save,
    a thread then ends the process. In another thread than the main one, and for SIGHUP below nohup, nothing is changed.
    """

    def __init__(self):
        self.asked: int | None = None
        self._remembers = self._over = self._told = False

    def __enter__(self) -> "Signals":
        self._before = {}
        if threading.current_thread() is not threading.main_thread():
            return self
        self._heard, self._come = socket.socketpair()
        self._come.setblocking(False)
        self._fd = signal.set_wakeup_fd(self._come.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()
        for signum in SIGNALS:
            if signum != signal.SIGHUP or signal.getsignal(signum) is not signal.SIG_IGN:
                self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_) -> None:
        self._over = True
        if self._before:
            for signum, handler in self._before.items():
                signal.signal(signum, handler)
            signal.set_wakeup_fd(self._fd)
            self._come.close()

    def began(self, *, remember: bool) -> None:
        """The work has something to lose from here on; it looks at `asked` if it is to `remember`."""
        self._over, self._remembers = True, remember

    def _handle(self, signum: int, _: FrameType | None) -> None:
        first, self.asked = self.asked is None, self.asked or signum
        if not self._remembers:  # asked, too: an error that comes in a library's callback may never arrive
            self._over = True
            raise Stopped(signum, " before its first step")
        if first:
            _tell("\nending: the step at hand is saved first\n")
        elif signum == signal.SIGINT and not self._told:
            self._told = True
            _tell("\nstill saving: Ctrl-C once more ends at once, and loses the steps since the checkpoint before\n")
        elif signum == signal.SIGINT:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)

    def _watch(self) -> None:
        while signums := self._heard.recv(1):
            if not self._over and signums[0] in SIGNALS:
                time.sleep(GRACE)
                if not self._over:
                    stop = Stopped(signums[0], " before its first step")
                    _tell(f"stopped{stop.where}; the same command goes on\n")
                    os._exit(stop.code)
        self._heard.close()


def _tell(line: str) -> None:
    """Safe in a handler, which may have come in the middle of a print."""
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
