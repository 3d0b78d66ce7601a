"""What lies in a file, however it is packed and cut, comes back row by row; what cannot be read is named."""

import csv
import datetime
import functools
import gzip
import io
import json
import os
import pickle
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cptjax.corpus import columnar, unpack
from cptjax.corpus.pieces import Bad, File, Piece, Reading
from cptjax.corpus.sources import Document, digest, documents, find, pieces, read_documents
from cptjax.data.store import LeftOut

TEXTS = ["the heart is a muscle", "blood [MASK] vessels [SEP]", "é\u2028ü 心\x85\r\n\nmind\rx", "", "a b", " \t"]
ROWS = [
    {"text": text, "key": f"n{i}", "share": i / 2, "language": "fr" if i % 2 else "en", "other": [i]}
    for i, text in enumerate(TEXTS)
]
PLAIN = Reading()
READING = Reading(id_field="key", weight_field="share", fields=("language",), tsv_quotes=True)


def jsonl(rows):
    """Lines of JSON; a plain text stands for a row of an id and that text."""
    rows = [row if isinstance(row, dict) else {"id": 1, "text": row} for row in rows]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def delimited(rows, dialect="excel"):
    rows = [{name: value for name, value in row.items() if name != "other"} for row in rows]
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, rows[0], dialect=dialect)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def two_frames(data):
    return b"".join(map(zstandard.compress, (data[:40], data[40:])))


def write_parquet(path, rows, **options):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path, **options)


def write_tfds(folder, rows, file_format="array_record"):
    """A prepared data set with a split for training, "train", and one row more in "test"; its folder."""
    import numpy as np

    tfds = pytest.importorskip("tensorflow_datasets")

    class Corpus(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # pyright: ignore
        __module__ = "corpus"  # of a dotted one the files are looked for by a package that is not required

        VERSION = tfds.core.Version("1.0.0")
        RELEASE_NOTES = {"1.0.0": "first"}

        def _info(self):
            text = tfds.features.Text()
            features = {"text": text, "key": text, "share": tfds.features.Scalar(np.float32), "language": text}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(rows), "test": self._generate_examples([*rows, rows[0]])}

        def _generate_examples(self, rows):
            for i, row in enumerate(rows):
                yield i, {name: value for name, value in row.items() if name != "other"}

    builder = Corpus(data_dir=folder, file_format=file_format)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=2))
    return Path(builder.data_dir)


def write_hf(path, rows):
    datasets = pytest.importorskip("datasets")

    datasets.Dataset.from_list(rows).save_to_disk(path, num_shards=2)


WRITE = {
    ".jsonl": lambda path, rows: path.write_bytes(jsonl(rows)),
    ".jsonl.gz": lambda path, rows: path.write_bytes(gzip.compress(jsonl(rows))),
    ".jsonl.zst": lambda path, rows: path.write_bytes(two_frames(jsonl(rows))),
    ".csv": lambda path, rows: path.write_bytes(delimited(rows)),
    ".tsv": lambda path, rows: path.write_bytes(delimited(rows, "excel-tab")),
    ".parquet": lambda path, rows: write_parquet(path, rows, row_group_size=4),
    "hf": write_hf,
    "tfds": write_tfds,
}


def write(path, suffix, rows):
    """Write rows in a format; what is to be read then (tensorflow-datasets makes folders in `path`)."""
    made = WRITE[suffix](path, rows)
    return made if isinstance(made, Path) else path


def only(source):
    """The one file of a source."""
    (file,) = find(str(source))[0]
    return file


def rows_of(file, reading):
    """All documents and Bad of a file, in order; its pieces are sent as to another process."""
    found = []
    for piece in pieces(file, reading):
        found += [piece] if isinstance(piece, Bad) else documents(file, pickle.loads(pickle.dumps(piece)), reading)
    return found


def read(source, reading=PLAIN):
    """All documents and Bad of a source, in order."""
    found = [row for file in find(str(source))[0] for row in rows_of(file, reading)]
    assert not any("\n" in row.message for row in found if isinstance(row, Bad))
    return found


def texts(source, reading=PLAIN):
    return list(read_documents(source, reading))


def bad(source, reading=PLAIN):
    """The message of the only row that cannot be read."""
    (message,) = [found.message for found in read(source, reading) if isinstance(found, Bad)]
    return message


# ---- what goes in comes out


