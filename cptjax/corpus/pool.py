"""Work spread over the cores of this machine: the local engine of `corpus.prepare`."""

import functools
import itertools
import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from cptjax.command.bar import bar
from cptjax.command.errors import describe
from cptjax.machine.host import cores

AHEAD = 2  # tasks waiting per worker: each may hold some megabytes
LIGHT = 8  # items of a worker that weigh as much as all: a lighter one is cut by the worker that does it
Task = tuple[Callable[[Any], None], Any, float]  # what is called with what, and its size


def spread(
    split: Callable[[Any], Iterator[Any]],
    work: Callable[[Any], None],
    items: Sequence[Any],
    workers: int | None = None,
) -> None:
    """Call `work` for every task that `split` cuts each item into; one process per core unless `workers` says.

    This process cuts heavy items alone, so that several work on each. A single task, or one worker, is done in it. The
    first failed task, in order, is raised. OSError when a worker dies. Items and tasks count by their `size`, 1 without
    one: how much is left is shown.
    """
    workers, total = workers or cores(), sum(map(_size, items))
    with bar(total) as shown:

        def cut() -> Iterator[Task]:
            for item in items:
                known = _size(item)  # that is to come
                if workers > 1 and LIGHT * workers * known <= total:
                    yield functools.partial(_cut_and_do, split, work), item, known
                    continue
                for task in split(item):
                    known -= _size(task)
                    if known < 0:  # more than it seemed, such as of a packed file
                        shown.total, known = shown.total - known, 0
                    yield work, task, _size(task)
                shown.total -= known  # less, such as of an item that was done in part

        _spread(cut(), workers, shown)


def _size(thing: Any) -> int:
    return getattr(thing, "size", 1)


def _cut_and_do(split: Callable[[Any], Iterator[Any]], work: Callable[[Any], None], item: Any) -> None:
    for task in split(item):
        work(task)


def _spread(tasks: Iterator[Task], workers: int, shown: Any) -> None:
    few = list(itertools.islice(tasks, 2))
    if len(few) < 2 or workers == 1:
        for work, task, size in itertools.chain(few, tasks):
            work(task)
            shown.update(size)
        return
    # Spawned, not forked: this process may hold threads (a fork would copy their locks).
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin_worker)
    waiting: deque = deque()

    def finish() -> None:
        done, size = waiting.popleft()
        done.result()
        shown.update(size)

    try:
        for work, task, size in itertools.chain(few, tasks):
            waiting.append((pool.submit(_in_worker, work, task), size))
            if len(waiting) > AHEAD * workers:
                finish()
        while waiting:
            finish()
    except BrokenProcessPool:
        raise OSError(
            "a worker process died, perhaps for want of memory: the same command goes on, --workers 1 needs least"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _in_worker(work: Callable[[Any], None], task: Any) -> None:
    try:
        work(task)
    except BaseException as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # it cannot travel to the other process, such as a panic of Rust
            raise ValueError(describe(error)) from None
        raise


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches the whole group: the parent alone speaks of it
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
