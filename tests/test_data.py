"""A batch is a function of content, seed and step, and every token is in it once a pass."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cptjax.corpus import Store, load_tokenizer, prepare
from cptjax.data import Batches, Data, fingerprint, held_out_batches, packing_plan
from tests.fixtures_text import WORDS, make_tokenizer

few = settings(max_examples=60, deadline=None)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Three stores of one tokenizer, every document a different text."""
    folder = tmp_path_factory.mktemp("stores")
    tokenizer = make_tokenizer(folder / "tokenizer")
    random = np.random.default_rng(0)
    paths = {}
    for name, documents in (("a", 90), ("b", 40), ("c", 3)):
        lines = [f"{name}{i} " + " ".join(random.choice(WORDS, random.integers(1, 60))) for i in range(documents)]
        (folder / f"{name}.txt").write_text("\n\n".join(lines))
        out = folder / "out" / name
        prepare([folder / f"{name}.txt"], tokenizer, out, txt_documents="paragraph")
        paths[name] = str(out)
    return paths


def small(stores, rows=8, length=64, seed=3, **shares):
    """A run's data: shares by the short name of each store."""
    return Data(tuple((stores[name], share) for name, share in shares.items()), length, rows, seed)


def spans_of(batch):
    """Every span of a batch as a tuple of ids; checks that rows are packed without gaps."""
    for token_L, segment_L in zip(batch["token_BL"], batch["segment_BL"], strict=True):
        filled = segment_L[segment_L > 0]
        assert (segment_L[len(filled) :] == 0).all() and (token_L[len(filled) :] == 0).all()
        assert filled.size == 0 or filled[0] == 1
        assert np.isin(np.diff(filled), (0, 1)).all()
        for segment in np.unique(filled):
            yield tuple(token_L[segment_L == segment].tolist())


def same(one, other):
    return all(np.array_equal(one[key], other[key]) for key in ("token_BL", "segment_BL"))


def first(count, stream):
    batches = list(itertools.islice(stream, count))
    stream.close()
    return batches


# ---- the plan


@few
@given(
    length_N=st.lists(st.integers(1, 400), min_size=1, max_size=60).map(np.array),
    sequence_length=st.integers(1, 200),
    seed=st.integers(0, 9),
)
@example(np.array([37, 70, 70, 70, 70, 75]), 106, 0)  # once gave a span of no tokens
def test_every_token_of_every_document_is_in_one_row(length_N, sequence_length, seed):
    plan = packing_plan(length_N, sequence_length, seed)
    seen = [np.zeros(length, int) for length in length_N]
    for document, start, length in zip(plan.document_S, plan.start_S, plan.length_S, strict=True):
        assert length > 0 and start + length <= length_N[document]
        seen[document][start : start + length] += 1
    assert all((count == 1).all() for count in seen)
    used_R = np.add.reduceat(plan.length_S, plan.row_offset[:-1])
    assert (used_R <= sequence_length).all() and (np.diff(plan.row_offset) > 0).all()
    assert plan.row_offset[-1] == len(plan.length_S)


def test_best_fit_cuts_no_document_that_fits_a_row():
    length_N = np.random.default_rng(0).integers(1, 200, 3000)
    plan = packing_plan(length_N, 1024, 0)
    assert len(plan.length_S) == len(length_N)
    assert length_N.sum() / (len(plan) * 1024) > 0.99


def test_documents_are_cut_when_they_do_not_fit_together():
    # Each needs more than half a row: best fit alone would waste a quarter of the rows.
    length_N = np.random.default_rng(0).integers(513, 1024, 2000)
    plan = packing_plan(length_N, 1024, 0)
    assert length_N.sum() / (len(plan) * 1024) > 0.99
    assert plan.length_S.min() >= 32


def test_the_seed_decides_which_documents_meet_and_nothing_else_does():
    length_N = np.full(40, 10)
    one, again, other = (packing_plan(length_N, 40, seed) for seed in (1, 1, 2))
    meeting = [sorted(map(sorted, plan.document_S.reshape(10, 4).tolist())) for plan in (one, other)]
    assert np.array_equal(one.document_S, again.document_S)
    assert meeting[0] != meeting[1]


# ---- the batches


