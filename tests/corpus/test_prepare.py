"""Text becomes a token store whole or not at all, the same one whoever does the work and however often it stops."""

import dataclasses
import errno
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zstandard
from tokenizers import Tokenizer, models, normalizers

from cptjax.__main__ import main
from cptjax.command.errors import describe
from cptjax.command.signals import COME_AGAIN
from cptjax.corpus import beam, formats, parts, pieces, pool, sources
from cptjax.corpus.cleaning import Cleaning, parse_condition, parse_steps
from cptjax.corpus.prepare import ShardTask, prepare
from cptjax.corpus.sources import Reading
from cptjax.data import store, tokenizer
from cptjax.data.store import OWN_HASH, Duplicates, Manifest, Store
from cptjax.data.tokenizer import load_tokenizer
from cptjax.files import hash_of, locked
from tests.fixtures_text import WORDS, make_tokenizer

TEXTS = ["the heart is a muscle", "blood [MASK] vessels [SEP]", "é\u2028ü 心\n\nmind", "a b"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "small")


def jsonl(rows):
    rows = [row if isinstance(row, dict) else {"text": row} for row in rows]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def decoded(path):
    """The texts of a store, special tokens left out."""
    opened = Store(path)
    words = load_tokenizer(opened.path / "tokenizer")
    return [words.decode(token_L) for token_L in opened.tokens(range(opened.manifest.documents))]


def dropped(path):
    return [json.loads(line) for line in (path / "dropped.jsonl").read_text().splitlines()]


