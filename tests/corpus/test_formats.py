"""Rows neither merge nor vanish, packed and hostile files are read in bounded memory, and no name decides alone."""

import csv
import gzip
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from cptjax.corpus import columnar, pieces, unpack
from cptjax.corpus.cleaning import parse_condition, read_evaluation
from cptjax.corpus.folders import is_aside
from cptjax.corpus.pieces import Bad, Reading
from cptjax.corpus.sources import find
from cptjax.data.store import LeftOut, sentences
from tests.corpus.test_sources import PLAIN, bad, jsonl, read, texts, write_parquet

ROW = b'{"text": "a"}\n'


def put(path: Path, content: bytes) -> Path:
    """A file with this content, in folders that are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# ---- rows of delimited text


def test_a_quote_in_tsv_is_a_character(tmp_path):
    # Broken by: `_cut_csv` for all .tsv files.
    path = put(tmp_path / "a.tsv", b'id\ttext\r\n1\t"Begins\n\n2\tsecond "row"\r\n3\t"\n4\t""\n')
    assert [(found.row, found.text) for found in read(path)] == [
        (2, '"Begins'),
        (4, 'second "row"'),
        (5, '"'),
        (6, '""'),
    ]
    path.write_bytes(b'id\ttext\n1\t"a\tb\n2"\t"c ""d"""\n')
    assert [found.text for found in read(path, Reading(tsv_quotes=True)) if not isinstance(found, Bad)] == []
    path.write_bytes(b'id\ttext\n1\t"a\tb\nc"\n2\t"c ""d"""\n')
    assert texts(path, Reading(tsv_quotes=True)) == ["a\tb\nc", 'c "d"']


# Broken by: each check left out in turn; `line` not counted on from piece to piece.
@pytest.mark.parametrize("piece_bytes", [1, 2**22])
@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.tsv", b"id\ttext\n1\ta\n2\tb\tc\n", "a.tsv:3 has 3 cells, the header 2: no cell may hold a tab or a line"),
        ("a.tsv", b"id\ttext\n1\tb\nc\n", "a.tsv:3 has 1 cells, the header 2"),
        ("a.tsv", b'"id"\t"text"\n1\tb\n', "a.tsv:1 has names in quotes: give --tsv-quotes"),
        ("a.tsv", b"text\tn\ra\t1\rb\t2\r", "a.tsv:1 has lines that end in carriage returns only"),
        ("a.tsv", b"text\ttext\na\tb\n", "a.tsv has 2 fields 'text': give each a name of its own"),
        ("a.tsv", b"\n", "a.tsv:1 is nothing: a first row that names the columns is needed"),
        ("a.tsv", b"text\ncaf\xe9\n", "a.tsv:2 is not UTF-8 at byte 8 (0xe9)"),
        ("a.csv", "text\nä\n".encode("utf-16"), "a.csv is UTF-16: convert it to UTF-8"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "a.jsonl is UTF-16"),
        ("a.csv", b'text,n\n"a\n\nb",1\n"c\nd","e\nf,3\n', "a.csv:3 is not CSV (a quote that opens on line 6 is never"),
        ("a.csv", b'text,n\n"a",1\n"b",""\nc,"\nd""\n', "a.csv:4 is not CSV (a quote that opens on line 4 is never"),
        ("a.jsonl", b'{"text": "a"}\r{"text": "b"}\r', "its lines may end in carriage returns only"),
        ("a.jsonl", b'{"text": "a", "text": "b"}\n', "a.jsonl:1 has 2 fields 'text': give each a name of its own"),
        ("a.jsonl", b'{"text": NaN}\n', "a.jsonl:1 field 'text' is null, not a string"),
    ],
)
def test_a_row_that_would_merge_or_vanish_is_named(tmp_path, monkeypatch, piece_bytes, name, content, says):
    monkeypatch.setattr(pieces, "PIECE_BYTES", piece_bytes)
    assert says in bad(put(tmp_path / name, content))


def test_a_name_that_nobody_asks_for_may_be_missing_or_doubled(tmp_path):
    # Broken by: `all(columns)` asked of a header; duplicates looked for in all columns.
    put(tmp_path / "a.csv", b",text\n0,a\n")
    put(tmp_path / "b.csv", b"text,,\nb,,\n")
    put(tmp_path / "c.tsv", b"\ttext\tn\tn\n0\tc\t1\t2\n")
    put(tmp_path / "d.jsonl", b'{"text": "d", "n": 1, "n": 2, "m": {"text": 1, "text": 2}}\n')
    assert texts(tmp_path) == ["a", "b", "c", "d"]
    assert "it has one without a name, text" in bad(tmp_path / "a.csv", Reading(text_field="body"))


