"""Where the time of a run goes: every second of the loop belongs to one thing that was done."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import jax

# Named as the fields of events and of run.json. What is nothing else belongs to the steps.
STEPS, WAITING, EVALUATION, SAVING, COMPILING = KINDS = (
    "seconds",
    "waiting_seconds",
    "evaluation_seconds",
    "saving_seconds",
    "compiling_seconds",
)
ENERGY = ("joules", "step_joules")  # of everything, and of the steps with their waiting for data


class Clock:
    """Adds up seconds by kind, and joules where `joules` can tell how many there were so far."""

    def __init__(self, joules: Callable[[], float | None] = lambda: None, now: Callable[[], float] = time.perf_counter):
        self._now, self._joules = now, joules
        self._kind, self._then, self._joules_then = STEPS, now(), joules()
        self._sums: dict[str, float] = dict.fromkeys((*KINDS, *ENERGY), 0.0)
        self.metered = self._joules_then is not None
        self._thread = ThreadPoolExecutor(1)
        self._finished: Future[float] | None = None

    @property
    def kind(self) -> str:
        """What is being done."""
        return self._kind

    @contextmanager
    def doing(self, kind: str) -> Iterator[None]:
        """Inside, time is of this kind; then again of what it was of before."""
        outer = self._turn(kind)
        try:
            yield
        finally:
            self._turn(outer)

    @contextmanager
    def closing(self, kind: str, thing: Any) -> Iterator[Any]:
        """`thing`, which is closed at the end, and what that takes is of this kind."""
        try:
            yield thing
        finally:
            with self.doing(kind):
                thing.close()

    def _turn(self, kind: str) -> str:
        now, joules = self._now(), self._joules()
        self._sums[self._kind] += now - self._then
        if joules is None or self._joules_then is None:
            self.metered = False
        else:
            for name in ENERGY if self._kind == STEPS else ENERGY[:1]:
                self._sums[name] += joules - self._joules_then
        before, self._kind, self._then, self._joules_then = self._kind, kind, now, joules
        return before

    def take(self, *kinds: str) -> dict[str, float]:
        """What came together of these kinds, and of energy, since it was last taken."""
        self._turn(self._kind)
        taken = {kind: self._sums[kind] for kind in (*kinds, *ENERGY)}
        self._sums.update(dict.fromkeys(taken, 0.0))
        return taken

    def watch(self, result: jax.Array) -> None:
        """Note when the device has made `result`, the last it was given to do."""

        def finished() -> float:
            jax.block_until_ready(result)
            return self._now()

        self._finished = self._thread.submit(finished)

    def fetch(self, stream: Iterator[Any]) -> Any:
        """The next of a stream. It was waited for as long as the device had nothing to do; the rest is a step's."""
        began = self._now()
        batch = next(stream)
        ended = self._now()
        idle = began
        if self._finished is not None:
            idle = min(max(began, self._finished.result()), ended) if self._finished.done() else ended
        self._sums[WAITING] += ended - idle
        self._sums[STEPS] -= ended - idle
        return batch

    def compiled(self, jitted: Any) -> Callable[..., Any]:
        """`jitted`, compiled at its first call by the clock of compiling, for arguments of that call's shapes."""
        program: Any = None

        def call(*arguments: Any) -> Any:
            nonlocal program
            if program is None:
                with self.doing(COMPILING):
                    program = jitted.lower(*arguments).compile()
            return program(*arguments)

        return call
