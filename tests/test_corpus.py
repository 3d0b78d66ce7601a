"""Text becomes a token store whole or not at all; a refusal is one line a user understands."""

import errno
import gzip
import json
import os

import numpy as np
import pytest
import zstandard

from cptjax import corpus
from cptjax.corpus import Manifest, Store, load_tokenizer, prepare, special_tokens
from tests.fixtures_text import WORDS, make_tokenizer

TEXTS = ["the heart is a muscle", "blood [MASK] vessels [SEP]", "é\u2028ü 心\n\nmind", "a b"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "small")


def jsonl(texts, field="text"):
    return "".join(json.dumps({"id": 1, field: t}, ensure_ascii=False) + "\n" for t in texts).encode()


def decoded(store):
    """The texts of a store, special tokens left out."""
    words = load_tokenizer(store.path / "tokenizer")
    return [words.decode(token_L) for token_L in store.tokens(range(store.manifest.documents))]


def refusal(folder, *arguments, **options):
    """The message of a refused `prepare`, which leaves nothing behind in `folder`."""
    before = sorted(folder.rglob("*"))
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        prepare(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert sorted(folder.rglob("*")) == before
    return message


# ---- what goes in comes out


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_texts_come_back_from_the_store(tmp_path, tokenizer, suffix):
    pack = {
        ".jsonl": bytes,
        ".jsonl.gz": gzip.compress,
        # Two frames, as concatenated files have.
        ".jsonl.zst": lambda data: b"".join(map(zstandard.compress, (data[:40], data[40:]))),
    }[suffix]
    (tmp_path / f"a{suffix}").write_bytes(pack(jsonl(TEXTS)))
    manifest = prepare([tmp_path / f"a{suffix}"], tokenizer, tmp_path / "out")
    store = Store(tmp_path / "out")
    assert decoded(store) == TEXTS
    assert store.manifest == manifest == Manifest.read(tmp_path / "out")
    assert manifest.text_bytes == sum(len(t.encode()) for t in TEXTS)
    assert manifest.documents == manifest.sources[0].documents == len(TEXTS)
    assert manifest.tokens == store.length_N.sum() == sum(s.tokens for s in manifest.shards)


def test_zst_lines_longer_than_a_chunk_and_no_newline_at_the_end(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(corpus, "CHUNK_BYTES", 7)
    texts = ["a" * 50, "é" * 30, "mind"]
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(jsonl(texts).rstrip(b"\n")))
    prepare([tmp_path / "a.jsonl.zst"], tokenizer, tmp_path / "out")
    assert decoded(Store(tmp_path / "out")) == texts


def test_text_files_are_documents_or_paragraphs(tmp_path, tokenizer):
    source = tmp_path / "in"
    (source / "deep").mkdir(parents=True)
    (source / "b.txt").write_bytes("\ufeffthe heart\nis\n\n \n\nblood\r\n\r\nmind".encode())
    (source / "deep" / "a.TXT").write_bytes(b"vessels\n")
    (source / "picture.png").write_bytes(b"\x89PNG")
    whole = prepare([source], tokenizer, tmp_path / "whole")
    assert decoded(Store(tmp_path / "whole")) == [
        "the heart\nis\n\n \n\nblood\r\n\r\nmind",
        "vessels\n",
    ]
    assert whole.dropped == {"empty": 0, "other_files": 1}
    assert whole.sources[0].name == "in" and whole.sources[0].files == 2
    prepare([source], tokenizer, tmp_path / "parts", txt_documents="paragraph")
    assert decoded(Store(tmp_path / "parts")) == ["the heart\nis", "blood", "mind", "vessels"]


def test_every_document_begins_and_ends_as_the_tokenizer_says(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS))
    manifest = prepare([tmp_path / "a.jsonl"], tokenizer, tmp_path / "out")
    words = load_tokenizer(tokenizer)
    assert manifest.bos_token_id == words.token_to_id("[CLS]")
    assert manifest.eos_token_id == words.token_to_id("[SEP]")
    assert (manifest.pad_token_id, manifest.mask_token_id) == (0, words.token_to_id("[MASK]"))
    assert manifest.special_token_ids == (0, 1, 2, 3, 4)
    for token_L in Store(tmp_path / "out").tokens(range(len(TEXTS))):
        assert token_L.dtype == np.int32
        # A literal "[MASK]" or "[SEP]" of the text is text: specials stand at the ends only.
        inside = set(token_L[1:-1].tolist())
        assert (token_L[0], token_L[-1]) == (2, 3) and not inside & {0, 1, 2, 3, 4}