def content(path):
    """The bytes of every file of a store."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def refusal(folder, *arguments, **options):
    """The message of a refused `prepare`, which leaves nothing behind in `folder`."""
    before = sorted(folder.rglob("*"))
    with pytest.raises((ValueError, FileNotFoundError, FileExistsError)) as caught:
        prepare(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert sorted(folder.rglob("*")) == before
    return message


@pytest.fixture
def small(monkeypatch):
    """Everything in small: many chunks, batches and shards out of little text."""
    monkeypatch.setattr(pieces, "PIECE_BYTES", 400)
    monkeypatch.setattr(parts, "BATCH_BYTES", 100)
    monkeypatch.setattr("cptjax.corpus.prepare.SHARD_TOKENS", 250)


def many(count=60):
    return [" ".join(WORDS[i % 5 :]) + f" {i}" for i in range(count)]


# ---- what goes in comes out


def test_texts_come_back_from_the_store(tmp_path, folder):
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS))
    manifest = prepare([tmp_path / "a.jsonl"], folder, tmp_path / "out")
    opened = Store(tmp_path / "out")
    assert decoded(tmp_path / "out") == TEXTS
    assert opened.manifest == manifest == Manifest.read(tmp_path / "out")
    assert manifest.text_bytes == sum(len(t.encode()) for t in TEXTS)
    assert manifest.words == sum(len(t.split()) for t in TEXTS)
    assert manifest.documents == manifest.sources[0].documents == len(TEXTS)
    assert manifest.tokens == opened.length_N.sum() == sum(s.tokens for s in manifest.shards)
    assert (manifest.bos_token_id, manifest.eos_token_id, manifest.pad_token_id, manifest.mask_token_id) == (2, 3, 0, 4)
    assert manifest.special_token_ids == (0, 1, 2, 3, 4)
    assert manifest.written_specials == sum(t.count(token) for t in TEXTS for token in ("[CLS]", "[SEP]", "[MASK]"))
    assert opened.origins([0, 3]) == ["a.jsonl:1", "a.jsonl:4"]
    opened.verify()
    # Nothing but the store is left.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "out"]


@pytest.mark.usefixtures("small")
def test_many_chunks_batches_and_shards_make_the_same_documents(tmp_path, folder):
    # Broken by: `pending.clear()` left out of chunks, `side_N[...] == task.side` read one part off.
    texts = many()
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.jsonl").write_bytes(jsonl(texts[:40]))
    for i, text in enumerate(texts[40:]):
        (source / f"b{i:02d}.txt").write_text(text)
    manifest = prepare([source], folder, tmp_path / "many")
    assert len(manifest.shards) > 3
    assert decoded(tmp_path / "many") == texts
    assert Store(tmp_path / "many").origins([39, 40]) == ["in/a.jsonl:40", "in/b00.txt:1"]


def test_a_vocabulary_of_more_than_two_bytes(tmp_path, folder):
    large = tmp_path / "large"
    words = load_tokenizer(folder)
    words.add_tokens([f"word{i}" for i in range(2**16)])
    large.mkdir()
    words.save(str(large / "tokenizer.json"))
    (tmp_path / "a.txt").write_text("the word65535")
    manifest = prepare([tmp_path / "a.txt"], large, tmp_path / "out")
    assert manifest.dtype == "uint32"
    assert Store(tmp_path / "out").tokens([0])[0].max() == manifest.vocab_size - 1


def test_the_fingerprint_is_of_the_content(tmp_path, folder):
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS))
    (tmp_path / "b.jsonl").write_bytes(jsonl([*TEXTS[:-1], "a c"]))
    one, again, other = (
        prepare([tmp_path / source], folder, tmp_path / out).fingerprint
        for source, out in (("a.jsonl", "1"), ("a.jsonl", "2"), ("b.jsonl", "3"))
    )
    assert one == again != other


def test_every_source_is_counted(tmp_path, folder):
    (tmp_path / "a.txt").write_text("the heart")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.jsonl").write_bytes(jsonl(["mind", "", "the blood"]))
    (tmp_path / "in" / "c.png").write_bytes(b"\x89PNG")
    manifest = prepare([tmp_path / "a.txt", tmp_path / "in"], folder, tmp_path / "out")
    assert [(s.name, s.files, s.documents, s.words) for s in manifest.sources] == [("a.txt", 1, 1, 2), ("in", 1, 2, 3)]
    assert sum(s.tokens for s in manifest.sources) == manifest.tokens
    assert manifest.dropped == {"empty": 1, "other_files": 1}
    assert dropped(tmp_path / "out") == [{"where": "in/b.jsonl:2", "why": "empty"}]


def test_what_was_not_read_is_said_first(tmp_path, folder, monkeypatch, capsys):
    # Broken by: `left_out` not written to files.json, its sentences not printed or not among the warnings.
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.jsonl").write_bytes(jsonl(TEXTS))
    (source / "copy.jsonl").write_bytes(jsonl(TEXTS))
    for name in ("notes.pdf", ".hidden.jsonl"):
        (source / name).write_bytes(jsonl(["mind"])[1:])
    command = ["cptjax", "prepare", "--source", str(source), "--tokenizer", str(folder), "--out", f"{tmp_path}/out"]
    monkeypatch.setattr(sys, "argv", command)
    assert main() == 0
    said = capsys.readouterr()
    other, hidden = (
        "Of other kinds, not read: 1 (in/notes.pdf).",
        "passed over where they are not named themselves: 1 (in/.h",
    )
    assert other in said.err and hidden in said.err
    assert said.out.splitlines()[1:3] == [
        f"! {other}",
        "! 2 files are 1 by content, such as in/a.jsonl and in/copy.jsonl.",
    ]
    assert hidden in " ".join(said.out.split())
    left_out = [(of.name, of.why) for of in Store(tmp_path / "out").files().left_out]
    assert left_out == [("in/.hidden.jsonl", "hidden"), ("in/notes.pdf", "kind")]


def test_a_vocabulary_with_capitals_that_the_tokenizer_makes_small_is_said(tmp_path, monkeypatch, capsys):
    # Broken by: cautions not printed, or not among the warnings.
    words = {token: i for i, token in enumerate(("[UNK]", "[SEP]", "mind", "Heart", "heart"))}
    made = Tokenizer(models.WordLevel(words, "[UNK]"))
    made.normalizer = normalizers.Lowercase()
    (tmp_path / "t").mkdir()
    made.save(str(tmp_path / "t" / "tokenizer.json"))
    (tmp_path / "a.txt").write_text("Heart")
    out = tmp_path / "out"
    command = ["cptjax", "prepare", "--source", f"{tmp_path}/a.txt", "--tokenizer", f"{tmp_path}/t", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    assert main() == 0
    said = (
        "1 words of the vocabulary, such as 'Heart', have capitals or accents that the tokenizer takes from every text"
    )
    assert f"{said}: no text will have them.\n" in capsys.readouterr().err
    assert json.loads((out / "report.json").read_text())["warnings"][0].startswith(said)


def test_parts_read_by_other_rules_are_made_anew(tmp_path, folder, monkeypatch, capsys):
    # Broken by: formats.VERSION left out of the key of a job.
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("cptjax.corpus.prepare.put_in_place", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        prepare([tmp_path / "a.jsonl"], folder, tmp_path / "out")
    monkeypatch.setattr(formats, "VERSION", formats.VERSION + 1)
    prepare([tmp_path / "a.jsonl"], folder, tmp_path / "out")
    assert "it is begun anew" in capsys.readouterr().err


def test_held_out_documents_are_on_one_side_and_stay_there(tmp_path, folder):
    texts = [f"heart {i // 2}" for i in range(400)]  # each twice
    (tmp_path / "a.jsonl").write_bytes(jsonl(texts))
    (tmp_path / "b.jsonl").write_bytes(jsonl(["mind", *texts[:100]]))
    manifest = prepare([tmp_path / "a.jsonl"], folder, tmp_path / "a", held_out=0.2)
    prepare([tmp_path / "b.jsonl"], folder, tmp_path / "b", held_out=0.2)
    seen, held = decoded(tmp_path / "a"), decoded(tmp_path / "a" / "held_out")
    assert sorted(seen + held) == sorted(texts) and not set(seen) & set(held)
    assert manifest.documents == len(seen) and 0.13 < len(held) / len(texts) < 0.27
    assert set(decoded(tmp_path / "b" / "held_out")) - {"mind"} <= set(held)


# ---- what is left out


ROWS = [
    {"id": "a", "text": "the heart is a muscle", "edu": 4, "lang": "en", "w": 30},
    {"id": "b", "text": "the heart is a muscle", "edu": 2, "lang": "en", "w": 10},
    {"id": "c", "text": "mind", "edu": 5, "lang": "fr", "w": 99},
    {"id": "d", "text": "blood through the vessels", "edu": 3, "lang": "en", "w": 0},
]


def cleaned(tmp_path, folder, rows=ROWS, reading=None, **options):
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows))
    manifest = prepare([tmp_path / "a.jsonl"], folder, tmp_path / "out", reading=reading, overwrite=True, **options)
    whys = [(drop["where"].split(":")[1], drop["why"]) for drop in dropped(tmp_path / "out")]
    assert sum(manifest.dropped.values()) == len(whys) == len(rows) - manifest.documents
    return manifest, whys


def test_columns_say_what_stays(tmp_path, folder):
    conditions = tuple(map(parse_condition, ("edu>=3", "lang==en")))
    manifest, whys = cleaned(tmp_path, folder, cleaning=Cleaning(keep_if=conditions))
    assert whys == [("2", "edu>=3"), ("3", "lang==en")]
    assert manifest.dropped["edu>=3"] == 1 and manifest.settings["keep_if"] == ["edu>=3", "lang==en"]
    assert decoded(tmp_path / "out") == [ROWS[0]["text"], ROWS[3]["text"]]


def test_documents_have_weights(tmp_path, folder):
    reading = Reading(weight_field="w")
    manifest, whys = cleaned(tmp_path, folder, reading=reading)
    assert whys == [("4", "weight 0")]
    assert Store(tmp_path / "out").weight_N.tolist() == [30, 10, 99]
    weights = tmp_path / "out" / "weight_N.npy"
    for damaged in (b"", weights.read_bytes()[:-1] + b"x"):
        weights.write_bytes(damaged)
        with pytest.raises(ValueError, match="weight_N.npy (is damaged|has changed since it was made)"):
            Store(tmp_path / "out").verify()
    steps = Cleaning(weight_steps=parse_steps("0:0.5,10:1,30:4.3"))
    cleaned(tmp_path, folder, reading=reading, cleaning=steps)
    assert Store(tmp_path / "out").weight_N == pytest.approx([4.3, 1, 4.3, 0.5])
    cleaned(tmp_path, folder)
    assert Store(tmp_path / "out").weight_N is None
    assert manifest.documents == 3


def test_lengths_have_bounds(tmp_path, folder):
    lengths = [len(load_tokenizer(folder).encode(row["text"]).ids) for row in ROWS]
    assert lengths[2] < lengths[0] < lengths[3]
    bounds = Cleaning(min_tokens=lengths[0], max_tokens=lengths[0])
    _, whys = cleaned(tmp_path, folder, cleaning=bounds)
    assert whys == [("3", f"fewer than {lengths[0]} tokens"), ("4", f"more than {lengths[0]} tokens")]


def test_repetitions_are_counted_and_dropped_on_request(tmp_path, folder):
    long = " ".join(f"w{i}" for i in range(300))
    rows = [*(row["text"] for row in ROWS), long, long.replace("w17 ", "v "), long]
    manifest, whys = cleaned(tmp_path, folder, rows)
    assert (manifest.duplicates.exact, manifest.duplicates.near, whys) == (2, None, [])
    manifest, whys = cleaned(tmp_path, folder, rows, cleaning=Cleaning(duplicates="exact"))
    assert whys == [("2", "exact duplicate"), ("7", "exact duplicate")]
    manifest, whys = cleaned(tmp_path, folder, rows, cleaning=Cleaning(duplicates="near"))
    assert (manifest.duplicates.exact, manifest.duplicates.near) == (2, 1)
    assert whys == [("2", "exact duplicate"), ("6", "near duplicate"), ("7", "exact duplicate")]
    assert [drop["like"] for drop in dropped(tmp_path / "out")] == ["a.jsonl:1", "a.jsonl:5", "a.jsonl:5"]


def test_evaluation_texts_are_found_and_dropped_on_request(tmp_path, folder):
    test = " ".join(f"word{i}" for i in range(20))
    (tmp_path / "test.txt").write_text(test)
    rows = ["mind", f"before {test} after", "heart", test]
    evaluation = (str(tmp_path / "test.txt"),)
    manifest, whys = cleaned(tmp_path, folder, rows, cleaning=Cleaning(evaluation=evaluation))
    assert whys == [] and manifest.contamination is not None
    assert (manifest.contamination.documents, manifest.contamination.found) == (2, {"test.txt": 2})
    manifest, whys = cleaned(tmp_path, folder, rows, cleaning=Cleaning(evaluation=evaluation, drop_contaminated=True))
    assert whys == [("2", "contaminated"), ("4", "contaminated")]
    assert dropped(tmp_path / "out")[0]["like"] == "test.txt"
    # Of a dropped document no other is a repetition.
    both = Cleaning(evaluation=evaluation, drop_contaminated=True, duplicates="exact")
    assert cleaned(tmp_path, folder, [*rows, test], cleaning=both)[0].duplicates.exact == 0


def test_fields_are_counted_by_value(tmp_path, folder, monkeypatch):
    exact = Cleaning(duplicates="exact")
    manifest, _ = cleaned(tmp_path, folder, count_fields=("lang", "edu"), cleaning=exact)
    lengths = Store(tmp_path / "out").length_N
    assert manifest.fields["lang"] == {
        "en": {"documents": 2, "tokens": int(lengths[0] + lengths[2])},
        "fr": {"documents": 1, "tokens": int(lengths[1])},
    }
    monkeypatch.setattr("cptjax.corpus.prepare.MOST_VALUES", 2)
    with pytest.raises(ValueError, match="field 'edu' has more than 2 values"):
        cleaned(tmp_path, folder, count_fields=("edu",))


# ---- rows that cannot be read


def test_a_bad_row_ends_the_work_or_is_skipped_and_listed(tmp_path, folder):
    rows = b'{"text": "mind"}\n{nonsense\n{"text": 3}\n{"text": "the heart"}\n{"text": "a\\u0000b"}\n'
    (tmp_path / "a.jsonl").write_bytes(rows)
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(jsonl(TEXTS * 50))[:-9])
    both = [tmp_path / "a.jsonl", tmp_path / "b.jsonl.zst"]
    assert "a.jsonl:2 is not JSON" in refusal(tmp_path, both, folder, tmp_path / "out")
    manifest = prepare(both, folder, tmp_path / "out", on_error="skip")
    assert manifest.dropped["bad row"] == 4 and manifest.sources[0].documents == 2
    listed = dropped(tmp_path / "out")
    assert [drop["where"] for drop in listed[:3]] == ["a.jsonl:2", "a.jsonl:3", "a.jsonl:5"]
    assert listed[3]["where"].startswith("b.jsonl.zst:") and "cut or damaged" in listed[3]["message"]


def test_a_store_in_a_source_folder_is_no_text(tmp_path, folder):
    # Broken by: _is_store that is always False.
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("the heart")
    prepare([tmp_path / "in"], folder, tmp_path / "in" / "store")
    (tmp_path / "in" / "store" / "tokenizer" / "merges.txt").write_text("not a document")
    (tmp_path / "in" / ".x.work").mkdir()
    (tmp_path / "in" / ".x.work" / "job.json").write_text("{}")
    (tmp_path / "in" / ".x.work" / "b.txt").write_text("not a document")
    assert prepare([tmp_path / "in"], folder, tmp_path / "out").documents == 1


def test_a_file_that_cannot_be_opened_is_a_bad_row(tmp_path, folder):
    # Broken by: OSError not caught in _digest.
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("the heart")
    (tmp_path / "in" / "b.txt").symlink_to(tmp_path / "gone.txt")
    assert "in/b.txt" in refusal(tmp_path, [tmp_path / "in"], folder, tmp_path / "out")
    assert prepare([tmp_path / "in"], folder, tmp_path / "out", on_error="skip").dropped["bad row"] == 1


def test_a_value_that_is_no_number_is_a_bad_row(tmp_path, folder):
    rows = [{"text": "mind", "edu": "high"}, {"text": "heart", "edu": 3}]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows))
    cleaning = Cleaning(keep_if=(parse_condition("edu>=3"),))
    message = refusal(tmp_path, [tmp_path / "a.jsonl"], folder, tmp_path / "out", cleaning=cleaning)
    assert "a.jsonl:1: edu is 'high', not a number" in message
    assert prepare([tmp_path / "a.jsonl"], folder, tmp_path / "out", cleaning=cleaning, on_error="skip").documents == 1


def test_an_id_met_again_is_refused_or_skipped(tmp_path, folder):
    (tmp_path / "a.jsonl").write_bytes(
        jsonl([{"id": i, "text": f"heart {n}"} for n, i in enumerate([*"abcbb", None, None])])
    )
    reading = Reading(id_field="id")
    with pytest.raises(ValueError, match="a.jsonl:4 has the id of a.jsonl:2: .*--on-error skip") as caught:
        prepare([tmp_path / "a.jsonl"], folder, tmp_path / "out", reading=reading)
    assert "\n" not in str(caught.value)
    prepare([tmp_path / "a.jsonl"], folder, tmp_path / "out", reading=reading, on_error="skip")
    assert [drop["where"] for drop in dropped(tmp_path / "out")] == ["a.jsonl:4", "a.jsonl:5"]


def test_what_was_skipped_is_asked_for_again_by_a_call_that_does_not_skip(tmp_path, folder, monkeypatch):
    # Broken by: `skipped and ...` left out of chunks.
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "mind"}\n{nonsense\n')

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("cptjax.corpus.prepare.make_shard", stopped)
        prepare([tmp_path / "a.jsonl"], folder, tmp_path / "out", on_error="skip")
    with pytest.raises(ValueError, match="a.jsonl:2 is not JSON"):
        prepare([tmp_path / "a.jsonl"], folder, tmp_path / "out")


def test_a_document_of_ten_megabytes_on_one_line(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(tokenizer, "LONG_TEXT", 2**16)
    text = "the heart is a muscle that pumps blood " * 250_000
    (tmp_path / "a.jsonl").write_bytes(jsonl([text]))
    manifest = prepare([tmp_path / "a.jsonl"], folder, tmp_path / "out")
    assert manifest.documents == 1 and manifest.text_bytes == len(text)
    assert decoded(tmp_path / "out") == [text]


# ---- who does the work does not matter


PREPARE = """
import sys
from cptjax.corpus import beam, parts, pieces, pool, prepare, repetitions
from cptjax.corpus.cleaning import Cleaning
pieces.PIECE_BYTES = 20_000  # many chunks of little text
prepare.SHARD_TOKENS = 40_000
out, tokenizer, workers = sys.argv[1:]
parts.BLOCK = repetitions.AT_ONCE = 700  # many blocks and shares
if workers == "beam":
    engine, group = beam.engine(["--runner=DirectRunner"])
