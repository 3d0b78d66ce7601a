"""Files and folders that appear whole or not at all, files read with suspicion, and the files of a tokenizer."""

import errno
import functools
import hashlib
import json
import math
import os
import shutil
import socket
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pydantic

from cptjax.command.errors import reason

T = TypeVar("T")
Read = TypeVar("Read")
MOST_BYTES = 2**28  # of a JSON file; the largest tokenizers have a tenth
MOST_DEEP = 100  # of objects in objects; the next reader may be of a language whose stack overflows
MOST_DIGITS = 300  # of a whole number: more is beyond a float
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spm.model",
    "sentencepiece.bpe.model",
)


@contextmanager
def new_folder(out: Path, *, markers: tuple[str, ...], overwrite: bool) -> Iterator[Path]:
    """A temporary sibling of `out` to write into; it becomes `out` if the block ends without error.

    Raises FileExistsError when `out` exists and `overwrite` is false, and always when `out` is
    neither empty nor a folder of the same kind, one that holds a file of `markers`.
    """
    out = out.absolute()
    check_free(out, markers=markers, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    with written(out) as partial:
        partial.mkdir()
        yield partial


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Where to make a file or a folder: a temporary sibling, which becomes `path` if the block ends without error.

    Its name is its own, so that processes, on other machines too, may race; it ends as `path` does.
    """
    partial = path.with_name(f".{path.stem}.partial-{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield partial
        put_in_place(partial, path)
    except OSError as error:
        if error.errno == errno.ENOSPC and error.filename is None:  # what writes seldom says which disk it is
            error.filename = str(path)
        raise
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def check_free(out: Path, *, markers: tuple[str, ...], overwrite: bool) -> None:
    """Raise FileExistsError when `new_folder` may not write `out`."""
    if not out.exists() and not out.is_symlink():
        return
    other = "a link" if out.is_symlink() else "" if out.is_dir() else "a file"
    if not other and any(out.iterdir()) and not any((out / marker).is_file() for marker in markers):
        other = f"a folder of other things, without {' or '.join(markers)}"
    if other:
        raise FileExistsError(f"{out} is {other}: it is not replaced, choose another name")
    if not overwrite:
        raise FileExistsError(f"{out} exists; choose another name or pass --overwrite")


def put_in_place(made: Path, out: Path) -> None:
    """Rename a finished file or folder to `out`; what was there is lost only once the new one stands, on the disk."""
    for path in (*made.rglob("*"), made):
        _sync(path)  # a rename may reach the disk before the bytes do
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    if out.is_dir():
        out.rename(old)
    try:
        made.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    _sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # not every file system can do this for a folder
            raise
    finally:
        os.close(descriptor)


def check_inside(folder: Path, names: Iterable[str] = ()) -> None:
    """Raise ValueError where a link in `folder`, or one of `names`, which are to be files of it, leads out of it.

    `folder` itself may be a link, and a snapshot in the Hub's cache holds links to the blobs beside it.
    """
    home = Path(os.path.realpath(folder))
    roots = [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]
    inside = [Path(parent, name) for parent, folders, files in os.walk(home) for name in (*folders, *files)]
    if strange := [name for name in names if "\0" in name]:
        raise ValueError(f"{folder} is said to hold {strange[0]!r}: no file is called so")
    for path in (*filter(Path.is_symlink, inside), *(home / name for name in names)):
        if not any(Path(os.path.realpath(path)).is_relative_to(root) for root in roots):
            raise ValueError(f"{path} leads out of {folder}: put the file itself there")


def copy_tokenizer(source: Path, out: Path) -> None:
    """Copy the tokenizer files that `source` has into `out`; without any, `out` is not made.

    Raises as `check_inside` does.
    """
    check_inside(source)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            out.mkdir(exist_ok=True)
            shutil.copyfile(source / name, out / name)


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold `folder` for this process. When another process that lives holds it this raises ValueError, which names that
    one and its host, or waits."""
    import fcntl

    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read() or "another process"  # which has only just begun
            raise ValueError(f"{holder} is at work in {folder}: wait for it, or stop it") from None
        with naming(folder / ".lock"):
            lock.truncate(0)
            lock.write(f"process {os.getpid()} of {socket.gethostname()}")
            lock.flush()
        yield


def check_regular(path: Path) -> None:
    """Raise ValueError where a path is there but is neither a file nor a folder: a pipe would be waited for."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"{path} is a pipe, a socket or a device, no file: write what it gives to a file, name that")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises FileNotFoundError, another OSError or ValueError with the path; the last for a
    key that stands twice, numbers beyond a float, and more than a file of this kind ever holds, too."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing")
    if not path.is_file():
        raise ValueError(f"{path} is no file")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"{path} has {size:,} bytes: no JSON file read here has more than {MOST_BYTES:,}")
    return parse_json(path.read_bytes(), str(path))


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object in some bytes. Raises ValueError, which begins with `where`, as `read_json` does."""
    try:
        value = json.loads(
            data.decode(),
            object_pairs_hook=_object,
            parse_int=_whole,
            parse_float=_finite,
            parse_constant=_finite,
        )
        _check_depth(value)
        if b"\\ud" in data.lower():
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair cannot be written anywhere
    except RecursionError:
        raise ValueError(f"{where} is not JSON of at most {MOST_DEEP} levels") from None
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} must hold a JSON object, not a {type(value).__name__}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {name!r} stands twice")
    return members


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is no number")
    return number


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level := [x for item in level if isinstance(item, dict | list) for x in _inside(item)]:
        depth += 1
        if depth > MOST_DEEP:
            raise RecursionError