def test_a_tokenizer_that_adds_nothing_gets_its_end_token(tmp_path):
    (tmp_path / "a.txt").write_text("the heart")
    bare = make_tokenizer(tmp_path / "bare", ends=False)
    manifest = prepare([tmp_path / "a.txt"], bare, tmp_path / "out")
    (token_L,) = Store(tmp_path / "out").tokens([0])
    assert manifest.bos_token_id is None
    assert token_L[-1] == manifest.eos_token_id == 3 and (token_L[:-1] > 4).all()


def test_names_in_the_configuration_go_before_usual_names(tmp_path):
    folder = make_tokenizer(tmp_path / "t", ends=False)
    named = {"eos_token": {"content": "[CLS]"}, "mask_token": "[UNK]", "pad_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "[PAD]"}))
    special = special_tokens(folder, load_tokenizer(folder))
    assert (special.eos, special.mask, special.pad) == (2, 1, 0)


def test_the_copied_tokenizer_opens_in_transformers(tmp_path, tokenizer):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "a.txt").write_text("the heart of mind")
    manifest = prepare([tmp_path / "a.txt"], tokenizer, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "out" / "tokenizer"))
    (token_L,) = Store(tmp_path / "out").tokens([0])
    assert theirs("the heart of mind")["input_ids"] == token_L.tolist()
    assert theirs.mask_token_id == manifest.mask_token_id


def test_a_large_vocabulary_is_stored_in_four_bytes(tmp_path, tokenizer):
    large = tmp_path / "large"
    words = load_tokenizer(tokenizer)
    words.add_tokens([f"word{i}" for i in range(2**16)])
    large.mkdir()
    words.save(str(large / "tokenizer.json"))
    (tmp_path / "a.txt").write_text("the word65535")
    manifest = prepare([tmp_path / "a.txt"], large, tmp_path / "out")
    assert manifest.dtype == "uint32" and manifest.vocab_size == words.get_vocab_size()
    assert Store(tmp_path / "out").tokens([0])[0].max() == manifest.vocab_size - 1


def test_many_shards_and_batches_make_the_same_documents(tmp_path, tokenizer, monkeypatch):
    texts = [" ".join(WORDS[i % 5 :]) + f" {i}" for i in range(60)]
    (tmp_path / "a.jsonl").write_bytes(jsonl(texts))
    prepare([tmp_path / "a.jsonl"], tokenizer, tmp_path / "one")
    monkeypatch.setattr(corpus, "SHARD_BYTES", 500)
    monkeypatch.setattr(corpus, "BATCH_BYTES", 100)
    batch_bytes = []
    encode = corpus._Encoder.encode
    monkeypatch.setattr(corpus._Encoder, "encode", lambda e, t: batch_bytes.append(len("".join(t))) or encode(e, t))
    manifest = prepare([tmp_path / "a.jsonl"], tokenizer, tmp_path / "many")
    assert max(batch_bytes) < 100 + max(map(len, texts))
    assert len(manifest.shards) > 3
    assert decoded(Store(tmp_path / "many")) == decoded(Store(tmp_path / "one")) == texts


def test_empty_documents_are_dropped_and_counted(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_bytes(jsonl(["", " \n\t", "mind"]) + b"\n")
    manifest = prepare([tmp_path / "a.jsonl"], tokenizer, tmp_path / "out")
    assert (manifest.documents, manifest.dropped["empty"]) == (1, 2)


def test_the_fingerprint_is_of_the_content(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS))
    (tmp_path / "b.jsonl").write_bytes(jsonl([*TEXTS[:-1], "a c"]))
    one, again, other = (
        prepare([tmp_path / source], tokenizer, tmp_path / out).fingerprint
        for source, out in (("a.jsonl", "1"), ("a.jsonl", "2"), ("b.jsonl", "3"))
    )
    assert one == again != other


def test_held_out_documents_are_on_one_side_and_stay_there(tmp_path, tokenizer):
    texts = [f"heart {i // 2}" for i in range(400)]  # each twice
    (tmp_path / "a.jsonl").write_bytes(jsonl(texts))
    (tmp_path / "b.jsonl").write_bytes(jsonl(["mind", *texts[:100]]))
    manifest = prepare([tmp_path / "a.jsonl"], tokenizer, tmp_path / "a", held_out=0.2)
    prepare([tmp_path / "b.jsonl"], tokenizer, tmp_path / "b", held_out=0.2)
    seen, held = decoded(Store(tmp_path / "a")), decoded(Store(tmp_path / "a" / "held_out"))
    assert sorted(seen + held) == sorted(texts) and not set(seen) & set(held)
    assert manifest.documents == len(seen) and 0.13 < len(held) / len(texts) < 0.27
    assert set(decoded(Store(tmp_path / "b" / "held_out"))) - {"mind"} <= set(held)