def test_a_pass_holds_every_document_once_and_the_next_pass_another_order(stores):
    data = small(stores, rows=1, a=1.0)
    batches = Batches(data)
    num_rows = round(1 / batches.epochs(1)[stores["a"]])
    passes = [[batches.batch_of_step(e * num_rows + i) for i in range(num_rows)] for e in (0, 1)]
    store = Store(stores["a"])
    words = load_tokenizer(store.path / "tokenizer")
    texts = {words.decode(t) for t in store.tokens(range(store.manifest.documents))}
    for rows in passes:
        spans = [span for row in rows for span in spans_of(row)]
        # A span that starts a document starts with [CLS]; pieces are joined by what they continue.
        whole = {words.decode(s) for s in spans if s[0] == 2 and s[-1] == 3}
        assert whole <= texts
        assert sum(map(len, spans)) == store.manifest.tokens
        joined = sorted(itertools.chain.from_iterable(spans))
        assert joined == sorted(np.concatenate(store.tokens(range(90))).tolist())
    key = [[row["token_BL"].tobytes() for row in rows] for rows in passes]
    assert sorted(key[0]) == sorted(key[1]) and key[0] != key[1]


def test_pieces_of_documents_continue_each_other_in_order(stores):
    store = Store(stores["c"])
    spans = [list(spans_of(batch)) for batch in held_out_batches(stores["c"], 16, 1)]
    plan = packing_plan(store.length_N, 16, 0)
    pieces = sorted(zip(plan.document_S.tolist(), plan.start_S.tolist(), itertools.chain(*spans), strict=True))
    for document, token_L in enumerate(store.tokens(range(3))):
        of_document = [piece for d, _, piece in pieces if d == document]
        assert list(itertools.chain(*of_document)) == token_L.tolist()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_together_read_the_global_batch(stores, count):
    batches = Batches(small(stores, a=2.0, b=1.0))
    streams = [first(3, batches.stream(5, p, count)) for p in range(count)]
    for i in range(3):
        parts = [stream[i] for stream in streams]
        joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        assert joined["token_BL"].shape == (8, 64) and joined["token_BL"].dtype == np.int32
        assert same(joined, batches.batch_of_step(5 + i))


def test_a_restart_at_any_step_continues_the_same_stream(stores):
    data = small(stores, a=2.0, b=1.0)
    undisturbed = first(12, Batches(data).stream())
    for start in (1, 7, 11):
        (batch,) = first(1, Batches(data).stream(start))
        assert same(batch, undisturbed[start])
    assert not same(undisturbed[0], undisturbed[1])
    # Far beyond any pass: starting costs nothing.
    assert same(first(1, Batches(data).stream(10**9))[0], Batches(data).batch_of_step(10**9))


def test_neither_paths_nor_the_order_of_stores_change_a_batch(stores, tmp_path):
    moved = tmp_path / "elsewhere"
    moved.symlink_to(stores["a"])
    one = Batches(Data(((stores["a"], 2), (stores["b"], 2)), 64, 7)).batch_of_step(4)
    other = Batches(Data(((stores["b"], 5), (str(moved), 5)), 64, 7)).batch_of_step(4)
    assert same(one, other)


def test_another_seed_gives_another_order(stores):
    batches = [Batches(small(stores, seed=seed, a=1.0)).batch_of_step(0) for seed in (3, 4)]
    assert not same(*batches)


@pytest.mark.parametrize("shares", [{"a": 0.7, "b": 0.3}, {"a": 1, "b": 10, "c": 3.3}, {"a": 1, "c": 999}])
def test_shares_are_exact_to_a_row_in_every_window(stores, shares):
    data = small(stores, rows=1, **shares)
    batches = Batches(data)
    total = sum(shares.values())
    for start, steps in ((0, 10), (17, 1), (123, 1000), (5, 10**7)):
        before, after = batches.epochs(start), batches.epochs(start + steps)
        for name, share in shares.items():
            rows = len(batches._rows[stores[name]])
            drawn = (after[stores[name]] - before[stores[name]]) * rows
            exact = steps * share / total
            assert abs(drawn - exact) < (1.001 if len(shares) == 2 else 2)
            assert start or abs(drawn - exact) < (0.501 if len(shares) == 2 else 1)