# Broken by: csv lines decoded as UTF-8 before they are parsed; weight 0 refused; JSON split at U+2028.
@pytest.mark.parametrize("suffix", WRITE)
def test_every_format_gives_the_same_documents_with_ids_weights_and_fields(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path = write(path, suffix, ROWS)
    found = read(path, READING)
    assert len(found) == len(ROWS)
    if suffix == "tfds":  # it shuffles what it stores
        found.sort(key=lambda document: document.id)
    first = 2 if suffix in (".csv", ".tsv") else 1
    assert suffix == "tfds" or [document.row for document in found] == list(range(first, first + len(ROWS)))
    for document, row in zip(found, ROWS, strict=True):
        assert isinstance(document, Document)
        assert (document.text, document.id, document.weight) == (row["text"], row["key"], row["share"])
        assert document.fields == {"language": row["language"]}
        assert isinstance(document.weight, float)


# Broken by: `row + 1` for `row + len(held)`; `row += 1` for each row group; csv cut at line ends; rows [0:last].
@pytest.mark.parametrize("suffix", WRITE)
def test_small_pieces_give_the_same_rows_and_can_be_sent_away(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"a{suffix}"
    path = write(path, suffix, [ROWS[i % len(ROWS)] | {"key": str(i)} for i in range(50)])
    whole = read(path, READING)
    file = only(path)
    assert pickle.loads(pickle.dumps(file)) == file
    monkeypatch.setattr("cptjax.corpus.pieces.PIECE_BYTES", 40)
    assert len(list(pieces(file, READING))) > 5
    assert list(pieces(file, READING)) == list(pieces(file, READING))
    assert read(path, READING) == whole and len(whole) == 50


LINE = st.one_of(st.sampled_from([b"", b" \t\r", b"{", b'{"text": 1}', b'"\xff"']), st.text().map(lambda t: jsonl([t])))
CELLS = st.lists(st.text(alphabet='ab"\n\r,\té\ufeff\x85', max_size=6), min_size=1, max_size=3).map(",".join)


def same_in_any_pieces(suffix, data, piece_bytes, reading):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder, f"a{suffix}")
        path.write_bytes(data)
        whole = read(path, reading)
        patch.setattr("cptjax.corpus.pieces.PIECE_BYTES", piece_bytes)
        assert read(path, reading) == whole


# Broken by: `row + 1` for `row + len(held)`; `offset` not moved on.
@given(st.lists(LINE), st.booleans(), st.integers(1, 60))
def test_pieces_of_jsonl_do_not_matter(lines, mark, piece_bytes):
    data = b"\xef\xbb\xbf" * mark + b"\n".join(line.rstrip(b"\n") for line in lines)
    same_in_any_pieces(".jsonl", data, piece_bytes, Reading())


# Broken by: cutting csv at line ends; not comparing the number of cells with the header's.
@given(st.lists(CELLS), st.sampled_from(["\n", "\r\n"]), st.integers(1, 60))
def test_pieces_of_csv_do_not_matter(rows, end, piece_bytes):
    same_in_any_pieces(".csv", end.join(["text,b", *rows]).encode(), piece_bytes, Reading(fields=("b",)))


# Broken by: ending pieces after any line.
@given(st.lists(st.sampled_from(["a", "é b", "", " ", "\t\r", "c\r", "\ufeff"])), st.integers(1, 20))
def test_pieces_of_paragraphs_do_not_matter(lines, piece_bytes):
    same_in_any_pieces(".txt", "\n".join(lines).encode(), piece_bytes, Reading(txt_documents="paragraph"))


@given(st.lists(st.tuples(st.text(), st.text(min_size=1)), min_size=1), st.sampled_from([".csv", ".tsv"]))
def test_what_the_csv_writer_writes_is_read(rows, suffix):
    rows = [(text.replace("\0", ""), key.replace("\0", "x")) for text, key in rows]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a{suffix}")
        path.write_bytes(
            delimited(
                [{"text": text, "key": key} for text, key in rows], {".csv": "excel", ".tsv": "excel-tab"}[suffix]
            )
        )
        assert [(found.text, found.id) for found in read(path, Reading(id_field="key", tsv_quotes=True))] == rows


# Broken by: not clearing `tail`.
def test_zst_lines_longer_than_a_chunk_and_no_newline_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "CHUNK_BYTES", 7)
    long = ["a" * 50, "é" * 30, "mind"]
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(jsonl(long).rstrip(b"\n")))
    assert texts(tmp_path / "a.jsonl.zst") == long


# Broken by: the library's default window of 128 MiB.
def test_zst_of_a_large_window_is_read(tmp_path):
    settings_ = zstandard.ZstdCompressionParameters(window_log=28)
    packer = zstandard.ZstdCompressor(compression_params=settings_).compressobj()
    (tmp_path / "a.jsonl.zst").write_bytes(packer.compress(jsonl(["mind"])) + packer.flush())
    assert texts(tmp_path / "a.jsonl.zst") == ["mind"]