def test_parquet_with_two_columns_of_one_name_is_refused_where_it_is_read(tmp_path):
    # Broken by: `there.count(name)` not asked.
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"]), tmp_path / "a.parquet")
    pq.write_table(
        pa.Table.from_arrays([pa.array([n]) for n in ("a", "b", "c")], ["n", "text", "n"]), tmp_path / "b.parquet"
    )
    assert bad(tmp_path / "a.parquet") == "a.parquet has 2 fields 'text': give each a name of its own"
    assert texts(tmp_path / "b.parquet") == ["b"]
    assert "2 fields 'n'" in bad(tmp_path / "b.parquet", Reading(fields=("n",)))


def test_paragraphs_between_carriage_returns_are_not_one(tmp_path):
    # Broken by: b"\r\r" not looked for.
    path = put(tmp_path / "a.txt", b"a\r\rb\r\rc")
    assert "carriage returns only" in bad(path, Reading(txt_documents="paragraph"))


@pytest.mark.parametrize("condition", ["n!=3", "n==3", "n>=3", "n<3", "n!=x", "n==x"])
def test_a_missing_value_meets_no_condition_in_any_format(tmp_path, condition):
    # Broken by: NaN not asked for in `_value`, in `Condition.holds` for numbers, and for text.
    asked = parse_condition(condition)
    put(tmp_path / "a.jsonl", b'{"text": "a", "n": NaN}\n{"text": "a", "n": null}\n{"text": "a"}\n')
    put(tmp_path / "b.csv", b"text,n\na,\n")
    write_parquet(tmp_path / "c.parquet", [{"text": "a", "n": float("nan")}, {"text": "a", "n": None}])
    values = [found.fields["n"] for found in read(tmp_path, Reading(fields=("n",)))]
    assert len(values) == 6 and not any(map(asked.holds, values)) and not asked.holds(float("nan"))
    assert "3" not in condition or not asked.holds("NaN")  # as some programs write it in a cell


def test_ids_that_are_nan_are_no_repetitions(tmp_path):
    put(tmp_path / "a.jsonl", b'{"text": "a", "id": NaN}\n')
    assert [found.id for found in read(tmp_path, Reading(id_field="id"))] == [None]


# ---- kinds by content


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.json", ROW * 2, [1, 2]),
        ("a.JSON", b'\xef\xbb\xbf{"text": "a"}\n\n{"text": "a"}', [1, 3]),
        ("a.json", b'[{"text": "a"}, {"text": "a"}]', [1, 2]),
        ("a.json", json.dumps([{"text": "a", "of": [{}]}] * 2, indent=2).encode(), [1, 2]),
        ("a.json", json.dumps({"text": "a"}, indent=2).encode() * 3, [1, 2, 3]),
        ("a.json.gz", gzip.compress(b'[{"text": "a"}]', mtime=0), [1]),
        ("a.ndjson", ROW, [1]),
        ("a.ndjson.zst", zstandard.compress(ROW), [1]),
        ("a.json.gz", gzip.compress(ROW, mtime=0), [1]),
        ("a.CSV.gz", gzip.compress(b"text\na\n", mtime=0), [2]),
        ("a.csv.zst", zstandard.compress(b"text\na\n"), [2]),
        ("a.tsv.gz", gzip.compress(b"text\na\n", mtime=0), [2]),
        ("a.txt.zst", zstandard.compress(b"a"), [1]),
        ("a.jsonl.gz", ROW, [1]),  # unpacked by whoever fetched it
        ("a.jsonl", gzip.compress(ROW, mtime=0), [1]),
        ("a.jsonl.gz", gzip.compress(ROW, mtime=0) * 2 + bytes(512), [1, 2]),
        ("a.jsonl.zst", b"\x50\x2a\x4d\x18\x03\0\0\0abc" + zstandard.compress(ROW), [1]),
        ("part-00000", ROW * 2, [1, 2]),
        ("a.txt.1.gz", gzip.compress(ROW, mtime=0), [1]),
    ],
)
def test_files_are_read_by_what_they_hold(tmp_path, name, content, rows, monkeypatch):
    # Broken by: each way of packing, and each branch of `format_of`, left out in turn.
    put(tmp_path / name, content)
    assert [(found.row, found.text) for found in read(tmp_path)] == [(row, "a") for row in rows]
    assert [(found.row, found.text) for found in read(tmp_path / name)] == [(row, "a") for row in rows]
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1)
    monkeypatch.setattr(unpack, "CHUNK_BYTES", 7)
    assert [(found.row, found.text) for found in read(tmp_path)] == [(row, "a") for row in rows]