def test_rows_come_from_the_stores_that_epochs_counts(stores):
    batches = Batches(small(stores, rows=1, length=64, a=0.7, b=0.3))
    rows_of = {
        name: {row["token_L"].tobytes() for row in map(rows.__getitem__, range(len(rows)))}
        for name, rows in ((n, batches._rows[stores[n]]) for n in "ab")
    }
    counts = dict.fromkeys("ab", 0)
    seen = set()
    for step in range(40):  # less than a pass over either: no row comes twice
        row = batches.batch_of_step(step)["token_BL"][0].tobytes()
        counts[next(name for name in "ab" if row in rows_of[name])] += 1
        assert row not in seen
        seen.add(row)
        drawn = batches.epochs(step + 1)
        for name in "ab":
            assert drawn[stores[name]] * len(rows_of[name]) == pytest.approx(counts[name])


def test_a_store_smaller_than_a_row_is_one_padded_row(stores):
    batches = Batches(small(stores, rows=2, length=4096, c=1.0))
    batch = batches.batch_of_step(0)
    assert [len(list(spans_of({k: v[i : i + 1] for k, v in batch.items()}))) for i in (0, 1)] == [
        3,
        3,
    ]
    assert batches.fill[stores["c"]] == (batch["segment_BL"][0] > 0).mean()


def test_held_out_rows_come_once_in_order_with_fixed_shapes(stores):
    store = Store(stores["b"])
    one, again = (list(held_out_batches(stores["b"], 64, 7)) for _ in range(2))
    assert all(same(x, y) for x, y in zip(one, again, strict=True))
    assert {batch["token_BL"].shape for batch in one} == {(7, 64)}
    tokens = [token for batch in one for span in spans_of(batch) for token in span]
    assert sorted(tokens) == sorted(np.concatenate(store.tokens(range(40))).tolist())
    limited = list(held_out_batches(stores["b"], 64, 7, limit_rows=9))
    assert len(limited) == 2 and same(limited[0], one[0])
    assert (limited[1]["segment_BL"][2:] == 0).all() and (limited[1]["segment_BL"][:2, 0] == 1).all()
    with pytest.raises(ValueError, match="at least 1"):
        held_out_batches(stores["b"], 64, 0)


def test_the_plan_is_pinned():
    """Another packing or shuffle makes other batches of the same run: change it knowingly."""
    plan = packing_plan(np.array([5, 9, 3, 7, 2, 23]), 10, 1)
    rows = np.split(np.stack([plan.document_S, plan.start_S, plan.length_S], 1), plan.row_offset[1:-1])
    assert [row.tolist() for row in rows] == [
        [[2, 0, 3], [3, 0, 7]],
        [[4, 0, 2], [0, 0, 5], [5, 20, 3]],
        [[5, 0, 10]],
        [[1, 0, 9]],
        [[5, 10, 10]],
    ]


# ---- refusals


def test_wrong_data_is_refused(stores, tmp_path):
    with pytest.raises(ValueError, match="stores is empty"):
        Data(())
    with pytest.raises(ValueError, match="twice"):
        Data((("x", 1), ("x", 2)))
    for share in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="the share of x is .* must be positive"):
            Data((("x", share),))
    for wrong in ({"sequence_length": 0}, {"global_batch_size": -8}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Data((("x", 1),), **wrong)
    with pytest.raises(ValueError, match="is not a token store"):
        Batches(Data(((str(tmp_path), 1),)))
    with pytest.raises(ValueError, match="global_batch_size 8 is not a multiple of the 3 processes"):
        Batches(small(stores, a=1.0)).stream(0, 0, 3)
    other = make_tokenizer(tmp_path / "other", seed_text="quite other words")
    (tmp_path / "a.txt").write_text("the heart")
    prepare([tmp_path / "a.txt"], other, tmp_path / "out")
    with pytest.raises(ValueError, match="made by different tokenizers") as caught:
        Batches(Data(((stores["a"], 1), (str(tmp_path / "out"), 1))))
    assert stores["a"] in str(caught.value) and str(tmp_path / "out") in str(caught.value)


def test_the_fingerprint_names_each_store(stores):
    found = fingerprint(small(stores, a=1.0, b=1.0))
    assert found == {stores[n]: Store(stores[n]).manifest.fingerprint for n in "ab"}
