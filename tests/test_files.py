"""JSON and arrays that are not what they should be are refused in one line; what is written appears whole."""

import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from convert.__main__ import main as convert_main
from cptjax.__main__ import main as cptjax_main
from cptjax.command.errors import describe
from cptjax.files import check_out, parse_json, read_array, read_json, typed, write_json, written
from eval.__main__ import main as eval_main

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is not JSON: Expecting value"),
        (b"[1]", "must hold a JSON object, not a list"),
        (b"null", "must hold a JSON object, not a NoneType"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' stands twice"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": -Infinity}', "-Infinity is no number"),
        (b'{"a": 1e999}', "1e999 is no number"),
        (b'{"a": ' + b"9" * 301 + b"}", "a number has 301 digits"),
        (b'{"a": ' + b"[" * 101 + b"]" * 101 + b"}", "is not JSON of at most 100 levels"),
        (b'{"a": ' * 10**5, "is not JSON of at most 100 levels"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        ('{"a": 1}'.encode("utf-16"), "is not JSON: 'utf-8' codec"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b'{"a": 1', "is not JSON: Expecting ','"),
    ],
)
def test_json_of_no_use_is_refused_in_one_line(data, said):
    # Broken by: json.loads(data) without hooks; no _check_depth; no RecursionError; no encode().
    with pytest.raises(ValueError, match="^a.json ") as caught:
        parse_json(data, "a.json")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_json_as_others_write_it_is_read():
    # Broken by: MOST_DIGITS = 18; MOST_DEEP = 1; surrogate pairs refused.
    data = b'{"model_max_length": 1000000000000000019884624838656, "a": [[{"b": -1.5e3}]], "c": "\\ud83d\\ude00"}'
    assert parse_json(data, "") == {"model_max_length": 10**30 + 19884624838656, "a": [[{"b": -1500.0}]], "c": "😀"}


def test_what_is_no_number_is_null_in_json(tmp_path):
    # Broken by: _nulled left out of write_json: NaN, which no reader of JSON takes.
    write_json(tmp_path / "a.json", {"a": [float("nan"), {"b": (float("-inf"), 1.5)}]})
    assert read_json(tmp_path / "a.json") == {"a": [None, {"b": [None, 1.5]}]}


def test_a_full_disk_names_what_could_not_be_written(tmp_path):
    # Broken by: `error.filename` not set in written; shutil.Error not looked at in _said.
    with pytest.raises(OSError, match="a.json") as alone, written(tmp_path / "a.json"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert describe(alone.value) == f"[Errno 28] No space left on device: '{tmp_path / 'a.json'}'"
    several = shutil.Error([("from", "to", "[Errno 28] No space left on device")])
    assert describe(several) == "cannot write to: [Errno 28] No space left on device"


def test_only_what_is_not_there_is_missing(tmp_path, monkeypatch):
    # Broken by: `if not path.is_file()` before "is missing"; no MOST_BYTES.
    with pytest.raises(FileNotFoundError, match="absent.json is missing"):
        read_json(tmp_path / "absent.json")
    with pytest.raises(ValueError, match="is no file"):
        read_json(tmp_path)
    (tmp_path / "a.json").write_text("{}")
    monkeypatch.setattr("cptjax.files.MOST_BYTES", 1)
    with pytest.raises(ValueError, match="a.json has 2 bytes"):
        read_json(tmp_path / "a.json")


@dataclass(frozen=True)
class Inner:
    name: str
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Outer:
    inner: tuple[Inner, ...]
    share: float
    known: dict[str, int] | None = None


GOOD = {"inner": [{"name": "a", "sizes": [1, 2]}], "share": 1}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"share": "1"}, "a.json: share: Input should be a valid number"),
        ({"share": True}, "a.json: share: Input should be a valid number"),
        ({"known": []}, "a.json: known: Input should be an object"),
        ({"known": {"a": 1.5}}, "a.json: known.a: Input should be a valid integer"),
        ({"extra": 1}, "a.json: extra: Unexpected keyword argument"),
        ({"inner": [{"name": "a"}]}, "a.json: inner.0.sizes: Field required"),
        ({"inner": [{"name": "a", "sizes": [1, "2"]}]}, "a.json: inner.0.sizes.1: Input should be a valid integer"),
    ],
)
def test_a_wrong_field_is_named_with_what_it_should_be(changed, said):
    # Broken by: strict=False ("1"); no extra="forbid"; loc left out of the message.
    with pytest.raises(ValueError, match="^a.json") as caught:
        typed(Outer, GOOD | changed, "a.json")
    assert str(caught.value) == said


def test_what_json_says_becomes_the_dataclass():
    # Broken by: dict(value) returned.
    assert typed(Outer, GOOD, "") == Outer((Inner("a", (1, 2)),), 1.0)