# Broken by: an array that is not closed taken for its end; commas not asked for.
@pytest.mark.parametrize(
    ("content", "whole", "says"),
    [
        (b'[{"text": "a"}, {"text": "a"}', 2, "a.json:3 is not JSON (its array is not closed)"),
        (b'[{"text": "a"} {"text": "a"}]', 1, "a.json:2 is not JSON (a comma is missing in its array)"),
        (b'[{"text": "a"}, {"text" 1}]', 1, "a.json:2 is not JSON (Expecting ':' delimiter)"),
        (b'{"text": "a"}\n]', 1, "a.json:2 is not JSON (Expecting value)"),
        (b'{\n"text": "a', 0, "a.json:1 is not JSON (Unterminated string"),
        (b"[" * 100_000, 0, "a.json:1 is not JSON (nested too deep)"),
        (b'[1, {"text": "a"}]', 1, "a.json:1 is not a JSON object: an object for each row is needed"),
        (b'{"data": [\n{"text": "a"}]}', 0, "a.json:1 has no field 'text': it has data"),
    ],
)
def test_json_is_read_whole_or_named(tmp_path, content, whole, says):
    found = read(put(tmp_path / "a.json", content))
    (message,) = [row.message for row in found if isinstance(row, Bad)]
    assert message.startswith(says) and len(found) == whole + 1


# ---- what a folder holds besides


HIDDEN = [
    *(".hidden.jsonl", "._a.jsonl", ".Trash-0/a.jsonl", ".ipynb_checkpoints/a.jsonl", "_temporary/0/part-0.jsonl"),
    *(
        "__MACOSX/a.jsonl",
        "_SUCCESS",
        "_delta_log/0.json",
        "_committed_1",
        ".part-0.jsonl.crc",
        "a.jsonl~",
        "a.jsonl.tmp",
    ),
    *("a.jsonl.tmp123", "a.tmp.1234", "a.jsonl.tmp-7f3c", "a.jsonl.tmpk_jdxq", "tmp.k3Jd82xQ", "a.jsonl.temp7"),
    *("a.jsonl.bak2", "a.jsonl.bak.2024-01-02", "a.jsonl.old1", "a.jsonl.bak (1)", "a.jsonl.backup"),
    *("@eaDir/a.jsonl", "@Recycle/a.jsonl", "#recycle/a.jsonl", "#snapshot/a.jsonl", "~snapshot/a.jsonl"),
    *(".fuse_hidden0001", ".nfs000012", "RECYCLER/a.jsonl", "a.jsonl._COPYING_"),
    *("#a.jsonl#", ".a.jsonl.swp", "a.jsonl.part", "a.jsonl.crdownload", "Thumbs.db", ".DS_Store", "a.jsonl.bak"),
]


def test_what_nobody_means_is_passed_over_and_said(tmp_path):
    # Broken by: each alternative of ASIDE left out, `is_aside` not asked of patterns, files not named by `sentences`.
    folder = tmp_path / "in"
    for name in HIDDEN:
        put(folder / name, ROW)
    put(folder / "a.jsonl", ROW)
    put(folder / "resource.jsonl", b"\0\x05\x16\7\0\2\0\0Mac OS X")
    shown = {f"in/{name.split('/')[0]}" for name in (*HIDDEN, "resource.jsonl")}
    files, left_out = find(str(folder))
    assert [file.name for file in files] == ["in/a.jsonl"]
    assert left_out == [LeftOut(name, "hidden") for name in sorted(shown)]
    assert f"passed over where they are not named themselves: {len(shown)} (in/" in sentences(left_out)["hidden"]
    for pattern in ("*", "**/*.jsonl", "**"):
        assert [file.name for file in find(f"{folder}/{pattern}")[0]] == ["in/a.jsonl"]
    for named in (".hidden.jsonl", ".Trash-0", "_temporary/*/*", ".Tra*/*", ".[h]*", "._*"):
        assert texts(folder / named) == ["a"], named
    with pytest.raises(ValueError, match="what macOS notes about another file"):
        find(str(folder / "resource.jsonl"))
    (folder / "a.jsonl").unlink()
    with pytest.raises(
        ValueError, match="holds no files of a known kind .*; what is hidden or temporary is passed over"
    ):
        find(str(folder))