else:
    group = repetitions.group
    def engine(*work): pool.spread(*work, workers=int(workers))
assert "jax" not in sys.modules  # for every worker would import it too
prepare.prepare(["in"], tokenizer, out, cleaning=Cleaning(duplicates="near"), held_out=0.1, engine=engine, group=group)
"""


def start(tmp_path, folder, out, workers):
    """`prepare` in its own process, on the corpus of `repetitive`."""
    command = [sys.executable, "-c", PREPARE, out, str(folder), str(workers)]
    return subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.getcwd()})


def repetitive(folder, rows=1500):
    """A folder of two files of text, with repetitions."""
    words = random.Random(0)
    folder.mkdir()
    for name in ("a", "b"):
        texts = [" ".join(words.choices(WORDS, k=40)) for _ in range(rows)]
        texts[100:110] = texts[50:60]
        texts[200:210] = [f"{text} again" for text in texts[60:70]]
        (folder / f"{name}.jsonl").write_bytes(jsonl(texts))


def test_processes_and_beam_make_the_same_store(tmp_path, folder, capfd):
    """Document for document; in truth, byte for byte. Nobody hears of services that were not asked for."""
    # Broken by: logging.disable left out of beam.engine ("apitools not found").
    repetitive(tmp_path / "in")
    for out, workers in (("one", 1), ("three", 3), ("beam", "beam")):
        assert start(tmp_path, folder, out, workers).wait() == 0
    manifest = Manifest.read(tmp_path / "one")
    assert len(manifest.shards) > 2 and manifest.duplicates == Duplicates(exact=20, near=20)
    assert content(tmp_path / "one") == content(tmp_path / "three") == content(tmp_path / "beam")
    assert not list(tmp_path.glob(".*")) and "WARNING" not in capfd.readouterr().err


def test_a_killed_prepare_goes_on_and_ends_as_an_undisturbed_one(tmp_path, folder):
    repetitive(tmp_path / "in")
    assert start(tmp_path, folder, "undisturbed", 2).wait() == 0
    work = tmp_path / ".killed.work"
    for parts_done in (3, 12, 25):  # it is killed once so many parts are there, whatever the machine's speed
        process = start(tmp_path, folder, "killed", 2)
        while process.poll() is None and len(list(work.glob("parts/*/*.npz"))) < parts_done:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed").exists() and work.exists()
    assert start(tmp_path, folder, "killed", 2).wait() == 0
    assert content(tmp_path / "undisturbed") == content(tmp_path / "killed")
    assert not list(tmp_path.glob(".*"))


# ---- interruptions, in one process


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_a_scheduler_stops_a_command_as_a_user_does_and_is_told_to_come_again(
    tmp_path, folder, monkeypatch, capsys, signum
):
    # Broken by: no handler of the signal (pytest ends); one that raises what Ctrl-C does (nobody comes again).
    (tmp_path / "a.txt").write_text("the heart")
    command = ["cptjax", "prepare", "--source", f"{tmp_path}/a.txt", "--tokenizer", str(folder), "--out", "out"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(pool, "spread", lambda *_, **__: signal.raise_signal(signum))
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    monkeypatch.chdir(tmp_path)
    try:
        assert main() == COME_AGAIN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert capsys.readouterr().err == "stopped; the same command goes on\n"


def test_a_runner_that_fails_is_told_in_one_line(tmp_path):
    with pytest.raises(OSError, match="Apache Beam stopped: "):
        beam.engine(["--runner=DirectRunner"])[0](iter, _fail, [["task"]])


def _fail(task):
    raise RuntimeError(f"no place for {task}")


def stopped_after(tasks, monkeypatch):
    """An engine that is interrupted after some tasks."""

    def engine(split, work, items):
        count = 0
        for item in items:
            for task in split(item):
                if count == tasks:
                    raise KeyboardInterrupt
                work(task)
                count += 1

    return engine


@pytest.mark.usefixtures("small")
def test_an_interrupted_prepare_does_not_do_again_what_is_done(tmp_path, folder, monkeypatch, capsys):
    # Broken by: the number of the unit in the key of a chunk.
    (tmp_path / "a.jsonl").write_bytes(jsonl(many()))
    with pytest.raises(KeyboardInterrupt):
        prepare([tmp_path / "a.jsonl"], folder, tmp_path / "out", engine=stopped_after(5, monkeypatch))
    assert not (tmp_path / "out").exists()
    (tmp_path / "0.jsonl").write_bytes(jsonl(TEXTS * 5))  # a file in front moves all others
    both = [tmp_path / "0.jsonl", tmp_path / "a.jsonl"]
    done = []
    make_part = parts.make_part
    monkeypatch.setattr(
        "cptjax.corpus.prepare.make_part", lambda job, chunk: done.append(chunk) or make_part(job, chunk)
    )
    prepare(both, folder, tmp_path / "out", engine=lambda *a: pool.spread(*a, workers=1))
    assert decoded(tmp_path / "out") == TEXTS * 5 + many()
    again = [chunk for chunk in done if chunk.unit.number == 1]
    [file], _ = sources.find(str(tmp_path / "a.jsonl"))
    pieces = list(sources.pieces(file, Reading()))
    assert [chunk.pieces for chunk in again] == [((0, piece),) for piece in pieces[5:]]
    assert not list(tmp_path.glob(".*")) and not capsys.readouterr().err


@pytest.mark.usefixtures("small")
def test_a_changed_input_is_noticed_and_read_again(tmp_path, folder, monkeypatch, capsys):
    # Broken by: `digests` left out of the key of a chunk.
    (tmp_path / "0.jsonl").write_bytes(jsonl(TEXTS * 5))
    (tmp_path / "a.jsonl").write_bytes(jsonl(many()))
    both = [tmp_path / "0.jsonl", tmp_path / "a.jsonl"]
    with pytest.raises(KeyboardInterrupt):
        prepare(both, folder, tmp_path / "out", engine=stopped_after(5, monkeypatch))
    texts = ["mind", *many()[1:]]
    (tmp_path / "a.jsonl").write_bytes(jsonl(texts))
    prepare(both, folder, tmp_path / "out")
    assert decoded(tmp_path / "out") == [*TEXTS * 5, *texts]
    assert "a.jsonl has changed since it was first read: it was read again\n" == capsys.readouterr().err


@pytest.mark.usefixtures("small")
def test_other_options_begin_anew(tmp_path, folder, monkeypatch, capsys):
    (tmp_path / "a.jsonl").write_bytes(jsonl(many()))
    with pytest.raises(KeyboardInterrupt):
        prepare([tmp_path / "a.jsonl"], folder, tmp_path / "out", engine=stopped_after(5, monkeypatch))
    few = Cleaning(max_tokens=12)
    manifest = prepare([tmp_path / "a.jsonl"], folder, tmp_path / "out", cleaning=few)
    assert Store(tmp_path / "out").length_N.max() <= 12 and manifest.dropped["more than 12 tokens"]
    assert "begun with other options" in capsys.readouterr().err


def test_nothing_of_an_interrupted_call_gets_into_another_store(tmp_path, folder, monkeypatch):
    # Broken by: the work folder's `store` kept as it was.
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": text, "w": 2.5} for text in many()]))

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("cptjax.corpus.prepare.put_in_place", stopped)
        prepare([tmp_path / "a.jsonl"], folder, tmp_path / "out", held_out=0.2, reading=Reading(weight_field="w"))
    prepare([tmp_path / "a.jsonl"], folder, tmp_path / "out")
    prepare([tmp_path / "a.jsonl"], folder, tmp_path / "other")
    assert content(tmp_path / "out") == content(tmp_path / "other")


@pytest.mark.parametrize("damaged", ["parts/*/*.npz", "shards/*.array_record", "shards/*.json", "units/*.json"])
def test_what_was_damaged_meanwhile_is_made_again(damaged, tmp_path, folder, monkeypatch):
    # Broken by: read_meta(part) alone in _known_meta; no sha256 of the shard, or no `except`, in _is_made.
    (tmp_path / "a.jsonl").write_bytes(jsonl(many()))
    prepare([tmp_path / "a.jsonl"], folder, tmp_path / "whole")

    def spread(split, work, items):
        pool.spread(split, work, items, workers=1)
        if items and isinstance(items[0], ShardTask):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare([tmp_path / "a.jsonl"], folder, tmp_path / "out", engine=spread)
    for path in (tmp_path / ".out.work").glob(damaged):
        data = path.read_bytes()
        path.write_bytes(data[:170] + b"\xff" * 20 + data[190:] if damaged.startswith("parts") else b"{}" + data[2:9])
    prepare([tmp_path / "a.jsonl"], folder, tmp_path / "out")
    Store(tmp_path / "out").verify()
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_tokenizer_with_another_end_is_another_tokenizer(tmp_path, monkeypatch):
    # Broken by: tokenizer.json alone in the key.
    bare = make_tokenizer(tmp_path / "bare", ends=False)
    (tmp_path / "a.txt").write_text("the heart")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("cptjax.corpus.prepare.put_in_place", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        prepare([tmp_path / "a.txt"], bare, tmp_path / "out")
    (bare / "tokenizer_config.json").write_text(json.dumps({"eos_token": "[PAD]"}))
    assert prepare([tmp_path / "a.txt"], bare, tmp_path / "out").eos_token_id == 0
    assert Store(tmp_path / "out").tokens([0])[0][-1] == 0


def test_a_file_of_another_kind_is_read_again(tmp_path, folder, monkeypatch):
    # Broken by: the format left out of the key of a chunk.
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_bytes(jsonl(TEXTS))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("cptjax.corpus.prepare.put_in_place", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        prepare([tmp_path / "in"], folder, tmp_path / "out")
    (tmp_path / "in" / "a.txt").rename(tmp_path / "in" / "a.jsonl")
    prepare([tmp_path / "in"], folder, tmp_path / "out")
    assert decoded(tmp_path / "out") == TEXTS


@pytest.mark.usefixtures("small")
def test_a_part_cut_by_a_loss_of_power_is_made_again(tmp_path, folder, monkeypatch):
    # Broken by: EOFError not caught in _known_meta.
    (tmp_path / "a.jsonl").write_bytes(jsonl(many()))
    for damaged in (b"", b"PK\x03\x04 cut", b"something"):
        with pytest.raises(KeyboardInterrupt):
            engine = stopped_after(5, monkeypatch)
            prepare([tmp_path / "a.jsonl"], folder, tmp_path / "out", engine=engine, overwrite=True)
        next((tmp_path / ".out.work").glob("parts/*/*.npz")).write_bytes(damaged)
        (tmp_path / ".out.work" / "units" / "000000.json").write_bytes(damaged)
        prepare([tmp_path / "a.jsonl"], folder, tmp_path / "out", overwrite=True)
        assert decoded(tmp_path / "out") == many()
    with pytest.raises(KeyboardInterrupt):
        prepare([tmp_path / "a.jsonl"], folder, tmp_path / "more", engine=stopped_after(5, monkeypatch))
    (tmp_path / ".more.work" / "job.json").write_bytes(b"")
    assert prepare([tmp_path / "a.jsonl"], folder, tmp_path / "more").documents == len(many())


def test_what_a_tokenizer_fails_of_is_told_with_the_files_it_is_of(tmp_path, folder, monkeypatch):
    """Documents of several files are tokenised together, while the last is read."""
    # Broken by: no reading in flush (none is named); made.add inside reading(file.name) besides (the last alone is).
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.txt").write_text("y" * parts.BATCH_BYTES)

    def fail(_, texts):
        raise KeyError(texts[0][:1])

    def engine(split, work, items):
        for task in itertools.chain.from_iterable(map(split, items)):
            work(task)

    monkeypatch.setattr(parts.Encoder, "encode", fail)
    with pytest.raises(KeyError) as caught:
        prepare([tmp_path / "a.txt", tmp_path / "b.txt"], folder, tmp_path / "out", engine=engine)
    assert describe(caught.value).startswith("unforeseen KeyError (while reading a.txt, b.txt): 'x'")


def test_an_option_that_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="neither prepare nor Apache Beam knows --dedup"):
        beam.engine(["--runner=DirectRunner", "--dedup", "near"])


def test_rows_without_an_id_are_no_repetitions(tmp_path, folder):
    # Broken by: rows without an id compared with each other.
    rows = [{"id": None, "text": "heart"}, {"text": "x" * pieces.PIECE_BYTES}, {"id": 1, "text": "mind"}]
    for name, some in (("a", rows), ("b", rows[:2])):
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl(some))
    both = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    assert prepare(both, folder, tmp_path / "out", reading=Reading(id_field="id")).documents == 5


def test_a_field_that_no_row_has_is_named(tmp_path, folder):
    """As in a table; and a condition that no row meets is told apart."""
    # Broken by: no `asked` in judge; `name` not taken out of the columns.
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": text, "lang": "en", "site": None} for text in TEXTS]))

    def keep_if(condition: str) -> dict:
        return {"cleaning": Cleaning(keep_if=(parse_condition(condition),))}

    has = "the first has text, lang, site"
    for options, says in (
        ({"reading": Reading(id_field="nr")}, f"no row has a value of 'nr': {has}; name yours with --id-field"),
        ({"count_fields": ("licence",)}, f"no row has a value of 'licence': {has}; correct --count-fields"),
        (keep_if("langg==fr"), f"of 'langg' (did you mean lang?): {has}; correct --keep-if langg==fr"),
        (keep_if("site!=x"), "no row has a value of 'site': the first has text, lang; correct --keep-if site!=x"),
        (keep_if("lang==fr"), "no document is left: 4 do not meet lang==fr"),
    ):
        with pytest.raises(ValueError, match=re.escape(says)):
            prepare([tmp_path / "a.jsonl"], folder, tmp_path / "out", **options)


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, folder, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(TEXTS))
    pieces = sources.pieces

    def growing(file, reading):
        yield from pieces(file, reading)
        with open(path, "ab") as stream:
            stream.write(jsonl(["more"]))

    monkeypatch.setattr(sources, "pieces", growing)
    with pytest.raises(ValueError, match="a.jsonl was written to while it was read"):
        prepare([path], folder, tmp_path / "out")


def test_two_prepares_do_not_share_an_output(tmp_path, folder):
    (tmp_path / "a.txt").write_text("the heart")
    with locked(tmp_path / ".out.work"), pytest.raises(ValueError, match=r"process \d+ of .+ is at work"):
        prepare([tmp_path / "a.txt"], folder, tmp_path / "out")


def test_a_worker_that_dies_is_told(tmp_path):
    with pytest.raises(OSError, match="a worker process died"):
        pool.spread(lambda item: iter([item] * 3), os._exit, [1], workers=2)


def test_the_first_failure_in_order_is_raised():
    with pytest.raises(ValueError, match="invalid literal for int.*'b'"):
        pool.spread(iter, int, [["1", "2"], ["b", "c"], ["3"]], workers=2)


@dataclasses.dataclass(frozen=True)
class Sized:
    """Work of a size."""

    size: int


@pytest.mark.parametrize("workers", [1, 2])
def test_how_much_is_left_is_known_in_the_end(bars, workers):
    """Whether an item was more than it seemed, less, or done before."""
    # Broken by: shown.total left as it was, in either place; the size of a task not told to the bar.
    tasks = {Sized(10): [Sized(9), Sized(5)], Sized(5): [Sized(3)], Sized(4): []}
    pool.spread(tasks.__getitem__, repr, list(tasks), workers=workers)
    (bar,) = bars
    assert bar.n == bar.total == 17
    pool.spread(iter, int, [["1", "2"], ["3"]], workers=workers)  # what has no size
    assert bars[1].n == bars[1].total == 3


@dataclasses.dataclass(frozen=True)
class Traced(Sized):
    """Work whose tasks say which process cut them, and leave that in a folder."""

    folder: Path

    def cut(self):
        """Two tasks."""
        return iter([(self, number, os.getpid()) for number in range(2)])


def leave(task):
    """Write down which process cut a task."""
    item, number, cutter = task
    (item.folder / f"{item.size}_{number}").write_text(str(cutter))


def test_light_items_are_cut_by_the_workers_and_heavy_ones_are_shared_out(tmp_path, bars):
    # Broken by: `<=` as `>` in cut.
    items = [Traced(size, tmp_path) for size in (100, *range(1, 6))]
    pool.spread(Traced.cut, leave, items, workers=2)
    cutters = {path.name: int(path.read_text()) for path in tmp_path.iterdir()}
    assert len(cutters) == 12 and {cutters["100_0"], cutters["100_1"]} == {os.getpid()}
    assert os.getpid() not in {cutter for name, cutter in cutters.items() if not name.startswith("100")}
    assert bars[0].n == bars[0].total


def test_chunks_are_of_the_size_of_their_text(bars, tmp_path, folder):
    # Broken by: `size` of Unit or of Chunk left out.
    (tmp_path / "a.jsonl").write_bytes(jsonl(many()))
    prepare([tmp_path / "a.jsonl"], folder, tmp_path / "out")
    assert bars[0].n == bars[0].total == (tmp_path / "a.jsonl").stat().st_size


# ---- refusals and full disks


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"", "a.txt holds no text"),
        ("0.txt", b"", "0.txt holds no text"),
        ("a.jsonl", jsonl(["", " \n"]), "a.jsonl holds no text"),
        ("a.txt", b"caf\xe9", "a.txt is not UTF-8 at byte 3 (0xe9)"),
        ("a.pdf", b"%PDF", "a.pdf is of no known kind"),
    ],
)
def test_a_bad_source_is_named(tmp_path, folder, name, content, says):
    (tmp_path / "good.txt").write_text("the heart")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        prepare(sorted([tmp_path / "good.txt", tmp_path / name]), folder, tmp_path / "out")
    assert says in str(caught.value) and not (tmp_path / "out").exists()


def test_wrong_arguments_are_named(tmp_path, folder):
    # Broken by: check_free that asks for --overwrite before it looks what is there.
    good = tmp_path / "a.txt"
    good.write_text("the heart")
    (tmp_path / "none").mkdir()
    out = tmp_path / "out"
    assert "no source is given" in refusal(tmp_path, [], folder, out)
    assert "gone.txt does not exist" in refusal(tmp_path, [tmp_path / "gone.txt"], folder, out)
    assert "no files of a known kind" in refusal(tmp_path, [tmp_path / "none"], folder, out)
    assert "--held-out is 1.0: it is a share from 0" in refusal(tmp_path, [good], folder, out, held_out=1.0)
    assert "stop or skip" in refusal(tmp_path, [good], folder, out, on_error="ignore")
    scored = Cleaning(weight_steps=((0, 1),))
    assert "--weight-steps is for --weight-field" in refusal(tmp_path, [good], folder, out, cleaning=scored)
    assert "holds no tokenizer.json" in refusal(tmp_path, [good], tmp_path / "none", out)
    (tmp_path / "none" / "mine.md").write_text("notes")
    (tmp_path / "link").symlink_to(tmp_path / "none")
    for overwrite in (False, True):  # asked for or not: --overwrite would not do
        for name, what in (
            ("link", "a link"),
            ("a.txt", "a file"),
            ("none", "a folder of other things, without manifest.json"),
        ):
            said = refusal(tmp_path, [good], folder, tmp_path / name, overwrite=overwrite)
            assert said.endswith(f"{name} is {what}: it is not replaced, choose another name")
    evaluation = Cleaning(evaluation=(str(tmp_path / "gone"),))
    assert "gone does not exist" in refusal(tmp_path, [good], folder, out, cleaning=evaluation)
    for options, says in (
        ({"held_out": 0.5}, "is held out at --held-out 0.5"),
        ({"cleaning": Cleaning(min_tokens=99)}, "no document is left: 1 dropped as fewer than 99 tokens"),
    ):
        with pytest.raises(ValueError, match=says):
            prepare([good], folder, out, **options)


def test_an_existing_store_is_replaced_only_on_request_and_only_when_complete(tmp_path, folder):
    (tmp_path / "a.txt").write_text("the heart")
    (tmp_path / "b.txt").write_text("the mind")
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    out = tmp_path / "out"
    prepare([tmp_path / "a.txt"], folder, out)
    assert "--overwrite" in refusal(tmp_path, [tmp_path / "b.txt"], folder, out)
    refusal(tmp_path, [tmp_path / "bad.txt"], folder, out, overwrite=True)
    assert decoded(out) == ["the heart"]
    # The old store and the work folder lie inside the source directory: their own files are no sources.
    (tmp_path / "bad.txt").unlink()
    (out / "tokenizer" / "merges.txt").write_text("not a document")
    (tmp_path / ".out.work").mkdir()
    (tmp_path / ".out.work" / "left.txt").write_text("not a document")
    prepare([tmp_path], out / "tokenizer", out, overwrite=True)
    assert decoded(out) == ["the heart", "the mind"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "b.txt", "out"]


@pytest.mark.parametrize("when", ["part", "write", "close", "save", "rename"])
def test_a_full_disk_leaves_the_old_store(tmp_path, folder, monkeypatch, when):
    (tmp_path / "a.txt").write_text("the heart")
    (tmp_path / "b.txt").write_text("the mind")
    out = tmp_path / "out"
    prepare([tmp_path / "a.txt"], folder, out)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full_library(*_):
        raise RuntimeError("write() failed: No space left on device\nmore")

    class FullWriter:
        def __init__(self, path, _):
            self.write = full if when == "write" else lambda _: None
            self.close = full_library
            open(path, "wb").close()

    with monkeypatch.context() as patch:
        if when in ("write", "close"):
            patch.setattr(store, "ArrayRecordWriter", FullWriter)
        elif when == "part":
            patch.setattr(np, "savez", full)
        elif when == "save":
            patch.setattr(np, "save", full)
        else:
            rename = Path.rename
            patch.setattr(Path, "rename", lambda p, to: full() if p.name == "store" else rename(p, to))
        with pytest.raises(OSError, match="No space left on device") as caught:
            prepare([tmp_path / "b.txt"], folder, out, overwrite=True)
    assert "\n" not in str(caught.value)
    assert decoded(out) == ["the heart"]
    prepare([tmp_path / "b.txt"], folder, out, overwrite=True)
    assert decoded(out) == ["the mind"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "b.txt", "out"]


def test_a_damaged_store_is_refused_at_opening(tmp_path, folder):
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS))
    out = tmp_path / "out"

    def message():
        with pytest.raises(ValueError) as caught:
            Store(out)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "is not a token store" in message()
    prepare([tmp_path / "a.jsonl"], folder, out)
    manifest = (out / "manifest.json").read_text()
    tokens = Store(out).tokens(range(len(TEXTS)))
    for written, says in (
        (manifest.replace('"version": 2', '"version": 99'), "version 99"),
        (manifest.replace('"tokens"', '"tokenz"'), "has changed since it was written"),
        (json.dumps({"version": 2, OWN_HASH: hash_of({"version": 2})}), "manifest.json: documents: Field required"),
        ("[]", "manifest.json must hold a JSON object"),
        (manifest[:50], "manifest.json is not JSON"),
    ):
        (out / "manifest.json").write_text(written)
        assert says in message()
    (out / "manifest.json").write_text(manifest)
    dataclasses.replace(Manifest.read(out), documents=9).write(out)
    assert "the store of 9" in message()
    (out / "manifest.json").write_text(manifest)
    for name in ("dropped.jsonl", "row_N.npy", "tokenizer/tokenizer.json"):
        kept = (out / name).read_bytes()
        (out / name).write_bytes(kept + b"x")
        with pytest.raises(ValueError, match=f"{name} has changed since it was made"):
            Store(out).verify()
        (out / name).unlink()
        with pytest.raises(ValueError, match=f"{name} is missing"):
            Store(out).verify()
        (out / name).write_bytes(kept)
    shard = out / "tokens-00000.array_record"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:70] + bytes([whole[70] ^ 1]) + whole[71:])
    with pytest.raises(ValueError, match="has changed since it was made"):
        Store(out).verify()
    for name in ("length_N.npy", "row_N.npy"):
        kept = (out / name).read_bytes()
        (out / name).write_bytes(b"")
        with pytest.raises(ValueError, match=f"{name} has changed since it was made"):
            Store(out).origins([0])
        (out / name).write_bytes(kept)
    for at in [i for i, byte in enumerate(whole) if byte][
        ::5
    ]:  # a flipped bit: found at opening or at reading, or it changes no id
        shard.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            opened = Store(out)
            read = opened.tokens(range(opened.manifest.documents))
        except ValueError as error:
            assert "tokens-00000.array_record" in str(error) and "copy the" in str(error) and "\n" not in str(error)
        else:
            assert all(map(np.array_equal, read, tokens))
    shard.write_bytes(whole[: len(whole) // 2])
    assert "is damaged" in message() or "holds 0 documents" in message()
    shard.unlink()
    assert "tokens-00000.array_record is missing" in message()