# ---- what is refused


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"", ["a.txt holds no text"]),
        ("a.txt", b" \n \n", ["a.txt holds no text"]),
        ("a.jsonl", jsonl(["", " "]), ["a.jsonl holds no text"]),
        ("a.txt", b"caf\xe9", ["a.txt is not UTF-8 at byte 3 (0xe9)", "--errors replace"]),
        ("a.txt", b"\xef\xbb\xbfcaf\xe9", ["a.txt is not UTF-8 at byte 6"]),
        ("a.jsonl", jsonl(["mind"]) + b'{"text": "\xff"}\n', ["is not UTF-8 at byte 36 (0xff)"]),
        ("a.jsonl", jsonl(["mind"]) + b"{nonsense\n", ["a.jsonl:2 is not JSON"]),
        ("a.jsonl", b"[" * 100_000, ["a.jsonl:1 is not JSON"]),
        ("a.jsonl", b"[1]\n", ["a.jsonl:1 is not a JSON object"]),
        ("a.jsonl", jsonl(["x"], "body"), ["a.jsonl:1 has no field 'text'", "id, body"]),
        ("a.jsonl", b"\n" + jsonl([["x"]]), ["a.jsonl:2 field 'text' is list, not a string"]),
        ("a.jsonl", b'{"text": "a\\ud800"}', ["a.jsonl:1 holds half a surrogate pair"]),
        ("a.jsonl.gz", gzip.compress(jsonl(TEXTS))[:-12], ["a.jsonl.gz is cut or damaged"]),
        ("a.jsonl.gz", jsonl(TEXTS), ["a.jsonl.gz is cut or damaged"]),
        ("a.jsonl.zst", zstandard.compress(jsonl(TEXTS))[:-9], ["a.jsonl.zst is cut or damaged"]),
        ("a.jsonl.zst", jsonl(TEXTS), ["a.jsonl.zst is cut or damaged"]),
        ("a.pdf", b"%PDF", ["a.pdf has an unknown suffix", ".txt, .jsonl, .jsonl.gz, .jsonl.zst"]),
    ],
)
def test_a_bad_source_is_named(tmp_path, tokenizer, name, content, says):
    (tmp_path / "good.txt").write_text("the heart")
    (tmp_path / name).write_bytes(content)
    sources = [tmp_path / "good.txt", tmp_path / name]
    message = refusal(tmp_path, sources, tokenizer, tmp_path / "out")
    for part in says:
        assert part in message