@pytest.mark.parametrize(
    "name",
    "notes.old_patients.txt notes.old.txt a.bakery.txt a.bakery tmp.txt temp.jsonl 2024.tmpl.jsonl a.template "
    "part-00001 a.jsonl.part1 a.temperature @user.txt #topic.txt old.jsonl bak.1.jsonl a.tmp.jsonl temp2024.csv "
    "b.original.txt tmp-notes.txt a.gold1 my.orig.v2.jsonl".split(),
)
def test_names_that_only_look_temporary_are_data(name):
    # Broken by: `.*` after the endings of ASIDE; an ending asked for anywhere in a name.
    assert not is_aside(Path(name))


def test_other_files_and_links_are_named(tmp_path):
    # Broken by: `real in seen` not asked; pipes opened to look into them (the test hangs).
    folder = tmp_path / "in"
    for number in range(12):
        put(folder / f"picture{number:02d}.png", b"\x89PNG")
    put(folder / "store" / "length_N.npy", b"")
    put(folder / "b.jsonl", ROW)
    (folder / "a.jsonl").symlink_to(folder / "b.jsonl")
    os.mkfifo(folder / "pipe.jsonl")
    files, left_out = find(str(folder))
    assert [file.name for file in files] == ["in/a.jsonl"]
    said = sentences(left_out)
    assert said["kind"].startswith("Of other kinds, not read: 14 (in/picture00.png, in/picture01.png, ")
    assert said["kind"].endswith("in/picture09.png and 4 more).") and "hidden" not in said
    assert said["again"] == "Links to files read already, not read again: 1 (in/b.jsonl)."


def test_a_pipe_a_device_or_a_socket_is_refused(tmp_path):
    # Broken by: `check_regular` not called (the test hangs at the pipe).
    os.mkfifo(tmp_path / "pipe.jsonl")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "s.jsonl"))
    for path in (tmp_path / "pipe.jsonl", tmp_path / "s.jsonl", Path("/dev/null")):
        with pytest.raises(ValueError, match=f"{path} is a pipe, a socket or a device"):
            find(str(path))
        with pytest.raises(ValueError, match=f"{path} is a pipe, a socket or a device"):
            read_evaluation([str(path)])
    with pytest.raises(ValueError, match="holds no files"):
        find(f"{tmp_path}/*.jsonl")


# ---- bounds