def _inside(item: dict | list) -> Any:
    return item.values() if isinstance(item, dict) else item


def typed(kind: type[T], value: Any, where: str, unknown: Literal["forbid", "ignore"] = "forbid") -> T:
    """What JSON says of a dataclass, as one: every field there, each of its type, and no `unknown` one.

    Raises ValueError with `where`, the first wrong field, and what it should be.
    """
    try:
        return _adapter(kind).validate_json(json.dumps(value), strict=True, extra=unknown)
    except pydantic.ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        field = "".join(f"{name}: " for name in [".".join(map(str, wrong["loc"]))] if name)
        raise ValueError(f"{where}: {field}{wrong['msg'].removeprefix('Value error, ')}") from error


@functools.cache
def _adapter(kind: Any) -> pydantic.TypeAdapter:
    return pydantic.TypeAdapter(kind)


def read_array(path: Path, kind: type[np.generic]) -> np.ndarray:
    """The one-dimensional array of `kind` (such as np.integer) in a .npy file. Never unpickles, takes no more memory
    than the file is large. Raises OSError, or ValueError with the path for a file that is no such array."""
    # Not np.load: a type of no bytes ends its process, and a shape beyond the file takes that much memory.
    with open(path, "rb") as stream:
        try:
            np.lib.format.read_magic(stream)
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        except Exception as error:  # numpy reads the header as Python, and raises what comes of it
            raise ValueError(f"{path} is not a whole array file ({reason(error)})") from error
        if len(shape) != 1 or dtype.kind not in "iuf" or not np.issubdtype(dtype, kind):
            raise ValueError(f"{path} holds {dtype} {list(shape)}: it should be a row of {kind.__name__} numbers")
        size = path.stat().st_size - stream.tell()
        if size != shape[0] * dtype.itemsize:
            raise ValueError(f"{path} is not a whole array file ({size} bytes for {shape[0]} numbers)")
        return np.fromfile(stream, dtype)


@contextmanager
def ahead(read: Callable[[T], Read], asked: Iterable[T]) -> Iterator[Iterator[Read]]:
    """What `read` gives for each that is asked, in order; a thread reads the next one meanwhile, as long as the block
    lasts."""
    thread = ThreadPoolExecutor(1)

    def results() -> Iterator[Read]:
        waiting: deque[Future[Read]] = deque()
        for each in asked:
            waiting.append(thread.submit(read, each))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    try:
        yield results()
    finally:
        thread.shutdown(cancel_futures=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON; a reader never sees half a file. JSON knows no NaN and no infinity: they are null."""
    write_text(path, json.dumps(_nulled(value), indent=2, ensure_ascii=False) + "\n")


def _nulled(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _nulled(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_nulled(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8; a reader never sees half a file."""
    with written(path) as partial:
        partial.write_text(text, encoding="utf-8")


def check_out(path: Path | None, *read: Path) -> None:
    """Raise OSError where no file can be written at `path`, if one is asked for: before the work, not after it. Raises
    ValueError where it is one of those that are `read`."""
    if path is None:
        return
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file")
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is a pipe, a socket or a device: name a file")
    if path.resolve() in {other.resolve() for other in read}:
        raise ValueError(f"{path} is what is read: name another file to write")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"cannot write {path}: the folder {path.parent} takes no new file")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path` in an OSError raised by what writes it: a full disk does not say which file it refused."""
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error


def sha256(path: Path) -> str:
    """The sha256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def changed(path: Path, known: str) -> str | None:
    """What is wrong with a file that had this sha256 when it was made; None: it has it still."""
    try:
        if not path.is_file():
            return "is missing"
        return None if sha256(path) == known else "has changed since it was made"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


def folder_hashes(folder: Path) -> dict[str, str]:
    """The sha256 of each file right in a folder, by name; none where there is no folder."""
    return {path.name: sha256(path) for path in sorted(folder.glob("*")) if path.is_file()}


def hash_of(value: Any) -> str:
    """The sha256 of a value that JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
