"""Files and folders that appear whole or not at all, and the tokenizer files that travel with a model."""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cptjax.escape import printable

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


class DamageWarning(UserWarning, ValueError):
    """Something kept is not what was written, and the work goes on without it; `--strict` raises it."""


def warn_of_damage(message: str) -> None:
    """Name what is damaged, in one line, and how the work goes on."""
    warnings.warn(printable(message), DamageWarning, stacklevel=2)


@contextmanager
def new_folder(out: Path, *, markers: tuple[str, ...], overwrite: bool) -> Iterator[Path]:
    """A temporary sibling of `out` to write into; it becomes `out` if the block ends without error.

    Raises FileExistsError when `out` exists and `overwrite` is false, and always when `out` is
    neither empty nor a folder of the same kind, one that holds a file of `markers`.
    """
    out = out.absolute()
    check_free(out, markers=markers, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        put_in_place(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_free(out: Path, *, markers: tuple[str, ...], overwrite: bool) -> None:
    """Raise FileExistsError when `new_folder` may not write `out`."""
    if out.exists() or out.is_symlink():
        if not overwrite:
            raise FileExistsError(f"{out} exists; choose another name or pass --overwrite")
        replaceable = out.is_dir() and not out.is_symlink()
        same_kind = any((out / marker).is_file() for marker in markers)
        if not replaceable or (any(out.iterdir()) and not same_kind):
            raise FileExistsError(f"{out} exists and holds no {' or '.join(markers)}; refusing to replace it")


def put_in_place(made: Path, out: Path) -> None:
    """Rename a finished folder to `out`; what was there is lost only once the new one stands."""
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    if out.exists():
        out.rename(old)
    try:
        made.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def check_inside(folder: Path, names: Iterable[str] = ()) -> None:
    """Raise ValueError where a link in `folder`, or one of `names`, which are to be files of it, leads out of it.

    `folder` itself may be a link, and a snapshot in the Hub's cache holds links to the blobs beside it.
    """
    home = Path(os.path.realpath(folder))
    roots = [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]
    inside = [Path(parent, name) for parent, folders, files in os.walk(home) for name in (*folders, *files)]
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
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process. Raises ValueError when another process that lives holds it."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is at work in {folder}: wait for it, or stop it") from None
        yield


def read_json(path: Path) -> dict:
    """A JSON object from a file. Raises FileNotFoundError or ValueError with the path."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return found


def write_json(path: Path, value: Any) -> None:
    """Write JSON under a temporary name, then rename: a reader never sees half a file."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.rename(path)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path` in an OSError raised by what writes it: a full disk does not say which file it refused."""
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error


def sha256(path: Path) -> str:
    """Of a file's bytes, hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_hashes(folder: Path) -> dict[str, str]:
    """The sha256 of each file right in a folder, by name; none where there is no folder."""
    return {path.name: sha256(path) for path in sorted(folder.glob("*")) if path.is_file()}


def hash_of(value: Any) -> str:
    """The sha256 of a value that JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