LIMITED = """
import resource, sys
from cptjax.corpus import columnar, formats, pieces, unpack
from cptjax.corpus.pieces import Bad, Reading
from cptjax.corpus.sources import documents, find, pieces
import pyarrow.parquet, zstandard, csv
unpack.DOCUMENT_BYTES, unpack.UNPACKED_BYTES, unpack.CHUNK_BYTES, pieces.PIECE_BYTES = 2**22, 2**23, 2**16, 2**18
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
reading = Reading(txt_documents="paragraph")
for source in sys.argv[1:]:
    (file,) = find(source)[0]
    for piece in pieces(file, reading):
        for row in [piece] if isinstance(piece, Bad) else documents(file, piece, reading):
            if isinstance(row, Bad):
                print(row.message)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_hostile_file_takes_bounded_memory(tmp_path):
    # Broken by: check_size left out (the bombs); LengthError left out of each reader (the long rows: 150 MiB and more).
    size = 2**27
    bombs = {"newlines.jsonl.zst": b"\n", "spaces.csv.zst": b" ", "rows.json.zst": b"{}\n", "a.tsv.zst": b"x\n"}
    for name, unit in bombs.items():
        put(tmp_path / name, zstandard.compress(unit * (size // len(unit))))
    put(tmp_path / "p.txt.gz", gzip.compress(b"\n" * size, 9, mtime=0))
    with open(put(tmp_path / "line.jsonl", ROW * 3), "ab") as stream:
        stream.truncate(size)
    put(tmp_path / "open.csv", b'text,n\n"a\nb",1\nc,"2\n' + b"3,4\n" * (size // 8))
    put(tmp_path / "long.json", b'[{"text": "a"}, {"text": "' + b"x" * (size // 2))
    put(tmp_path / "long.txt", b"a\n\n" + b"x\n" * (size // 4))
    sources = [str(path) for path in sorted(tmp_path.iterdir())]
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED, *sources], capture_output=True, check=True, text=True, timeout=120
    )
    *messages, grown = ran.stdout.splitlines()
    bomb = "unpacks to more than 500 times its size: if that is text, unpack it first"
    long = "is longer than 4 MiB{}: no document is so long; correct or cut it (what follows is not read)"
    assert messages == [
        f"a.tsv.zst {bomb}",
        f"line.jsonl:4 {long.format('')}",
        f"long.json:2 {long.format('')}",
        f"long.txt:3 {long.format('')}",
        f"newlines.jsonl.zst {bomb}",
        f"open.csv:3 {long.format(' (a quote opens on line 4: is it closed?)')}",
        f"p.txt.gz {bomb}",
        f"rows.json.zst {bomb}",
        f"spaces.csv.zst {bomb}",
    ]
    assert int(grown) < 100


def test_a_cell_that_many_rows_repeat_takes_bounded_memory(tmp_path, monkeypatch):
    # Broken by: `at_once` not bounded by the dictionary (a gigabyte at once), the text of a piece not summed.
    import pyarrow as pa
    import pyarrow.parquet as pq

    cell = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["x" * 2**20])).cast(pa.string())
    pq.write_table(pa.table({"text": cell}), tmp_path / "a.parquet", dictionary_pagesize_limit=2**24)
    del cell
    monkeypatch.setattr(unpack, "UNPACKED_BYTES", 2**23)
    monkeypatch.setattr(unpack, "DOCUMENT_BYTES", 2**22)
    before = pa.total_allocated_bytes()
    most = []
    convert = columnar._arrow_records
    monkeypatch.setattr(
        columnar, "_arrow_records", lambda table: most.append(pa.total_allocated_bytes() - before) or convert(table)
    )
    *found, last = read(tmp_path / "a.parquet")
    assert isinstance(last, Bad) and "unpacks to more than 500 times its size" in last.message and len(found) < 30
    assert max(most) < 2**25
    monkeypatch.setattr(unpack, "DOCUMENT_BYTES", 2**19)
    assert "a.parquet:1 field 'text' is longer than 0.5 MiB" in read(tmp_path / "a.parquet")[0].message


def test_a_parquet_file_that_unpacks_to_more_than_text_does_is_refused(tmp_path, monkeypatch):
    # Broken by: `check_size` left out of `_cut_parquet`.
    monkeypatch.setattr(unpack, "UNPACKED_BYTES", 2**20)
    rows = [{"text": "x" * 2**16 + str(i)} for i in range(128)]
    write_parquet(tmp_path / "a.parquet", rows, compression="zstd", use_dictionary=False)
    (refused,) = read(tmp_path / "a.parquet")  # before any of its text is read
    assert isinstance(refused, Bad) and "unpacks to more than 500 times its size" in refused.message


def test_a_frame_that_asks_for_more_memory_than_its_file_could_fill_is_refused(tmp_path):
    # Broken by: max_window_size = 2**31 for any file.
    packer = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=30)
    ).compressobj()
    path = put(tmp_path / "a.jsonl.zst", packer.compress(ROW) + packer.flush())
    assert "a.jsonl.zst is cut or damaged" in bad(path)


def test_a_text_file_that_is_too_long_for_a_document_is_refused(tmp_path, monkeypatch):
    # Broken by: the bound of `joined` left out; `_value` without one.
    monkeypatch.setattr(unpack, "DOCUMENT_BYTES", 50)
    path = put(tmp_path / "a.txt", b"a" * 30 + b"\n\n" + b"b" * 30)
    assert bad(path).startswith("a.txt holds more than")
    assert texts(path, Reading(txt_documents="paragraph")) == ["a" * 30, "b" * 30]
    path = put(tmp_path / "b.jsonl", jsonl(["x" * 51]))
    assert "b.jsonl:1 " in bad(path)
    assert PLAIN == Reading()


def test_evaluation_files_are_read_by_the_same_rules(tmp_path, monkeypatch):
    # Broken by: `rglob` of the evaluation folder; `.json` taken for one value; no bound.
    words = " ".join(f"word{i}" for i in range(13))
    folder = tmp_path / "tasks"
    put(folder / "._a.json", b"\0\x05\x16\7")
    put(folder / ".DS_Store", b"\0\0\0\1Bud1")
    put(folder / "a.json.gz", gzip.compress(jsonl([words, "other"]), mtime=0))
    put(folder / "b.ndjson", jsonl([words]))
    evaluation = read_evaluation([str(folder)])
    assert evaluation.files == ("tasks/a.json.gz", "tasks/b.ndjson") and evaluation.texts == 3
    monkeypatch.setattr(unpack, "DOCUMENT_BYTES", 50)
    put(folder / "c.txt", words.encode())
    with pytest.raises(ValueError, match="c.txt is not text that can be read .holds more than"):
        read_evaluation([str(folder / "c.txt")])


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "cp850", "iso8859_15", "koi8-r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("piece_bytes", [1, 2**22])
def test_an_export_of_any_delimiter_and_encoding_is_read(tmp_path, monkeypatch, encoding, delimiter, piece_bytes):
    """Delimiters, quotes and line ends in its cells; further columns with names that hold the other delimiters."""
    # Broken by: cells decoded as UTF-8; the first delimiter that makes two columns.
    monkeypatch.setattr(pieces, "PIECE_BYTES", piece_bytes)
    word = b"\xe4\xe9".decode(encoding)
    rows = [[f"{word}{delimiter}, b", "1"], [f'say "{word}"\n; c', "2"]]
    path = tmp_path / "a.csv"
    with open(path, "w", encoding=encoding, newline="") as stream:
        csv.writer(stream, delimiter=delimiter).writerows([["text", "n, or; more|less"], *rows])
    assert texts(path, Reading(encoding=encoding)) == [row[0] for row in rows]
    assert texts(path, Reading(encoding=encoding, delimiter=delimiter)) == [row[0] for row in rows]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".tsv"])
def test_text_of_a_byte_a_character_is_read_in_every_format(tmp_path, suffix):
    content = {".txt": "café", ".jsonl": '{"text": "café"}', ".json": '[{"text": "café"}]', ".tsv": "text\ncafé\n"}[
        suffix
    ]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content.encode("cp1252"))
    assert texts(path, Reading(encoding="cp1252")) == ["café"]
    path.write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert texts(path, Reading()) == ["café"]
    assert "says that it is UTF-8, not cp1252: read it without --encoding" in bad(path, Reading(encoding="cp1252"))


@pytest.mark.parametrize("encoding", ["utf-16", "shift_jis", "gbk", "big5", "utf-7", "hex", "cp037", "nonsense"])
def test_an_encoding_that_cannot_be_cut_at_ascii_is_refused(encoding):
    # Broken by: only unknown names refused: cp037 is EBCDIC, in shift_jis half a character may be a backslash.
    with pytest.raises(ValueError, match="it is utf-8 or one of a byte a character"):
        Reading(encoding=encoding)


@pytest.mark.parametrize(
    ("header", "said", "how"),
    [
        ("id;text", ",", "seems separated by ';', not by ',': correct --delimiter"),
        ('"id";"text"', ",", "seems separated by ';', not by ',': correct --delimiter"),
        ("id;body", ",", "seems separated by ';', not by ',': correct --delimiter"),
        ("id\tmore;body", ";", "has no field 'text'"),  # the right one, for all that is known
        ("id^body, or, more", "^", "has no field 'text': it has id, body, or, more"),
        ("body", "^", "has no field 'text': it has body"),
    ],
)
def test_a_delimiter_that_the_file_has_not_is_told(tmp_path, header, said, how):
    # Broken by: the likely delimiter asked for after the cells are read; what makes most columns of all preferred.
    path = tmp_path / "a.csv"
    path.write_text(f"{header}\n1{said}2\n")
    assert bad(path, Reading(delimiter=said)).startswith(f"a.csv {how}")


@pytest.mark.parametrize("delimiter", ["", ";;", '"', "\n"])
def test_a_delimiter_that_is_none_is_refused(delimiter):
    with pytest.raises(ValueError, match="it is one character"):
        Reading(delimiter=delimiter)