# Broken by: `csv.field_size_limit` left at 128 KiB.
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst", ".csv", ".parquet", ".txt"])
def test_a_document_of_a_hundred_megabytes_is_one_document(tmp_path, suffix):
    text = "heart\né " * 2**20 + "m" * 90_000_000
    path = tmp_path / f"a{suffix}"
    if suffix == ".txt":
        path.write_text(text)
    else:
        write(path, suffix, [{"text": text, "key": "1"}, {"text": "small", "key": "2"}])
    found = texts(path)
    assert found[0] == text and found[1:] == ([] if suffix == ".txt" else ["small"])


# Broken by: sorting by name only; `suffix` not in lower case; not removing the byte order mark; stripping \n only.
def test_text_files_are_documents_or_paragraphs(tmp_path):
    source = tmp_path / "in"
    (source / "deep").mkdir(parents=True)
    (source / "b.txt").write_bytes("\ufeffthe heart\nis\n\n \n\nblood\r\n\r\nmind".encode())
    (source / "deep" / "a.TXT").write_bytes(b"vessels\n")
    (source / "picture.png").write_bytes(b"\x89PNG")
    assert texts(source) == ["the heart\nis\n\n \n\nblood\r\n\r\nmind", "vessels\n"]
    files, others = find(str(source))
    assert len(others) == 1 and [file.name for file in files] == ["in/b.txt", "in/deep/a.TXT"]
    found = read(source, Reading(txt_documents="paragraph"))
    assert [(document.row, document.text) for document in found] == [
        (1, "the heart\nis"),
        (6, "blood"),
        (8, "mind"),
        (1, "vessels"),
    ]


# Broken by: `splitlines()` for lines that end with a newline byte.
def test_only_newlines_end_lines(tmp_path):
    odd = "a\u2028b\x85c\x0bd\x0ce\x1cf\rg"
    (tmp_path / "a.jsonl").write_bytes(jsonl([odd]))
    (tmp_path / "b.jsonl").write_bytes(b'{"text":\r"x"}\n')  # whitespace of JSON
    (tmp_path / "a.txt").write_bytes(odd.encode())
    (tmp_path / "a.csv").write_bytes(f'text\n"{odd}"\n'.encode())
    assert texts(tmp_path) == texts(tmp_path, Reading(txt_documents="paragraph")) == [odd, odd, odd, "x"]


# Broken by: removing U+FEFF at the beginning of any line.
def test_a_byte_order_mark_begins_a_file_and_is_text_elsewhere(tmp_path):
    (tmp_path / "a.csv").write_bytes('\ufefftext,b\n"\ufeffx",1\n'.encode())
    (tmp_path / "b.csv").write_bytes('\ufeff"text"\n\ufeffx\n'.encode())
    (tmp_path / "c.jsonl").write_bytes(b"\xef\xbb\xbf" + jsonl(["\ufeffx"]))
    (tmp_path / "d.txt").write_bytes("\ufeff\ufeffx".encode())
    assert texts(tmp_path) == ["\ufeffx"] * 4
    (tmp_path / "e.jsonl").write_bytes(b"\xef\xbb\xbf")
    assert texts(tmp_path / "e.jsonl") == []


def test_wrong_ways_of_reading_are_named():
    with pytest.raises(ValueError, match="strict or replace"):
        Reading(errors="ignore")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="file or paragraph"):
        Reading(txt_documents="line")  # pyright: ignore[reportArgumentType]


def test_csv_rows_are_counted_as_a_spreadsheet_counts_them(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'text\n"a\n\nb"\n\nc\n')
    assert [(found.row, found.text) for found in read(tmp_path / "a.csv")] == [(2, "a\n\nb"), (4, "c")]


