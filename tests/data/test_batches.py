"""A batch is a function of content, seed and step, and every token is in it once a pass."""

import hashlib
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cptjax.corpus.prepare import prepare
from cptjax.corpus.sources import Reading
from cptjax.data import packing
from cptjax.data.batches import Batches, Data, held_out_batches
from cptjax.data.packing import packing_plan
from cptjax.data.store import OWN_HASH, Store
from cptjax.data.tokenizer import load_tokenizer
from cptjax.files import hash_of, read_json, write_json
from tests.fixtures_text import WORDS, make_store, make_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "t")


@pytest.fixture(scope="module")
def stores(tmp_path_factory, tokenizer):
    """Three stores of one tokenizer, every document a different text."""
    folder = tmp_path_factory.mktemp("stores")
    random = np.random.default_rng(0)
    paths = {}
    for name, documents in (("a", 90), ("b", 40), ("c", 3)):
        texts = [f"{name}{i} " + " ".join(random.choice(WORDS, random.integers(1, 60))) for i in range(documents)]
        paths[name] = str(make_store(folder / name, tokenizer, texts, shards=min(2, documents // 3)))
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


# ---- the batches


letters = st.text(st.sampled_from("ab é\n中"), min_size=1, max_size=120)
corpus = st.lists(st.tuples(letters, st.sampled_from([0.0, 0.5, 1.0, 1.0, 2.0, 3.7])), min_size=1, max_size=12)


@settings(max_examples=30)
@given(
    corpora=st.lists(corpus, min_size=1, max_size=3),
    shares=st.tuples(*[st.sampled_from([0.2, 1.0, 3.0])] * 3),
    weighted=st.booleans(),
    sequence_length=st.integers(3, 150),
    rows=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_pass_shows_every_token_of_every_document_in_order(
    tokenizer, corpora, shares, weighted, sequence_length, rows, seed
):
    # Broken by: `token_L[:length]`; `at += 0`; `start=2`; no `.shuffle()`, or `.repeat()` before it; a pass without
    # its last row; weight_N not handed to the plan.
    with tempfile.TemporaryDirectory() as folder:
        texts = {}
        for number, documents in enumerate(corpora):
            weights = [2.0, *(weight for _, weight in documents[1:])] if weighted else None
            path = make_store(Path(folder) / str(number), tokenizer, [f"{number} {t}." for t, _ in documents], weights)
            texts[str(path)] = [f"{number} {text}." for text, _ in documents]
        batches = Batches(Data(tuple(zip(texts, shares, strict=False)), sequence_length, rows, seed))
        for path, (one, other) in first_two_passes(batches).items():
            for rows_seen in (one, other):
                assert texts_of(rows_seen, Store(path), batches.data) == texts[path]
            assert len(set(one)) < 8 or one != other  # each pass in an order of its own


def first_two_passes(batches):
    """The rows of the first two passes over each store as the batches show them; a row is a tuple of its spans."""
    single = Batches(replace(batches.data, global_batch_size=1))  # its epochs tell from which store each row is
    rows_seen = {path: [] for path in batches.data.shares}
    size = {path: len(rows) for path, rows in batches._rows.items()}
    for step in itertools.count():
        batch = batches.batch_of_step(step)
        for row in range(batches.data.global_batch_size):
            number = step * batches.data.global_batch_size + row
            before, after = single.epochs(number), single.epochs(number + 1)
            (path,) = [path for path in before if before[path] != after[path]]
            rows_seen[path].append(tuple(spans_of({key: value[row : row + 1] for key, value in batch.items()})))
        if all(len(rows_seen[path]) >= 2 * size[path] for path in size):
            return {path: (rows[: size[path]], rows[size[path] : 2 * size[path]]) for path, rows in rows_seen.items()}


def texts_of(rows_seen, store, data):
    """The documents' texts out of the rows of a pass. Fails unless each is there in whole, as often as it weighs."""
    plan = packing_plan(store.length_N, data.sequence_length, data.seed, store.weight_N)
    expected = defaultdict(list)  # the rows of the plan by what they hold, as (document, start) of each span
    documents = [token_L.tolist() for token_L in store.tokens(range(len(store.length_N)))]
    for first, last in itertools.pairwise(plan.row_offset):
        spans = list(zip(plan.document_S[first:last], plan.start_S[first:last], plan.length_S[first:last], strict=True))
        expected[tuple(tuple(documents[d][s : s + n]) for d, s, n in spans)].append([(d, s) for d, s, _ in spans])
    found = [np.full(len(token_L), -1) for token_L in documents]
    times = [np.zeros(len(token_L), int) for token_L in documents]
    for row in rows_seen:
        for span, (document, start) in zip(row, expected[row].pop(), strict=True):
            found[document][start : start + len(span)] = span
            times[document][start : start + len(span)] += 1
    assert not any(expected.values())
    weights = np.ones(len(documents)) if store.weight_N is None else store.weight_N
    for document, weight in enumerate(weights):
        assert (times[document] == times[document][0]).all()
        assert times[document][0] in (np.floor(weight), np.ceil(weight))
        if not times[document][0]:
            found[document] = documents[document]
    tokenizer = load_tokenizer(store.path / "tokenizer")
    return [tokenizer.decode(token_L) for token_L in found]


def test_pieces_of_documents_continue_each_other_in_order(stores):
    # Broken by: `token_L[:length]`.
    store = Store(stores["c"])
    spans = [list(spans_of(batch)) for batch in held_out_batches(stores["c"], 16, 1)]
    plan = packing_plan(store.length_N, 16, 0)
    pieces = sorted(zip(plan.document_S.tolist(), plan.start_S.tolist(), itertools.chain(*spans), strict=True))
    for document, token_L in enumerate(store.tokens(range(3))):
        of_document = [piece for d, _, piece in pieces if d == document]
        assert list(itertools.chain(*of_document)) == token_L.tolist()


# A process of a run: prints a hash of its rows of each step.
PROCESS = """
import hashlib, json, sys
from itertools import islice
from cptjax.data.batches import Batches, Data
stores, sequence_length, rows, seed, start, steps, own_rows, threads = json.loads(sys.argv[1])
stream = Batches(Data(tuple(map(tuple, stores)), sequence_length, rows, seed)).stream(start, own_rows, threads)
for batch in islice(stream, steps):
    rows = zip(batch["token_BL"], batch["segment_BL"])
    print(*(hashlib.sha256(token_L.tobytes() + segment_L.tobytes()).hexdigest() for token_L, segment_L in rows))
stream.close()
"""


def started(data, start, steps, own_rows, threads):
    settings = data.stores, data.sequence_length, data.global_batch_size, data.seed
    arguments = (*settings, start, steps, list(own_rows), threads)
    command = [sys.executable, "-c", PROCESS, json.dumps(arguments)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=-1, stderr=-1)


def row_hashes(batch):
    rows = zip(batch["token_BL"], batch["segment_BL"], strict=True)
    return [hashlib.sha256(token_L.tobytes() + segment_L.tobytes()).hexdigest() for token_L, segment_L in rows]


@pytest.fixture(scope="module")
def first_200(stores):
    """The rows of the first 200 global batches of a mixture, as hashes, by random access."""
    batches = Batches(small(stores, a=2.0, b=1.0))
    return [row_hashes(batches.batch_of_step(step)) for step in range(200)]


@pytest.mark.parametrize(
    "shares", [[range(8)], [[0, 1, 4, 5], [2, 3, 6, 7]], [[6, 7], [0, 1], [0, 1], [2, 3, 4, 5]]], ids=len
)
def test_processes_really_started_read_the_global_batches_together(stores, first_200, shares):
    """Each its own rows, which need not follow each other, and which another may read too."""
    # Broken by: `self.own_rows[0] + place`; the row's number mixed with os.getpid().
    data = small(stores, a=2.0, b=1.0)
    processes = [started(data, 0, 200, own, threads) for threads, own in enumerate(shares)]  # 0 to 3 threads
    printed = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(shares), printed
    for own, (out, _) in zip(shares, printed, strict=True):
        assert [line.split() for line in out.splitlines()] == [[rows[row] for row in own] for rows in first_200]


@pytest.mark.parametrize("threads", [0, 1, 2, 3, 4])
def test_threads_change_no_batch(stores, first_200, threads):
    # Broken by: one array for the cells of all rows, used again and again.
    stream = Batches(small(stores, a=2.0, b=1.0)).stream(threads=threads)
    assert [row_hashes(batch) for batch in first(200, stream)] == first_200


def test_the_number_of_threads_is_that_of_the_caller(stores):
    # Broken by: num_threads=4 in Batches.stream whatever is asked for.
    readers = {}
    for threads in (0, 3):
        batches = Batches(small(stores, a=1.0))
        (rows,) = batches._rows.values()
        seen = readers[threads] = set()
        read = rows.store.tokens
        rows.store.tokens = lambda documents, read=read, seen=seen: seen.add(threading.get_ident()) or read(documents)
        first(30, batches.stream(threads=threads))
    assert readers[0] == {threading.get_ident()}
    assert threading.get_ident() not in readers[3] and 1 <= len(readers[3]) <= 3


def test_a_process_started_again_at_a_random_step_goes_on_where_it_stopped(stores, first_200):
    # Broken by: `[start_step + 1 :]`.
    data = small(stores, a=2.0, b=1.0)
    bounds = [0, *sorted(np.random.default_rng().choice(np.arange(1, 200), 2, replace=False).tolist()), 200]
    processes = [started(data, s, e - s, range(8), threads=2) for s, e in itertools.pairwise(bounds)]
    lines = [line.split() for process in processes for line in process.communicate()[0].splitlines()]
    assert lines == first_200, bounds


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
def test_a_process_may_have_any_number_of_rows(stores, rows):
    """One among them: as many processes as rows, or a batch of one row."""
    # Broken by: `sys.maxsize` as the length of the mixture.
    batches = Batches(small(stores, rows=rows, a=2.0, b=1.0))
    for count in range(1, rows + 1):
        shares = [range(rows)[p::count] for p in range(count)]
        streams = [first(3, batches.stream(5, own)) for own in shares]
        for i in range(3):
            joined = {key: np.zeros((rows, 64), np.int32) for key in ("token_BL", "segment_BL")}
            for own, stream in zip(shares, streams, strict=True):
                for key, x in joined.items():
                    x[list(own)] = stream[i][key]
            assert same(joined, batches.batch_of_step(5 + i))


def test_a_process_reads_no_row_of_another(stores):
    # Broken by: the global batch read whole, then cut.
    batches = Batches(small(stores, a=1.0))
    (rows,) = batches._rows.values()
    numbers, read = [], type(rows).__getitem__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(rows), "__getitem__", lambda self, index: numbers.append(index) or read(self, index))
        first(3, batches.stream(0, [2, 5], threads=0))
        assert len(numbers) == 3 * 2
        list(held_out_batches(stores["b"], 64, 4, limit_rows=7, own_rows=[0, 2, 3]))
    assert numbers[6:] == [0, 2, 3, 4, 6]  # row 7 is padding


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
    rows_of = {name: share / batches.fill[stores[name]] for name, share in shares.items()}  # shares are of tokens
    for start, steps in ((0, 10), (17, 1), (123, 1000), (5, 10**7)):
        before, after = batches.epochs(start), batches.epochs(start + steps)
        for name in shares:
            rows = len(batches._rows[stores[name]])
            drawn = (after[stores[name]] - before[stores[name]]) * rows
            exact = steps * rows_of[name] / sum(rows_of.values())
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
    own = list(held_out_batches(stores["b"], 64, 7, own_rows=[1, 5]))
    assert all(same(x, {key: rows[[1, 5]] for key, rows in y.items()}) for x, y in zip(own, one, strict=True))
    limited = list(held_out_batches(stores["b"], 64, 7, limit_rows=9))
    assert len(limited) == 2 and same(limited[0], one[0])
    assert (limited[1]["segment_BL"][2:] == 0).all() and (limited[1]["segment_BL"][:2, 0] == 1).all()
    with pytest.raises(ValueError, match="at least 1"):
        held_out_batches(stores["b"], 64, 0)


def test_shares_are_of_tokens_though_the_rows_of_a_store_are_half_empty(tmp_path, tokenizer):
    # Broken by: by_rows without the fill; tokens() without the store's mean.
    full = [" ".join(["heart"] * (i % 20)) for i in range(400)]
    stores = {"full": full, "ragged": ["the heart is a muscle"]}  # a store of one row that is mostly padding
    paths = {name: str(make_store(tmp_path / name, tokenizer, texts)) for name, texts in stores.items()}
    batches = Batches(Data(((paths["full"], 3), (paths["ragged"], 1)), 64, 8, 0))
    assert batches.fill[paths["ragged"]] < 0.5 < 0.95 < batches.fill[paths["full"]]
    steps, ragged = 400, [tuple(Store(paths["ragged"]).tokens([0])[0].tolist())]
    seen = Counter()
    for step in range(steps):
        batch = batches.batch_of_step(step)
        for spans in (list(spans_of({k: v[i : i + 1] for k, v in batch.items()})) for i in range(8)):
            seen["ragged" if spans == ragged else "full"] += sum(map(len, spans))
    assert seen["full"] / seen["ragged"] == pytest.approx(3, rel=0.01)
    told = batches.tokens(steps)
    for name, path in paths.items():
        assert told[path] == pytest.approx(seen[name], rel=0.002)


def test_tokens_are_exact_after_whole_passes(stores):
    # Broken by: tokens() from rows times sequence_length.
    batches = Batches(small(stores, rows=1, a=1.0))
    size = len(batches._rows[stores["a"]])
    assert batches.tokens(3 * size) == {stores["a"]: pytest.approx(3 * Store(stores["a"]).manifest.tokens)}
    assert batches.epochs(3 * size) == {stores["a"]: 3.0}


def test_a_source_is_counted_as_often_as_it_is_shown(tmp_path, tokenizer, stores):
    # Broken by: length_N for plan.length_S, which leaves weights out; source_N of documents for that of spans.
    for name, documents, weight in (("often", 20, 3), ("once", 40, 1)):
        lines = [{"text": " ".join(WORDS[: 1 + i % 9]), "n": weight} for i in range(documents)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sources = [tmp_path / "often.jsonl", tmp_path / "once.jsonl"]
    path = str(tmp_path / "store")
    manifest = prepare(sources, tokenizer, path, reading=Reading(weight_field="n"))
    batches = Batches(small({**stores, "both": path}, both=1, a=1))
    (often, once), nothing = batches.by_source()[path], batches.by_source()[stores["a"]]
    assert nothing == []  # this one names no source
    assert (often[0], once[0]) == (20, 40) and often[1] + once[1] == manifest.tokens
    assert often[2] == pytest.approx(3 * often[1] / (3 * often[1] + once[1])) and often[2] + once[2] == 1


def test_a_run_and_its_restart_share_one_plan(stores, tmp_path, tokenizer, monkeypatch):
    # Broken by: _Rows calling packing_plan itself.
    path = str(make_store(tmp_path / "s", tokenizer, ["the heart is a muscle"] * 20))
    data = Data(((path, 1),), 64, 4)
    before = Batches(data).batch_of_step(3)
    monkeypatch.setattr(packing, "packing_plan", lambda *_: pytest.fail("the plan was made twice"))
    assert same(Batches(data).batch_of_step(3), before)


def test_a_replaced_store_does_not_meet_the_plan_of_the_old_one(tmp_path, tokenizer):
    # Broken by: the fingerprint left out of the plan's name.
    make_store(tmp_path / "s", tokenizer, ["the heart is a muscle"] * 20)
    data = Data(((str(tmp_path / "s"), 1),), 64, 4)
    Batches(data)
    plans = tmp_path / "s" / "plans"
    plans.rename(tmp_path / "plans")
    shutil.rmtree(tmp_path / "s")
    store = Store(make_store(tmp_path / "s", tokenizer, ["blood"] * 7))
    (tmp_path / "plans").rename(plans)
    batches = Batches(data)
    assert batches.fill[data.stores[0][0]] == store.manifest.tokens / (64 * len(batches._rows[data.stores[0][0]]))
    assert {token_L[:3].tobytes() for token_L in batches.batch_of_step(0)["token_BL"]} == {
        store.tokens([0])[0][:3].tobytes()
    }


# ---- refusals


def test_a_store_whose_weights_show_nothing_is_refused(tmp_path, tokenizer):
    # Broken by: the check of len(self.plan) removed.
    path = make_store(tmp_path / "s", tokenizer, ["the heart"] * 3, [0, 0, 0])
    with pytest.raises(ValueError, match="s shows no document"):
        Batches(Data(((str(path), 1),), 64, 4))


def test_wrong_data_is_refused(stores, tmp_path):
    with pytest.raises(ValueError, match="stores is empty"):
        Data(())
    with pytest.raises(ValueError, match="twice"):
        Data((("x", 1), ("x", 2)))
    for share in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="the share of x is .* must be positive"):
            Data((("x", share),))
    for wrong in ({"sequence_length": 0}, {"global_batch_size": -8}, {"global_batch_size": 2**31}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Data((("x", 1),), **wrong)
    with pytest.raises(ValueError, match="is not a token store"):
        Batches(Data(((str(tmp_path), 1),)))
    other = make_tokenizer(tmp_path / "other", seed_text="quite other words")
    make_store(tmp_path / "out", other, ["the heart"])
    with pytest.raises(ValueError, match="do not share one tokenizer") as caught:
        Batches(Data(((stores["a"], 1), (str(tmp_path / "out"), 1))))
    assert stores["a"] in str(caught.value) and str(tmp_path / "out") in str(caught.value)


def test_stores_whose_documents_end_otherwise_are_not_mixed(tmp_path):
    # Broken by: eos_token_id left out of VOCABULARY. A tokenizer.json that ends no document, and another file's end.
    bare = make_tokenizer(tmp_path / "bare", ends=False)
    first = make_store(tmp_path / "first", bare, ["the heart"])
    (bare / "tokenizer_config.json").write_text(json.dumps({"eos_token": "[UNK]"}))
    second = make_store(tmp_path / "second", bare, ["the heart"])
    with pytest.raises(ValueError, match=r"do not share one tokenizer \(eos_token_id is \d+ and \d+\)"):
        Batches(Data(((str(first), 1), (str(second), 1))))


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def flip_last(path):
    flip(path, -1)


CHANGED = {  # how a store is changed behind the manifest's back, and what is said
    "lengths": (lambda s: flip_last(s / "length_N.npy"), "length_N.npy has changed since it was made"),
    "lengths that keep their sum": (
        lambda s: np.save(s / "length_N.npy", np.load(s / "length_N.npy")[::-1]),
        "length_N.npy has changed since it was made",
    ),
    "weights": (lambda s: np.save(s / "weight_N.npy", np.ones(4, np.float32)), "weight_N.npy has changed"),
    "weights taken away": (lambda s: (s / "weight_N.npy").unlink(), "weight_N.npy is missing"),
    "tokenizer": (lambda s: flip_last(s / "tokenizer" / "tokenizer.json"), "tokenizer.json has changed"),
    "tokenizer's settings": (
        lambda s: (s / "tokenizer" / "tokenizer_config.json").write_text("{}"),
        "tokenizer_config.json has changed",
    ),
    "one file more of the tokenizer": (
        lambda s: (s / "tokenizer" / "special_tokens_map.json").write_text("{}"),
        "special_tokens_map.json has changed",
    ),
    "manifest": (
        lambda s: write_json(s / "manifest.json", read_json(s / "manifest.json") | {"mask_token_id": 1}),
        "manifest.json has changed since it was written",
    ),
    "one bit of a document": (  # the header of the first chunk ends at byte 104
        lambda s: flip(s / "tokens-00000.array_record", 110),
        "is damaged at document 0 .*hash mismatch",
    ),
    "a shard of another store": (
        lambda s: shutil.copy(s.parent / "other" / "tokens-00000.array_record", s),
        "it is of another store",
    ),
    "a shard with one word for another": (
        lambda s: shutil.copy(s.parent / "alike" / "tokens-00000.array_record", s),
        "its ids have changed since they were written",
    ),
}


@pytest.mark.parametrize(("change", "says"), CHANGED.values(), ids=CHANGED)
def test_a_store_is_what_its_manifest_says(tmp_path, tokenizer, change, says):
    """All that decides a number is compared with a hash before it is used."""
    # Broken by: no sha256 in _checked, no _check_tokenizer, no hash of the manifest, no lengths or no CRC-32 compared.
    store = make_store(tmp_path / "s", tokenizer, ["the heart", "blood", "a muscle is", "the"], [1, 2, 1, 1])
    make_store(tmp_path / "other", tokenizer, ["the", "the heart is", "blood is", "a"])
    make_store(tmp_path / "alike", tokenizer, ["the heart", "blood", "a blood is", "the"])
    data = Data(((str(store), 1),), 64, 4)
    before = Batches(data).batch_of_step(0)
    assert same(Batches(data).batch_of_step(0), before)
    change(store)
    with pytest.raises(ValueError, match=says) as caught:
        Batches(data).batch_of_step(0)
    assert "\n" not in str(caught.value) and str(store) in str(caught.value)


OTHER_VERSIONS = {  # what a program of another version would write, and what is said
    "another number": (lambda f: f.update(version=1), "is a token store of version 1, .* reads version 2: prepare it"),
    "no hash of itself": (lambda f: f.pop(OWN_HASH), "manifest.json has changed since .* or prepare it again"),
    "no field": (lambda f: f.pop("written_specials"), "manifest.json: written_specials: Field required"),
    "no CRC-32": (lambda f: f["sha256"].pop("crc32_N.npy"), "crc32_N.npy has changed since it was made"),
    "no tokenizer": (lambda f: f["sha256"].pop("tokenizer/tokenizer.json"), "tokenizer.json has changed since"),
    "no shards": (lambda f: f["shards"].clear(), "manifest.json names shards of 0 documents, the store has 2"),
}


@pytest.mark.parametrize(("change", "says"), OTHER_VERSIONS.values(), ids=OTHER_VERSIONS)
def test_a_store_of_another_version_is_refused(tmp_path, tokenizer, change, says):
    # Broken by: a manifest without a hash believed; `written_specials: int = 0`; crc32_N read only where it is named;
    # the sum over the manifest's shards left out.
    store = make_store(tmp_path / "s", tokenizer, ["the heart", "blood"])
    fields = read_json(store / "manifest.json")
    change(fields)
    if fields.pop(OWN_HASH, None):
        fields[OWN_HASH] = hash_of(fields)
    write_json(store / "manifest.json", fields)
    with pytest.raises(ValueError, match=says) as caught:
        Store(store)
    assert "\n" not in str(caught.value)


def test_each_field_that_decides_a_batch_is_in_the_fingerprint(stores):
    # Broken by: any of them left out of Manifest.fingerprint.
    manifest = Store(stores["a"]).manifest
    other = "0" * 64
    changes = [{name: 99} for name in ("vocab_size", "pad_token_id", "mask_token_id", "dtype")]
    changes += [{"tokenizer_sha256": other}, {"special_token_ids": (0,)}, {"shards": manifest.shards[:-1]}]
    changes += [{"sha256": manifest.sha256 | {name: other}} for name in ("length_N.npy", "weight_N.npy")]
    found = {replace(manifest, **change).fingerprint for change in changes}
    assert len(found | {manifest.fingerprint}) == len(changes) + 1
    assert replace(manifest, words=99).fingerprint == manifest.fingerprint
