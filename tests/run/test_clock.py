"""Every second belongs to one kind, and waiting is only what the device waited."""

import itertools
import threading
import time
import types
from concurrent.futures import Future
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cptjax.run.clock import COMPILING, EVALUATION, KINDS, STEPS, WAITING, Clock

PASSES = st.floats(0, 10, allow_nan=False)
NESTED = st.recursive(
    PASSES, lambda inner: st.tuples(st.sampled_from(KINDS), st.lists(inner, max_size=4)), max_leaves=12
)


class Time:
    """Goes on only where it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@given(st.lists(NESTED, max_size=6))
def test_the_kinds_add_up_to_the_time_that_passed(history):
    # Broken by: `doing` that does not go back to the outer kind's clock, or that counts the inner time in both.
    time_ = Time()
    clock, expected = Clock(now=time_), dict.fromkeys(KINDS, 0.0)

    def live(part, kind):
        if isinstance(part, float):
            time_.pass_(part)
            expected[kind] += part
        else:
            inner, parts = part
            with clock.doing(inner):
                for one in parts:
                    live(one, inner)

    for part in history:
        live(part, STEPS)
    taken = clock.take(*KINDS)
    assert {kind: taken[kind] for kind in KINDS} == pytest.approx(expected)
    assert sum(taken[kind] for kind in KINDS) == pytest.approx(time_.now - 100.0)
    assert clock.take(*KINDS) == dict.fromkeys((*KINDS, "joules", "step_joules"), 0.0)


def test_an_error_inside_ends_its_kind():
    # Broken by: no `finally` in doing.
    time_ = Time()
    clock = Clock(now=time_)
    with pytest.raises(KeyError), clock.doing(EVALUATION):
        time_.pass_(2.0)
        raise KeyError
    time_.pass_(1.0)
    taken = clock.take(STEPS, EVALUATION)
    assert (taken[STEPS], taken[EVALUATION]) == (1.0, 2.0)


def test_energy_is_that_of_everything_and_that_of_steps():
    # Broken by: ENERGY for both kinds.
    time_ = Time()
    clock = Clock(lambda: 10 * time_.now, now=time_)
    time_.pass_(3.0)
    with clock.doing(EVALUATION):
        time_.pass_(4.0)
    taken = clock.take()
    assert clock.metered and (taken["joules"], taken["step_joules"]) == (70.0, 30.0)


def test_energy_that_is_lost_on_the_way_is_not_metered():
    # Broken by: metered set in __init__ only.
    readings = iter([0.0, 5.0, None, 7.0])
    clock = Clock(lambda: next(readings), now=Time())
    clock.take()
    assert clock.metered
    clock.take()
    assert not clock.metered and clock.take()["joules"] == 0 and not clock.metered


@pytest.mark.parametrize(
    ("busy_until", "waited"),
    [(None, 5.0), (101.0, 4.0), (90.0, 5.0), (200.0, 0.0), ("unfinished", 0.0)],
    ids=["nothing was given to do", "it finished meanwhile", "long ago", "just now", "it still works"],
)
def test_waiting_is_what_the_device_waited(busy_until, waited):
    # Broken by: `idle = began`: a step of 5 s whose data came meanwhile would have taken no time at all.
    time_ = Time()
    clock = Clock(now=time_)
    if busy_until is not None:
        clock._finished = Future()
        if busy_until != "unfinished":
            clock._finished.set_result(busy_until)

    def stream():
        time_.pass_(5.0)
        yield "batch"

    assert clock.fetch(stream()) == "batch"
    taken = clock.take(STEPS, WAITING)
    assert (taken[WAITING], taken[STEPS]) == (waited, 5.0 - waited)


def test_when_a_result_is_made_is_noted_by_no_wait_of_the_loop():
    # Broken by: block_until_ready in watch itself.
    clock, release = Clock(), threading.Event()
    result: Any = types.SimpleNamespace(block_until_ready=lambda: release.wait(10))
    clock.watch(result)
    assert clock._finished is not None and not clock._finished.done()
    before = time.perf_counter()
    release.set()
    assert before < clock._finished.result(10) <= time.perf_counter()


def test_compiling_is_no_step():
    # Broken by: compiled that returns `jitted`; a program compiled at each call.
    time_, traced = Time(), itertools.count()

    def double(x):
        time_.pass_(7.0)
        next(traced)
        return 2 * x

    clock = Clock(now=time_)
    call = clock.compiled(jax.jit(double))
    assert [float(call(jnp.float32(x))) for x in (1, 2, 3)] == [2, 4, 6]
    taken = clock.take(STEPS, COMPILING)
    assert (taken[STEPS], taken[COMPILING], next(traced)) == (0.0, 7.0, 1)