def test_numbers_are_ids_and_null_is_none(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": "a", "id": 7}, {"text": "b", "id": None}]))
    assert [found.id for found in read(tmp_path / "a.jsonl", Reading(id_field="id"))] == ["7", None]


# Broken by: `str(value)` for all fields.
def test_values_of_csv_stay_text_and_those_of_json_what_they_are(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text,n\nx,07\n")
    (tmp_path / "b.jsonl").write_bytes(jsonl([{"text": "x", "n": 7}]))
    assert [found.fields["n"] for found in read(tmp_path, Reading(fields=("n",)))] == ["07", 7]


# ---- bad rows


BADS = [
    ("a.txt", b"caf\xff\x81", "a.txt is not UTF-8 at byte 3 (0xff): convert it, or give --errors replace"),
    (
        "a.txt",
        b"un caf\xe9, oui",
        "a.txt is not UTF-8 at byte 6 (0xe9): give --encoding cp1252 if it should read café, else convert it, or give",
    ),
    ("a.txt", b"\xef\xbb\xbfcaf\xe9", "a.txt is not UTF-8 at byte 6 (0xe9)"),
    ("a.txt", "mind".encode("utf-16-le"), "a.txt holds a NUL character at character 1 of 'text': it may be UTF-16 or"),
    ("a.jsonl", jsonl(["mind"]) + b'{"text": "\xff"}\n', "a.jsonl:2 is not UTF-8 at byte 36 (0xff)"),
    ("a.jsonl.gz", gzip.compress(jsonl(["mind"]) + b"\xff", mtime=0), "a.jsonl.gz:2 is not UTF-8 at byte 26 (0xff)"),
    ("a.jsonl", jsonl(["mind"]) + b"{nonsense\n", "a.jsonl:2 is not JSON ("),
    ("a.jsonl", b'{"text": "a", "n": ' + b"9" * 5000 + b"}\n", "a.jsonl:1 is not JSON (Exceeds the limit"),
    ("a.jsonl", "{}".encode("utf-16-be"), "it may be UTF-16 or binary"),
    ("a.jsonl", b"[" * 100_000, "a.jsonl:1 is not JSON"),
    ("a.jsonl", b"[1]\n", "a.jsonl:1 is not a JSON object: one object a line is needed"),
    (
        "a.jsonl",
        jsonl([{"body": "x", "a\nb": 1}]),
        r"a.jsonl:1 has no field 'text': it has body, a\nb; name yours with",
    ),
    ("a.jsonl", b"{}", "a.jsonl:1 has no field 'text': it has none"),
    ("a.jsonl", b"\n" + jsonl([["x"]]), "a.jsonl:2 field 'text' is list, not a string"),
    ("a.jsonl", jsonl([{"text": None}]), "a.jsonl:1 field 'text' is null, not a string"),
    ("a.jsonl", b'{"text": "a\\ud800"}', "a.jsonl:1 holds half a surrogate pair at character 1 of 'text': correct it"),
    ("a.jsonl", b'{"text": "a\\u0000"}', "a.jsonl:1 holds a NUL character at character 1 of 'text'"),
    ("a.jsonl.gz", gzip.compress(jsonl(["x"]), mtime=0)[:-8], "a.jsonl.gz is cut or damaged (it ends inside a frame"),
    ("a.jsonl.gz", gzip.compress(b"", mtime=0) + b"more", "a.jsonl.gz is cut or damaged (Error -3"),
    ("a.jsonl.gz", b"", "a.jsonl.gz is cut or damaged (it is empty)"),
    ("a.jsonl.zst", zstandard.compress(jsonl(TEXTS))[:-9], "a.jsonl.zst is cut or damaged (it ends inside a frame)"),
    ("a.jsonl.zst", zstandard.compress(b"")[:-1], "a.jsonl.zst is cut or damaged"),
    ("a.jsonl.zst", zstandard.compress(b"") + b"more", "a.jsonl.zst is cut or damaged"),
    ("a.csv", b"text,b\nx,1\ny\n", "a.csv:3 has 1 cells, the header 2: quote cells that hold a delimiter"),
    ("a.csv", b"text,b\nx,1,2\n", "a.csv:2 has 3 cells, the header 2"),
    ("a.csv", b'text,b\nx,1\n"y,1\nz,1\n', "a.csv:3 is not CSV (a quote that opens on line 3 is never closed)"),
    ("a.csv", b'text,b\n"x"y,1\n', "a.csv:2 is not CSV (',' expected after '\"')"),
    ("a.csv", b"text\na\rb\n", "a.csv:2 is not CSV (a carriage return stands outside quotes)"),
    ("a.csv", b'text,b\n"\n",1\nx,\xe9\n', "a.csv:3 is not UTF-8 at byte 15 (0xe9)"),
    ("a.csv", b"text\na\0b\n", "a.csv:2 holds a NUL character at character 1"),
    ("a.csv", b"text,b,text\nx,1,2\n", "a.csv has 2 fields 'text': give each a name of its own"),
    ("a.csv", b"body,,\nx,1,2\n", "a.csv has no field 'text': it has body, one without a name, one without a name;"),
    ("a.csv", b"\ntext\nx\n", "a.csv:1 is nothing: a first row"),
    ("a.csv", b"", "a.csv:1 is nothing: a first row"),
    ("a.csv", b'"text\n', "a.csv:1 is not CSV"),
    ("a.csv", b"te\xe9xt\nx\n", "a.csv:1 is not UTF-8 at byte 2 (0xe9)"),
    ("a.tsv", b"body,b\nx,1\ny,2\n", "a.tsv has no field 'text': it has body,b; name yours with --text-field"),
    ("a.parquet", b"PAR1 nonsense", "a.parquet is cut or damaged"),
    ("a.parquet", b"", "a.parquet is cut or damaged"),
]


# Broken by: zst frames not seen to their end; `except JSONDecodeError`; no RecursionError; each check left out in turn.
@pytest.mark.parametrize(("name", "content", "says"), BADS)
def test_a_bad_row_is_named(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    message = bad(tmp_path / name)
    assert message.startswith(says) or "UTF-16" in says and says in message
    with pytest.raises(ValueError) as caught:
        texts(tmp_path / name)
    assert str(caught.value) == message


# Broken by: not catching _Wrong row by row.
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", jsonl(["a"]) + b"{\n\xff\n" + jsonl(["b"])),
        ("a.csv", b'text,n\na,1\n"x"y,2\nz\n"q\n"z,\nw,\xff\nb,3\n'),
        ("a.txt", b"a\n\n\xff\n\nb"),
    ],
)
@pytest.mark.parametrize("piece_bytes", [1, 2**22])
def test_the_rows_after_a_bad_one_are_read(tmp_path, name, content, piece_bytes, monkeypatch):
    monkeypatch.setattr("cptjax.corpus.pieces.PIECE_BYTES", piece_bytes)
    (tmp_path / name).write_bytes(content)
    found = read(tmp_path / name, Reading(txt_documents="paragraph"))
    assert isinstance(found[1], Bad)
    assert [row.text for row in found if isinstance(row, Document)] == ["a", "b"]


# Broken by: giving up what is held when a file turns out to be cut.
@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize("piece_bytes", [1, 2**22])
def test_what_came_whole_before_the_damage_is_kept(tmp_path, suffix, piece_bytes, monkeypatch):
    monkeypatch.setattr("cptjax.corpus.pieces.PIECE_BYTES", piece_bytes)
    path = tmp_path / f"a{suffix}"
    write(path, suffix, [{"text": os.urandom(200).hex()} for _ in range(2000)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    *kept, last = read(path)
    assert len(kept) > 800 and all(isinstance(document, Document) for document in kept)
    assert isinstance(last, Bad) and "is cut or damaged" in last.message and last.row == len(kept) + 1


def test_a_bad_byte_of_a_paragraph_is_found_in_the_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\n\ntwo\nthr\xe9e\n")
    message = bad(tmp_path / "a.txt", Reading(txt_documents="paragraph"))
    assert message.startswith("a.txt is not UTF-8 at byte 15 (0xe9)")
    (tmp_path / "a.txt").write_bytes(b"one\n\ntwo\0\n")
    assert bad(tmp_path / "a.txt", Reading(txt_documents="paragraph")).startswith("a.txt:3 holds a NUL character")


# Broken by: `value.encode("utf-8", "replace")`, which gives question marks.
def test_replaced_bytes_are_marked_not_lost(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 mi\0nd")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "x\\ud800y\\u0000"}\n{"text": "caf\xe9"}')
    (tmp_path / "c.csv").write_bytes(b"text\ncaf\xe9\n")
    assert texts(tmp_path, Reading(errors="replace")) == [
        "caf\ufffd mi\ufffdnd",
        "x\ufffdy\ufffd",
        "caf\ufffd",
        "caf\ufffd",
    ]


@pytest.mark.parametrize("value", ["heavy", "", -1, "-0.5", "nan", float("inf"), None, True, [1], 10**400])
def test_a_weight_is_a_finite_number_of_zero_or_more(tmp_path, value):
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": "x", "w": value}]))
    message = bad(tmp_path / "a.jsonl", Reading(weight_field="w"))
    assert message.startswith("a.jsonl:1 field 'w' is ") and message.endswith("a weight is a finite number, 0 or more")


@pytest.mark.parametrize("value", [True, [1], {}])
def test_an_id_is_a_string_or_a_number(tmp_path, value):
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": "x", "id": value}]))
    message = bad(tmp_path / "a.jsonl", Reading(id_field="id"))
    assert message == f"a.jsonl:1 field 'id' is {type(value).__name__}, not a string or a number"


# Broken by: not checking columns where a file is cut (then one Bad a row, or a library's error).
@pytest.mark.parametrize("suffix", [*WRITE, ".txt"])
def test_a_missing_column_is_named_with_those_there_are(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".txt":
        path.write_text("one\n\ntwo")
    else:
        path = write(path, suffix, ROWS[:1] if suffix.startswith(".json") else ROWS)
    for reading, says in (
        (Reading(text_field="body"), "has no field 'body': it has"),
        (Reading(id_field="nr"), "name yours with --id-field"),
        (Reading(weight_field="mass"), "name yours with --weight-field"),
        (Reading(fields=("score",)), "has no field 'score': it has"),
    ):
        if suffix == ".txt" and reading.text_field == "body":
            continue
        if suffix.startswith(".json") and (reading.id_field or reading.fields):  # one row may lack what is null
            [document] = read(path, reading)
            assert document.id is None and not any(document.fields.values())
            continue
        message = bad(path, replace(reading, txt_documents="paragraph"))
        assert says in message and (suffix == ".txt" or "language" in message)


# Broken by: not catching OSError where a file is opened.
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".csv", ".parquet"])
def test_a_file_that_vanished_is_bad(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_bytes(b"x")
    file = only(tmp_path / f"a{suffix}")
    (tmp_path / f"a{suffix}").unlink()
    assert rows_of(file, PLAIN) == [Bad(1, f"a{suffix} cannot be read (No such file or directory)")]


# ---- parquet


# Broken by: reading all columns (`columns=None`): the damaged one is met.
def test_parquet_reads_the_wanted_columns_only_and_names_damage(tmp_path):
    path = tmp_path / "a.parquet"
    rows = [{"text": f"mind {i}", "other": os.urandom(50).hex()} for i in range(100)]
    write_parquet(path, rows, row_group_size=30, compression="none", use_dictionary=False, write_statistics=False)
    data = bytearray(path.read_bytes())
    at = data.index(b"mind 59") + 7  # the column after it, in the second group
    data[at : at + 200] = b"\xff" * 200
    path.write_bytes(data)
    assert texts(path) == [row["text"] for row in rows]
    *kept, failure = [row for row in read(path, Reading(fields=("other",))) if row.row < 61]
    assert len(kept) == 30 and isinstance(failure, Bad) and "a.parquet is cut or damaged" in failure.message
    path.write_bytes(data[:-20])
    assert "a.parquet is cut or damaged" in bad(path)


# Broken by: taking Arrow's strings for UTF-8 (`to_pylist` raises for the whole batch).
def test_parquet_text_of_any_type_is_text_and_checked(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    broken = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xe9b")]
    )
    for i, column in enumerate(
        (
            broken,
            broken.dictionary_encode(),
            pa.array(["é", "b"]).dictionary_encode(),
            pa.array(["é".encode(), b"b"]),
            pa.array(["é", "b"], pa.large_string()),
        )
    ):
        when = pa.array([datetime.date(2020, 1, 1)] * 2)
        pq.write_table(pa.table({"text": column, "when": when}), tmp_path / f"{i}.parquet")
    found = read(tmp_path, Reading(fields=("when",)))
    for number, row in enumerate((found.pop(0), found.pop(1))):
        assert isinstance(row, Bad)
        assert f"/{number}.parquet:1 field 'text' is not UTF-8 at byte 1 (0xe9)" in row.message
    assert [document.text for document in found] == ["b", "b"] + ["é", "b"] * 3
    assert found[1].fields == {"when": datetime.date(2020, 1, 1)}
    assert texts(tmp_path / "0.parquet", Reading(errors="replace")) == ["a\ufffd", "b"]


# ---- data sets


# Broken by: always the split train; not refusing a split of a data set that has none.
def test_a_saved_data_set_is_read_by_folder_and_split(tmp_path):
    datasets = pytest.importorskip("datasets")

    splits = {"train": ["a", "b"], "un été": ["c"]}
    made = {split: datasets.Dataset.from_dict({"text": found}) for split, found in splits.items()}
    datasets.DatasetDict(made).save_to_disk(tmp_path / "my data")
    assert texts(tmp_path / "my data") == ["a", "b"]
    assert texts(tmp_path / "my data" / "un été") == ["c"]
    file = only(f"hf:{tmp_path}/my data@un été")
    assert (file.format, file.split) == ("hf", "un été")
    assert [document.text for document in rows_of(file, PLAIN)] == ["c"]
    for source, says in (
        (f"hf:{tmp_path}/my data@none", "has no split 'none', but train, un été"),
        (f"hf:{tmp_path}/my data/train@train", "it is one split"),
    ):
        with pytest.raises(ValueError, match=says) as caught:
            only(source)
        assert "\n" not in str(caught.value)


def test_a_format_saved_with_a_data_set_does_not_change_what_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")

    made = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "n": [1, 2, 3]}).select([2, 0])
    made.with_format("numpy", columns=["n"]).save_to_disk(tmp_path / "d")
    assert [(found.text, found.fields) for found in read(tmp_path / "d", Reading(fields=("n",)))] == [
        ("c", {"n": 3}),
        ("a", {"n": 1}),
    ]


# Broken by: a config taken for part of the name; opening anew for every piece; no fingerprint in the digest.
@pytest.mark.parametrize(
    ("source", "asks"),
    [
        ("hf:owner/name", (("owner/name",), "train")),
        ("hf:name@test", (("name",), "test")),
        ("hf:owner/name/en@train[:10%]", (("owner/name", "en"), "train[:10%]")),
    ],
)
def test_a_data_set_of_the_hub_is_asked_for_once(tmp_path, monkeypatch, source, asks):
    datasets = pytest.importorskip("datasets")

    asked = []

    def load(*names, split):
        asked.append((names, split))
        return datasets.Dataset.from_dict({"text": [f"{names} {i}" for i in range(100)]})

    columnar._hf.cache_clear()
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("cptjax.corpus.pieces.PIECE_BYTES", 100)
    assert texts(source) == [f"{asks[0]} {i}" for i in range(100)]
    file = only(source)
    assert file.name == source and len(digest(file)) == 64 and len(list(pieces(file, Reading()))) > 10
    assert asked == [asks]
    assert digest(file) != digest(only("hf:another"))  # it has no files, but a fingerprint
    columnar._hf.cache_clear()


def test_a_folder_of_data_files_is_read_by_the_library(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.jsonl").write_bytes(jsonl(["a", "b"]))
    assert texts(f"hf:{tmp_path}/d") == ["a", "b"]


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    return write_tfds(tmp_path_factory.mktemp("tfds"), ROWS)


# Broken by: the split not given to as_data_source.
def test_a_tensorflow_data_set_is_read_by_folder_and_split(tfds_folder):
    assert sorted(texts(tfds_folder)) == sorted(TEXTS)
    assert sorted(texts(f"tfds:{tfds_folder}@test")) == sorted([*TEXTS, TEXTS[0]])
    assert len(texts(f"tfds:{tfds_folder}@train[1:3]")) == 2
    assert texts(f"tfds:{tfds_folder}@train[1:3]") == texts(tfds_folder)[1:3]
    shares = [found.fields["share"] for found in read(tfds_folder, Reading(fields=("share",)))]
    assert sorted(shares) == [row["share"] for row in ROWS] and {type(share) for share in shares} == {float}


def test_a_tensorflow_data_set_is_read_by_name(tfds_folder, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")

    by_name = functools.partial(tfds.builder, data_dir=str(tfds_folder.parent.parent))
    monkeypatch.setattr(tfds, "builder", by_name)
    assert texts("tfds:corpus:1.0.0@test") == texts(f"tfds:{tfds_folder}@test")


def test_a_tensorflow_data_set_that_cannot_be_read_says_why(tfds_folder, tmp_path):
    import shutil

    shutil.copytree(tfds_folder, tmp_path / "other")
    shutil.copytree(tfds_folder, tmp_path / "cut")
    info = tmp_path / "other" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    for source, says in (
        (tmp_path / "other", 'must be prepared with file_format="array_record"'),
        (f"tfds:{tfds_folder}@dev", "dev"),
        ("tfds:no_such_data_set", "no_such_data_set not found"),
    ):
        with pytest.raises(ValueError, match=says) as caught:
            only(source)
        assert "cannot be opened" in str(caught.value) and "\n" not in str(caught.value)
    for shard in (tmp_path / "cut").glob("*train*"):
        shard.write_bytes(shard.read_bytes()[:1000])
    assert "cut is cut or damaged" in bad(tmp_path / "cut")


# ---- finding files


# Broken by: taking any name with a bracket for a pattern.
def test_names_with_spaces_accents_and_brackets_are_names(tmp_path):
    names = ["a b.jsonl", "été.jsonl", "x[1].jsonl", "star*.jsonl", "what?.jsonl"]
    folder = tmp_path / "in [v1] *"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(jsonl([name]))
        assert texts(folder / name) == [name]
    assert sorted(texts(folder)) == sorted(names)
    assert sorted(texts(folder / "*.jsonl")) == sorted(names)
    assert texts(folder / "a *.jsonl") == ["a b.jsonl"]
    assert only(folder / "a *.jsonl").name == "in [v1] */a b.jsonl"


def test_patterns_find_files_once_in_a_fixed_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b/z.txt", "b/c/y.txt", "a/x.TXT", "a/w.png", "v.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    everything = ["a/x.TXT", "b/c/y.txt", "b/z.txt", "v.txt"]
    assert texts("**/*.txt") == ["b/c/y.txt", "b/z.txt", "v.txt"]
    assert texts("*") == texts("**") == texts(".") == everything
    assert texts("[ab]/*.[tT]*") == ["a/x.TXT", "b/z.txt"]
    assert find("*")[1] == [LeftOut(f"{tmp_path.name}/a/w.png", "kind")]
    assert [file.name for file in find("b/*/*.txt")[0]] == ["b/c/y.txt"]
    assert [file.name for file in find("./b")[0]] == ["b/c/y.txt", "b/z.txt"]


# Broken by: `followlinks` without `seen`; not sorting folders; reading pipes; passing over broken links.
def test_links_are_followed_once(tmp_path):
    source = tmp_path / "in"
    (tmp_path / "elsewhere").mkdir()
    source.mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text("a")
    (source / "b.txt").write_text("b")
    (source / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("l1", "l2", "l3"):
        (source / name).symlink_to(source)
    (source / "self").symlink_to("self")
    (source / "gone.txt").symlink_to("nothing")
    os.mkfifo(source / "pipe.txt")
    found = read(source)
    assert [row.text for row in found if isinstance(row, Document)] == ["b", "a"]
    assert [row.message for row in found if isinstance(row, Bad)] == [
        "in/gone.txt cannot be read (No such file or directory)"
    ]
    assert texts(source / "**" / "b.txt") == ["b"]
    (source / "z").mkdir()
    (source / "z" / "c.txt").write_text("c")
    for name in ("y", "x", "w"):
        (source / name).symlink_to(source / "z")
    assert find(str(source))[0][-1].name == "in/w/c.txt"


# Broken by: not asking for `avoid`; comparing paths before links are resolved.
def test_nothing_of_the_output_is_read(tmp_path):
    out = tmp_path / "in" / "out"
    out.mkdir(parents=True)
    (out / "merges.txt").write_text("not a document")
    (tmp_path / "in" / "a.txt").write_text("a")
    (tmp_path / "alias").symlink_to(out)
    for avoid in (out, tmp_path / "alias"):
        files, others = find(str(tmp_path / "in"), [avoid])
        assert [file.name for file in files] == ["in/a.txt"] and others == []
        assert len(find(f"{tmp_path}/in/**/*.txt", [avoid])[0]) == 1
        with pytest.raises(ValueError, match="that is to be written"):
            find(str(out / "merges.txt"), [avoid])


def test_a_source_with_nothing_to_read_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    (tmp_path / "none").mkdir()
    known = ".txt, .jsonl, .json, .csv, .tsv, .parquet, .ndjson, also with .gz or .zst"
    for source, kind, says in (
        (tmp_path / "gone.txt", FileNotFoundError, f"source {tmp_path}/gone.txt does not exist"),
        ("hf:", FileNotFoundError, "source hf: does not exist"),
        (f"hf:{tmp_path}/gone@test", FileNotFoundError, f"source hf:{tmp_path}/gone@test does not exist"),
        (f"{tmp_path}/*.txt", FileNotFoundError, f"pattern {tmp_path}/*.txt matches no file"),
        (tmp_path / "a.pdf", ValueError, f"{tmp_path}/a.pdf is of no known kind: known are {known}"),
        (tmp_path / "none", ValueError, f"{tmp_path}/none holds no files of a known kind ({known})"),
        (f"{tmp_path}/*.pdf", ValueError, f"{tmp_path}/*.pdf holds no files of a known kind ({known})"),
    ):
        with pytest.raises(kind) as caught:
            texts(source)
        assert str(caught.value) == says

    def refuse(_):
        raise PermissionError(13, "Permission denied", "none")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        find(str(tmp_path))


# Broken by: hashing the name of the file.
def test_a_digest_is_of_the_bytes(tmp_path, tfds_folder):
    import hashlib

    (tmp_path / "a.txt").write_bytes(b"heart")
    assert digest(only(tmp_path / "a.txt")) == hashlib.sha256(b"heart").hexdigest()
    assert digest(only(tfds_folder)) != digest(only(f"tfds:{tfds_folder}@test"))
    for name, rows in (("one", ROWS), ("two", ROWS), ("three", [*ROWS, ROWS[0]])):
        write_hf(tmp_path / name, rows)
    one, two, three = (digest(only(tmp_path / name)) for name in ("one", "two", "three"))
    assert one == two != three


def test_files_and_pieces_can_be_sent_to_another_process():
    for sent in (File("in/a.txt", "/in/a.txt", ".txt", 3), Piece(7, (5, b"abc"), 3), Bad(1, "x")):
        assert pickle.loads(pickle.dumps(sent)) == sent