def saved(path, array, **options) -> bytes:
    np.save(path, array, **options)
    return path.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda data, path: data[:-1],
        lambda data, path: data[:20],
        lambda data, path: b"",
        lambda data, path: data.replace(b"(4,)", b"(10**9,)"[:4]),
        lambda data, path: data.replace(b"(4,)", b"(4,4"),
        lambda data, path: data.replace(b"'<i8'", b"'|O8'"),
        lambda data, path: data.replace(b"'<i8'", b"'<f8'"),
        lambda data, path: data.replace(b"{", b"("),
        lambda data, path: b"PK" + data,
        lambda data, path: saved(path, np.zeros((2, 2), np.int64)),
        lambda data, path: saved(path, np.array(["a", None]), allow_pickle=True),
        lambda data, path: data.replace(b"(4,), }          ", b"(10000000000,), }"),
        lambda data, path: data.replace(b"'<i8'", b"'V'  ").replace(b"(4,), }", b"(-1,), }"),
        lambda data, path: data.replace(b"'<i8'", b"'<m8'"),
        lambda data, path: data + b"\0",
    ],
)
def test_an_array_that_is_none_is_refused_in_one_line(change, tmp_path):
    # Broken by: np.load(path) (it ends the process for 'V'); `except ValueError`; no size compared; no dtype.kind.
    path = tmp_path / "a.npy"
    path.write_bytes(change(saved(path, np.arange(4)), path))
    with pytest.raises(ValueError, match="a.npy (is not a whole array file|holds)") as caught:
        read_array(path, np.integer)
    assert "\n" not in str(caught.value)


def test_an_array_is_read(tmp_path):
    # Broken by: shape[0] * 8 for the size.
    for kind in (np.int32, np.int64, np.float32):
        np.save(tmp_path / "a.npy", np.arange(4, dtype=kind))
        found = read_array(tmp_path / "a.npy", np.number)
        assert found.tolist() == [0, 1, 2, 3] and found.dtype == kind


def make(path: Path, *, folder: bool, words: str) -> None:
    if folder:
        (path / "inner").mkdir(parents=True)
    (path / "inner" / "a.txt" if folder else path).write_text(words)


def content(path: Path) -> str:
    return (path / "inner" / "a.txt" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("before", [None, "old"])
def test_what_fails_meanwhile_leaves_what_was_there(tmp_path, folder, before):
    # Broken by: `yield path` in `written`; no `finally` there.
    path = tmp_path / "out.json"
    if before:
        make(path, folder=folder, words=before)
    with pytest.raises(KeyboardInterrupt), written(path) as partial:
        make(partial, folder=folder, words="new")
        raise KeyboardInterrupt
    assert [content(left) for left in tmp_path.iterdir()] == ([before] if before else [])
    with written(path) as partial:
        make(partial, folder=folder, words="new")
    assert content(path) == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("folder", [False, True])
def test_the_bytes_are_on_the_disk_before_the_name_is_and_the_name_before_it_is_believed(tmp_path, monkeypatch, folder):
    """As for a loss of power: all is synced under its temporary name, its parent once it has its own."""
    # Broken by: no _sync in put_in_place, of what is made or of its parent; rglob("*") left out.
    path, synced = tmp_path / "out.json", []

    def fsync(descriptor):
        synced.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")), path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with written(path) as partial:
        make(partial, folder=folder, words="new")
    expected = {(partial / "inner" / "a.txt", False), (partial / "inner", False)} if folder else set()
    assert {*synced[:-1]} == {(partial, False)} | expected and synced[-1] == (tmp_path, True)


def test_a_file_system_that_syncs_no_folder_is_written_to(tmp_path, monkeypatch):
    # Broken by: `raise` for whatever os.fsync raises in _sync; nothing raised.
    def fsync(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}") or full:
            raise OSError("refused")

    monkeypatch.setattr(os, "fsync", fsync)
    full = False
    write_json(tmp_path / "a.json", {"a": 1})
    full = True
    with pytest.raises(OSError, match="refused"):
        write_json(tmp_path / "a.json", {"a": 2})
    assert read_json(tmp_path / "a.json") == {"a": 1} and len(list(tmp_path.iterdir())) == 1


WRITERS = [
    (cptjax_main, ["doctor"], "cptjax.planning.doctor.examine"),
    (cptjax_main, ["plan", str(ROOT / "configs" / "tiny.py")], "cptjax.planning.plan.plan"),
    (convert_main, ["parity", "a", "b"], "convert.parity.compare"),
    (eval_main, ["bench", "step"], "eval.bench.step.bench"),
    (eval_main, ["bench", "compare"], "eval.bench.compare.bench"),
    (eval_main, ["bench", "convert"], "eval.bench.convert.bench"),
]


@pytest.mark.parametrize(("main", "words", "work"), WRITERS)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path, capsys, monkeypatch, main, words, work):
    # Broken by: no check_out in each of the commands.
    monkeypatch.setattr(work, lambda *_, **__: pytest.fail("it went to work"))
    for out, says in ((tmp_path / "no" / "a.json", f"there is no folder {tmp_path}/no; make it"), (tmp_path, "a file")):
        assert main([*words, "--out", str(out)]) == 2
        assert says in capsys.readouterr().err
    check_out(tmp_path / "a.json")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"pipe is a pipe, a socket or a device: name a file"):
        check_out(tmp_path / "pipe")


def test_a_report_is_not_made_where_a_file_is(tmp_path, capsys, monkeypatch):
    # Broken by: no question in _data_report.
    monkeypatch.setattr("cptjax.data.store.Store", lambda _: pytest.fail("it went to work"))
    (tmp_path / "a").touch()
    assert cptjax_main(["data-report", str(tmp_path), "--out", str(tmp_path / "a")]) == 2
    assert "a, a file: name a folder" in capsys.readouterr().err
