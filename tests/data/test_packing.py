"""A plan loses no token and repeats none but by weight, fills its rows, and is computed once for a store."""

import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cptjax import files
from cptjax.command.errors import DamageWarning
from cptjax.data import packing
from cptjax.data.packing import PackingPlan, packing_plan, stored_plan

few = settings(max_examples=60)
ROOT = Path(__file__).parents[2]


def rows_of(plan):
    """The spans of each row as [document, start, length]."""
    spans_S3 = np.stack([plan.document_S, plan.start_S, plan.length_S], axis=1)
    return [row.tolist() for row in np.split(spans_S3, plan.row_offset[1:-1])]


def same(one, other):
    return all(np.array_equal(getattr(one, x.name), getattr(other, x.name)) for x in fields(PackingPlan))


lengths = st.lists(st.integers(1, 400), min_size=1, max_size=60).map(np.array)


@few
@given(length_N=lengths, sequence_length=st.integers(1, 200), seed=st.integers(0, 9), data=st.data())
def test_every_token_is_in_as_many_rows_as_its_document_has_copies(length_N, sequence_length, seed, data):
    # Broken by: `copies_N >= round_`; rows of a round not numbered after those before it; a draw below 0.5.
    weights = st.none() | st.lists(st.floats(0, 4), min_size=len(length_N), max_size=len(length_N)).map(np.array)
    weight_N = data.draw(weights)
    plan = packing_plan(length_N, sequence_length, seed, weight_N)
    seen = [np.zeros(length, int) for length in length_N]
    for document, start, length in zip(plan.document_S, plan.start_S, plan.length_S, strict=True):
        assert length > 0 and start + length <= length_N[document]
        seen[document][start : start + length] += 1
    for count, weight in zip(seen, np.ones(len(length_N)) if weight_N is None else weight_N, strict=True):
        assert (count == count[0]).all() and count[0] in (np.floor(weight), np.ceil(weight))
    assert plan.tokens == sum(map(np.sum, seen))
    for row in rows_of(plan):
        documents = [document for document, _, _ in row]
        assert len(set(documents)) == len(documents)  # neither two copies nor two pieces of a document meet
        assert sum(length for _, _, length in row) <= sequence_length
    assert plan.row_offset[0] == 0 and (np.diff(plan.row_offset) > 0).all()
    assert plan.row_offset[-1] == len(plan.length_S)


@few
@given(length_N=lengths, sequence_length=st.integers(1, 200), seed=st.integers(0, 9))
@example(np.array([37, 70, 70, 70, 70, 75]), 106, 0)  # once gave a span of no tokens
@example(np.random.default_rng(0).integers(513, 1024, 2000), 1024, 0)  # once gave a piece of one token
def test_a_cut_leaves_no_scrap(length_N, sequence_length, seed):
    # Broken by: `rest = max(left - room, 0)` alone, or without the branch of documents that stay whole.
    plan = packing_plan(length_N, sequence_length, seed)
    for document, start, length in zip(plan.document_S, plan.start_S, plan.length_S, strict=True):
        rest = length_N[document] % sequence_length
        natural = length == sequence_length or (length == rest and start + length == length_N[document])
        assert natural or length >= 32


def test_best_fit_cuts_no_document_that_fits_a_row():
    # Broken by: `fit = len(free) - 1` (the emptiest row instead of the tightest).
    length_N = np.random.default_rng(0).integers(1, 200, 3000)
    plan = packing_plan(length_N, 1024, 0)
    assert len(plan.length_S) == len(length_N)
    assert length_N.sum() / (len(plan) * 1024) > 0.995


def test_no_document_is_cut_where_the_rows_are_full_enough():
    # Broken by: FILL = 0.9999.
    length_N = np.full(600, 4080)  # two to a row: 99.6 %
    plan = packing_plan(length_N, 8192, 0)
    assert len(plan.length_S) == len(length_N)


def test_documents_that_fit_no_hole_and_cannot_be_cut_share_rows():
    # Broken by: `if True` for `if spare_room < left`; spare_room not lessened.
    length_N = np.repeat([970, 94], [1000, 35])  # 94 tokens and holes of 54 have no cut with pieces of 32 and more
    plan = packing_plan(length_N, 1024, 0)
    rows = [row for row in rows_of(plan) if any(document >= 1000 for document, _, _ in row)]
    assert len(rows) == 4
    assert all(sum(length for _, _, length in row) <= 1024 for row in rows)
    assert sorted(length for row in rows for document, _, length in row if document >= 1000) == [94] * 35
    assert len(plan) < 1000  # the long ones were cut for each other's holes


@pytest.mark.parametrize("low", [600, 5000])
def test_documents_are_cut_when_they_do_not_fit_together(low):
    # Broken by: FILL = 0.99. Each needs more than half a row: best fit alone would waste a quarter of the rows.
    length_N = np.random.default_rng(0).integers(low, 8192, 3000)
    plan = packing_plan(length_N, 8192, 0)
    assert length_N.sum() / (len(plan) * 8192) >= 0.995


