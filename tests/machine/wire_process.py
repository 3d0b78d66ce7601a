"""One process of test_wire.py, without jax: `python -m tests.machine.wire_process WHERE WHAT`.

It meets the others until it ends, and says at which count that was. WHAT happens at the tenth time, to process 1.
"""

import atexit
import contextlib
import signal
import sys
import threading
import time

from cptjax.command.errors import run_command
from cptjax.command.signals import Signals, Stopped
from cptjax.machine import cluster, wire


def work(where: str, what: str) -> None:
    """Join, and meet until told to end."""
    wire.BEAT, wire.ANSWER = 0.2, 1.0
    place = cluster.place(where, 30)
    assert place is not None
    if what == "linger":
        atexit.register(time.sleep, 60)  # as jax waits for the others at the end, once all is said
    own = wire.Wire(stuck_after=3)
    own.join(place, 30)
    with contextlib.ExitStack() as held:
        held.enter_context(own.watched(held.enter_context(Signals())))  # as `processes.joined` does
        if what == "early":
            print("ready", flush=True)
            if place.index == 1:
                raise Stopped(signal.SIGTERM, " before its first step")
            time.sleep(60)  # as one that waits for the other in a library
        signals = held.enter_context(Signals())
        held.enter_context(own.watched(signals))  # as `train` does
        signals.began(remember=True)
        own.excuse = lambda: False
        for count in range(1, 100):
            if count == 10 and place.index == 1:
                print("ready", flush=True)
                if what == "hang":
                    time.sleep(60)
                if what == "thread fails":
                    threading.Thread(target=own.fail, args=[OSError("the disk is full")]).start()
                    time.sleep(60)  # as one that waits for the thread
                if what == "fail":
                    raise OSError("the disk is full")
            if count == 10 and what == "linger":
                return
            if count == 10 and what == "all fail":
                error = ValueError("of all")
                error.add_note(wire.EVERYWHERE)
                raise error
            if (signum := own.meet()) is not None:
                raise Stopped(signum, f" at {count}")
            if what in ("hang", "fail", "thread fails") and count == 11:
                time.sleep(60)  # as one that waits for the other's part of a product
            time.sleep(0.05 + 0.05 * place.index)


if __name__ == "__main__":
    raise SystemExit(run_command(lambda: work(*sys.argv[1:]), ()))
