"""Deciding by columns on the disk, some keys at a time, is deciding by all keys in memory."""

import numpy as np
import pytest

from cptjax.corpus import parts, repetitions
from cptjax.corpus.decide import EXACT, NEAR, decide
from cptjax.corpus.parts import Parts, Unit
from cptjax.corpus.repetitions import Keys, near_duplicates
from eval.bench import decide as bench


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The parts of 3,000 documents, of which many repeat others, in blocks of 700."""
    with pytest.MonkeyPatch.context() as patch:
        for place, name, value in ((bench, "POOL", 20), (bench, "SHARE", 0.1), (bench, "PART", 400)):
            patch.setattr(place, name, value)
        work = tmp_path_factory.mktemp("work")
        bench.make_parts(work, 3000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "BLOCK", 700)
        yield Parts(bench.job_in(work), [Unit(0, ((0, bench.FILE),))])


def whole(made: Parts, name: str) -> np.ndarray:
    return np.concatenate([made.column(name).read(block) for block in made.blocks])


def test_columns_hold_what_the_parts_hold(made):
    # Broken by: `offset` in Column.read without the size of a number.
    read = [np.load(path) for path in made.paths]
    for name in ("digest", "signature", "length", "side"):
        assert np.array_equal(whole(made, name), np.concatenate([part[name] for part in read]))
    some = np.array([2999, 0, 1500, 0])
    assert np.array_equal(made.column("signature").rows(some), whole(made, "signature")[some])


@pytest.mark.parametrize("at_once", [100, 10**6])
def test_a_decision_is_that_of_all_keys_in_memory(made, monkeypatch, at_once):
    # Broken by: `range(1, shares)` in group; `why_N` not kept anew before bands are looked at.
    monkeypatch.setattr(repetitions, "AT_ONCE", at_once)
    decision = decide(bench.job_in(made.paths[0].parents[2]), made, repetitions.group)
    digest_N2, signature_NP = whole(made, "digest"), whole(made, "signature")
    _, first_F, of_N = np.unique(digest_N2, axis=0, return_index=True, return_inverse=True)
    exact_N = first_F[of_N.reshape(-1)]
    there = np.flatnonzero(exact_N == np.arange(3000))
    near_N = exact_N.copy()
    near_N[there] = there[near_duplicates(signature_NP[there], 0.8)]
    why_N = np.where(exact_N != np.arange(3000), EXACT, np.where(near_N != np.arange(3000), NEAR, 0))
    assert np.array_equal(decision.why_N, why_N)
    assert np.array_equal(decision.like_N[why_N > 0], near_N[why_N > 0]) and (decision.like_N[why_N == 0] == -1).all()
    assert (decision.side_N > 0).tolist() == (why_N == 0).tolist()
    assert (decision.duplicates.exact, decision.duplicates.near) == tuple((why_N == why).sum() for why in (EXACT, NEAR))
    assert decision.duplicates.near > 200


def test_documents_without_a_key_repeat_nothing(made):
    # Broken by: but_zero not looked at.
    why = made.keep("none", np.zeros(3000, np.int8))
    zeros = made.keep("zeros", np.zeros(3000, np.uint64))
    found = {but: sum(map(len, repetitions.group(Keys(zeros, why, but), made.blocks))) for but in (False, True)}
    assert found == {False: 2999, True: 0}
