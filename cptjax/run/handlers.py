"""Orbax's writers of a checkpoint, which say at once what one of them meets in the background.

By itself Orbax says it at the next save; and where other processes wait for this one at its barriers, minutes later.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import future

Tell = Callable[[Exception], None]


class _Tells(ocp.AsyncCheckpointHandler):
    """What the writers below have beside what Orbax's own do."""

    def __init__(self, tell: Tell):
        super().__init__()
        self._tell = tell

    async def async_save(self, *args: Any, **kwargs: Any) -> list[future.Future]:
        """What Orbax's own writes in the background."""
        return [_Told(each, self._tell) for each in await super().async_save(*args, **kwargs) or ()]

    def finalize(self, directory: Any) -> None:
        """What Orbax's own does once all is written."""
        with _telling(self._tell):
            super().finalize(directory)

    @classmethod
    def typestr(cls) -> str:
        """The name of Orbax's own, whose form the files have."""
        return cls.__bases__[1].typestr()


class Arrays(_Tells, ocp.StandardCheckpointHandler):
    """The writer of a tree of arrays."""


class Json(_Tells, ocp.JsonCheckpointHandler):
    """The writer of the facts."""


class _Told:
    """What is being written, of which it is said when that fails."""

    def __init__(self, written: future.Future, tell: Tell):
        self._written, self._tell = written, tell

    def result(self, timeout: float | None = None) -> Any:
        with _telling(self._tell):
            return self._written.result(timeout)

    def cancel(self) -> bool | None:
        return self._written.cancel()


@contextlib.contextmanager
def _telling(tell: Tell) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        tell(error)
        raise