def test_the_seed_decides_which_documents_meet_and_nothing_else_does():
    # Broken by: order_D not permuted.
    length_N = np.full(40, 10)
    one, again, other = (packing_plan(length_N, 40, seed) for seed in (1, 1, 2))
    meeting = [sorted(map(sorted, plan.document_S.reshape(10, 4).tolist())) for plan in (one, other)]
    assert same(one, again)
    assert meeting[0] != meeting[1]


def test_the_plan_is_pinned():
    """Another packing or shuffle makes other batches of the same run: count PACKING_VERSION up with it."""
    # Broken by: row_S not shuffled.
    assert packing.PACKING_VERSION == 2
    length_N = np.array([5, 9, 3, 7, 2, 23])
    assert rows_of(packing_plan(length_N, 10, 1)) == [
        [[2, 0, 3], [3, 0, 7]],
        [[4, 0, 2], [0, 0, 5], [5, 20, 3]],
        [[5, 0, 10]],
        [[1, 0, 9]],
        [[5, 10, 10]],
    ]
    assert rows_of(packing_plan(length_N, 10, 1, np.array([2, 0, 1.5, 1, 0.5, 0]))) == [
        [[0, 0, 5]],
        [[0, 0, 5]],
        [[2, 0, 3], [3, 0, 7]],
    ]


# ---- weights


def test_weights_of_one_change_nothing():
    # Broken by: the draw of a copy taken from `random` instead of a stream of its own.
    length_N = np.random.default_rng(0).integers(1, 300, 200)
    assert same(packing_plan(length_N, 128, 5), packing_plan(length_N, 128, 5, np.ones(200)))


def test_a_fraction_is_drawn_for_each_document_by_the_seed_alone():
    # Broken by: the draw compared with 0.5, or default_rng(1) without the seed.
    length_N, weight_N = np.full(4000, 7), np.repeat([0.3, 8.5, 4.3, 1.0], 1000)
    counts = [
        np.bincount(packing_plan(length_N, 70, seed, weight_N).document_S, minlength=4000).reshape(4, 1000)
        for seed in (0, 1)
    ]
    assert np.abs(counts[0].mean(axis=1) - [0.3, 8.5, 4.3, 1.0]).max() < 0.05  # three deviations of a mean of draws
    assert (counts[0] != counts[1]).any(axis=1).tolist() == [True, True, True, False]
    changed = np.where(np.arange(4000) < 10, 5.0, weight_N)
    again = np.bincount(packing_plan(length_N, 70, 0, changed).document_S, minlength=4000)
    assert np.array_equal(again[10:], counts[0].ravel()[10:])  # what others weigh does not touch a document's draw


@pytest.mark.parametrize("weight_N", [[1, -1, 1], [1, np.nan, 1], [1, np.inf, 1], [1, 1]])
def test_weights_that_are_none_are_refused(weight_N):
    # Broken by: each part of the condition in _copies removed.
    with pytest.raises(ValueError, match="weights must be 3 numbers from 0 on"):
        packing_plan(np.array([3, 4, 5]), 10, 0, np.array(weight_N, float))


def test_documents_of_weight_0_make_no_row():
    # Broken by: copies_N.max(initial=0).
    assert len(packing_plan(np.array([3, 4]), 10, 0, np.zeros(2))) == 0


# ---- kept plans

LENGTH_N = np.random.default_rng(3).integers(1, 90, 500)


def kept(folder, fingerprint="f", length_N=LENGTH_N, sequence_length=64, seed=1, weight_N=None):
    return stored_plan(folder, fingerprint, length_N, sequence_length, seed, weight_N)


@pytest.fixture
def made(monkeypatch):
    """The number of plans computed so far, in a list of one."""
    count = [0]

    def counted(*args):
        count[0] += 1
        return packing_plan(*args)

    monkeypatch.setattr(packing, "packing_plan", counted)
    return count


def test_a_plan_is_computed_once_then_mapped(tmp_path, made):
    # Broken by: _keep_plan not called; mmap_mode=None.
    plans = [kept(tmp_path / "plans") for _ in range(3)]
    assert made == [1]
    for plan in plans:
        assert same(plan, packing_plan(LENGTH_N, 64, 1))
        assert isinstance(plan.document_S, np.memmap)
    assert not [path for path in (tmp_path / "plans").rglob("*") if "partial" in path.name]