def test_a_bad_byte_of_a_paragraph_is_found_in_the_file(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_bytes(b"one\n\ntwo\nthr\xe9e\n")
    sources = [tmp_path / "a.txt"]
    message = refusal(tmp_path, sources, tokenizer, tmp_path / "out", txt_documents="paragraph")
    assert "a.txt is not UTF-8 at byte 12 (0xe9)" in message


def test_replaced_bytes_are_marked_not_lost(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 mind")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "x\\ud800y"}')
    sources = [tmp_path / "a.txt", tmp_path / "b.jsonl"]
    prepare(sources, tokenizer, tmp_path / "out", errors="replace")
    first, second = decoded(Store(tmp_path / "out"))
    assert first == "caf\ufffd mind" and second.startswith("x\ufffd") and second.endswith("y")


def test_wrong_arguments_are_named(tmp_path, tokenizer, monkeypatch):
    good = tmp_path / "a.txt"
    good.write_text("the heart")
    (tmp_path / "none").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "tokenizer.json").write_text("{}")
    out = tmp_path / "out"
    assert "no source is given" in refusal(tmp_path, [], tokenizer, out)
    assert "gone.txt does not exist" in refusal(tmp_path, [tmp_path / "gone.txt"], tokenizer, out)
    assert "no files of a known kind" in refusal(tmp_path, [tmp_path / "none"], tokenizer, out)
    assert "a share from 0" in refusal(tmp_path, [good], tokenizer, out, held_out=1.0)
    assert "strict or replace" in refusal(tmp_path, [good], tokenizer, out, errors="ignore")
    assert "file or paragraph" in refusal(tmp_path, [good], tokenizer, out, txt_documents="line")
    assert "is held out" in refusal(tmp_path, [good], tokenizer, out, held_out=0.5)
    assert "holds no tokenizer.json" in refusal(tmp_path, [good], tmp_path / "none", out)
    assert "is not a tokenizer" in refusal(tmp_path, [good], tmp_path / "bad", out)
    assert "does not exist" in refusal(tmp_path, [good], tmp_path / "gone", out)
    assert "will not be overwritten" in refusal(tmp_path, [good], tokenizer, tmp_path / "none", overwrite=True)

    def no_network(*_, **__):
        raise OSError("no route to the Hub\nsecond line")

    monkeypatch.setattr(corpus.huggingface_hub, "snapshot_download", no_network)
    assert "(no route to the Hub)" in refusal(tmp_path, [good], "someone/some-model", out)


def test_a_tokenizer_without_any_end_token_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("the heart")
    bare = make_tokenizer(tmp_path / "bare", ends=False)
    text = (bare / "tokenizer.json").read_text().replace("[SEP]", "[XYZ]")
    (bare / "tokenizer.json").write_text(text)
    assert "names no eos_token" in refusal(tmp_path, [tmp_path / "a.txt"], bare, tmp_path / "out")


def test_an_existing_store_is_replaced_only_on_request_and_only_when_complete(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("the heart")
    (tmp_path / "b.txt").write_text("the mind")
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    out = tmp_path / "out"
    prepare([tmp_path / "a.txt"], tokenizer, out)
    assert "--overwrite" in refusal(tmp_path, [tmp_path / "b.txt"], tokenizer, out)
    refusal(tmp_path, [tmp_path / "bad.txt"], tokenizer, out, overwrite=True)
    assert decoded(Store(out)) == ["the heart"]
    # The old store lies inside the source directory: its own files are no sources.
    (tmp_path / "bad.txt").unlink()
    (out / "tokenizer" / "merges.txt").write_text("not a document")
    prepare([tmp_path], out / "tokenizer", out, overwrite=True)
    assert decoded(Store(out)) == ["the heart", "the mind"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "b.txt", "out"]


@pytest.mark.parametrize("when", ["write", "close", "save", "rename"])
def test_a_full_disk_leaves_the_old_store_and_nothing_else(tmp_path, tokenizer, monkeypatch, when):
    (tmp_path / "a.txt").write_text("the heart")
    out = tmp_path / "out"
    prepare([tmp_path / "a.txt"], tokenizer, out)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full_library(*_):
        raise RuntimeError("write() failed: No space left on device\nmore")

    class FullWriter:
        def __init__(self, path, _):
            self.write = full if when == "write" else lambda _: None
            self.close = full_library
            open(path, "wb").close()

    if when in ("write", "close"):
        monkeypatch.setattr(corpus, "ArrayRecordWriter", FullWriter)
    elif when == "save":
        monkeypatch.setattr(corpus.np, "save", full)
    else:
        rename = corpus.Path.rename
        monkeypatch.setattr(corpus.Path, "rename", lambda p, to: full() if p.suffix == ".tmp" else rename(p, to))
    with pytest.raises(OSError, match="No space left on device") as caught:
        prepare([tmp_path / "a.txt"], tokenizer, out, overwrite=True)
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "out"]
    assert decoded(Store(out)) == ["the heart"]


def test_a_damaged_store_is_refused_at_opening(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS))
    out = tmp_path / "out"

    def message():
        with pytest.raises(ValueError) as caught:
            Store(out)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "is not a token store" in message()
    prepare([tmp_path / "a.jsonl"], tokenizer, out)
    manifest = (out / "manifest.json").read_text()
    for content, says in (
        (manifest.replace('"version": 1', '"version": 99'), "version 99"),
        (manifest.replace('"tokens"', '"tokenz"'), "is not a manifest"),
        ("[]", "is not a manifest"),
        (manifest[:50], "is not a manifest"),
        (
            manifest.replace(f'"documents": {len(TEXTS)},\n  "tokens"', '"documents": 9,\n  "tokens"'),
            "9",
        ),
    ):
        (out / "manifest.json").write_text(content)
        assert says in message()
    (out / "manifest.json").write_text(manifest)
    shard = out / "tokens-00000.array_record"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    assert "is damaged" in message() or "holds 0 documents" in message()
    shard.unlink()
    assert "tokens-00000.array_record is missing" in message()