def test_whatever_decides_a_plan_is_in_its_name(tmp_path, made, monkeypatch):
    # Broken by: any of them left out of `kept` in stored_plan.
    weight_N = np.full(500, 2.0)
    others = ({}, {"fingerprint": "g"}, {"sequence_length": 65}, {"seed": 2}, {"weight_N": weight_N})
    others = (*others, {"weight_N": weight_N + 1}, {"length_N": LENGTH_N + 1})
    for number, other in enumerate(others, start=1):
        plan = kept(tmp_path, **other)
        assert made == [number]
        given = {"length_N": LENGTH_N, "sequence_length": 64, "seed": 1, **other}
        given.pop("fingerprint", None)
        assert same(plan, packing_plan(**given))
    monkeypatch.setattr(packing, "PACKING_VERSION", 10**6)
    kept(tmp_path)
    assert made == [len(others) + 1]


def cut(path):
    path.write_bytes(path.read_bytes()[:-4])


def empty(path):
    path.write_bytes(b"")


def garble(path):
    path.write_bytes(b"no numpy" + path.read_bytes()[8:])


def shorten(path):
    array = np.load(path)
    np.save(path, array[:-1] if array.ndim else np.zeros(2))


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


def zero(path):
    data = path.read_bytes()
    path.write_bytes(data[:128].ljust(len(data), b"\0"))


@pytest.mark.parametrize("damage", [cut, empty, garble, shorten, flip, zero, Path.unlink])
@pytest.mark.parametrize("name", [field.name for field in fields(PackingPlan)])
def test_a_damaged_plan_is_named_and_computed_anew(tmp_path, made, name, damage):
    # Broken by: no `except` in _open_plan; its comparison of hashes removed.
    kept(tmp_path)
    (path,) = tmp_path.glob(f"*/{name}.npy")
    damage(path)
    with pytest.warns(
        DamageWarning, match=f"packing plan {path.parent} is damaged .*{name}.*; without it the same is made again"
    ):
        remade = kept(tmp_path)
    for plan in (remade, kept(tmp_path)):  # and the second time it is whole again
        assert same(plan, packing_plan(LENGTH_N, 64, 1))
        assert made == [2]


def test_the_plan_of_something_else_is_not_believed(tmp_path, made):
    # Broken by: the folder's name left out of _hashes; no reading of a file of hashes that is garbage.
    kept(tmp_path, seed=2)
    (other,) = tmp_path.glob("*")
    kept(tmp_path)
    (own,) = set(tmp_path.glob("*")) - {other}
    shutil.rmtree(own)
    shutil.copytree(other, own)
    with pytest.warns(DamageWarning, match="changed since it was written: plan"):
        assert same(kept(tmp_path), packing_plan(LENGTH_N, 64, 1))
    (own / packing.HASHES).write_text("{")
    with pytest.warns(DamageWarning, match="is damaged"):
        assert same(kept(tmp_path), packing_plan(LENGTH_N, 64, 1))
    (own / packing.HASHES).unlink()  # as a process that was killed leaves it
    assert same(kept(tmp_path), packing_plan(LENGTH_N, 64, 1)) and made == [5]


def test_a_store_that_cannot_be_written_to_has_its_plan_in_memory(tmp_path, made):
    # Broken by: no `except OSError` in stored_plan.
    (tmp_path / "plans").write_text("a file where the folder should be: even root cannot write there")
    for number in (1, 2):
        assert same(kept(tmp_path / "plans"), packing_plan(LENGTH_N, 64, 1))
        assert made == [number]


def test_a_plan_that_another_process_writes_meanwhile_is_no_obstacle(tmp_path, monkeypatch):
    # Broken by: one temporary name for all in `files.written` (f".{path.stem}.partial{path.suffix}").
    in_place = files.put_in_place

    def overtaken(made, out):
        monkeypatch.setattr(files, "put_in_place", in_place)
        kept(tmp_path)
        in_place(made, out)

    monkeypatch.setattr(files, "put_in_place", overtaken)
    plan = kept(tmp_path)
    assert same(plan, packing_plan(LENGTH_N, 64, 1)) and isinstance(plan.document_S, np.memmap)


RACE = """
import sys, hashlib, numpy as np
from pathlib import Path
from cptjax.data.packing import stored_plan
print("ready", flush=True)
sys.stdin.readline()
length_N = np.random.default_rng(3).integers(1, 90, 500)
for seed in range(60):
    plan = stored_plan(Path(sys.argv[1]), "f", length_N, 64, seed)
    print(hashlib.sha256(plan.document_S.tobytes() + plan.start_S.tobytes()).hexdigest())
"""


def test_two_processes_may_make_the_same_plans_at_once(tmp_path):
    # Broken by: mkdir without exist_ok, and its FileExistsError not caught.
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(tmp_path)], cwd=ROOT, text=True, stdin=-1, stdout=-1, stderr=-1
        )
        for _ in range(2)
    ]
    assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * 2
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    printed = [racer.communicate() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0], printed
    assert printed[0][0] == printed[1][0] and len(set(printed[0][0].split())) == 60
    assert not list(tmp_path.rglob("*partial*"))
    assert len(list(tmp_path.glob("*/*.npy"))) == 60 * len(fields(PackingPlan))
