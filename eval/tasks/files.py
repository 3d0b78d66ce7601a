"""The files of a task's folder, whether unpacked or still in the archive that it is handed out as.

Nothing is unpacked to the disk, and no more into memory than text would need.
"""

import io
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from cptjax.corpus import unpack
from cptjax.corpus.encodings import converted
from cptjax.corpus.folders import ASIDE, walk
from cptjax.files import check_regular
from eval.tasks.task import SPLITS

ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
PACKED = (".gz", ".zst")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "dev": ("dev", "devel", "development", "valid", "validation", "val"),
    "test": ("test",),
}


def archive_stem(name: str) -> str | None:
    """The name of an archive without its suffix; None for what is no archive."""
    return next((name[: -len(suffix)] for suffix in ARCHIVES if name.lower().endswith(suffix)), None)


def unpacked_name(name: str) -> str:
    """A file's name without .gz or .zst."""
    return next((name[: -len(suffix)] for suffix in PACKED if name.lower().endswith(suffix)), name)


def read_files(path: Path, wanted: str) -> dict[str, bytes]:
    """The content of files by name, those whose name `wanted` (a regular expression) is found in: of an archive, or of
    a folder and the archives in it. Names are relative to `path`, without .gz or .zst, in their order.

    Raises ValueError or OSError, one line, for what cannot be read or unpacks to more than text does.
    """
    contents: dict[str, bytes] = {}
    for file in [path] if path.is_file() else list_files(path):
        prefix = "" if file == path else f"{file.relative_to(path).as_posix()}/"
        if archive_stem(file.name) is not None:
            contents |= {f"{prefix}{name}": data for name, data in _members(file, re.compile(wanted))}
        elif re.search(wanted, name := unpacked_name(prefix.removesuffix("/") or file.name)):
            contents[name] = read_file(file)
    return dict(sorted(contents.items()))


def list_files(folder: Path) -> list[Path]:
    """The files below a folder, sorted, without what is hidden or half there."""
    return sorted(file for file, aside in walk(folder, lambda _: False) if file.is_file() and not aside)


def read_file(path: Path) -> bytes:
    """The content of a file, unpacked. Raises ValueError or OSError with its path."""
    check_regular(path)
    try:
        return unpack.joined(unpack.chunks(str(path)))
    except unpack.FAILURES as error:
        raise ValueError(f"{path} cannot be read ({error})") from None


def as_text(data: bytes, name: str) -> str:
    """A file's content as text, its line ends kept: offsets count them. Raises ValueError where it is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 at byte {error.start}: {converted(data, error)}") from None


def _members(path: Path, wanted: re.Pattern) -> Iterator[tuple[str, bytes]]:
    try:
        if path.name.lower().endswith(".zip"):
            yield from _of_zip(path, wanted)
        else:
            yield from _of_tar(path, wanted)
    except (*unpack.FAILURES, tarfile.TarError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({error})") from None


def _of_tar(path: Path, wanted: re.Pattern) -> Iterator[tuple[str, bytes]]:
    # `chunks` bounds what the whole unpacks to, so a member cannot be larger.
    with tarfile.open(fileobj=io.BufferedReader(_Stream(unpack.chunks(str(path)))), mode="r|") as archive:
        for member in archive:
            if member.isfile() and _is_wanted(member.name, wanted) and (stream := archive.extractfile(member)):
                yield member.name, stream.read()


def _of_zip(path: Path, wanted: re.Pattern) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if _is_wanted(member.filename, wanted)]
        unpack.check_size(sum(member.file_size for member in members), path.stat().st_size)
        for member in members:
            if not member.is_dir():
                yield member.filename, archive.read(member)  # never more than the size that it declares


def _is_wanted(name: str, wanted: re.Pattern) -> bool:
    """Whether a member is. Raises ValueError for one that would lie outside the folder: the archive is not as it was
    made."""
    place = PurePosixPath(name)
    if place.is_absolute() or ".." in place.parts:
        raise ValueError(f"it holds {name!r}, which lies outside of it: get it again from where it is handed out")
    return not any(ASIDE.fullmatch(part.lower()) for part in place.parts) and bool(wanted.search(name))


class _Stream(io.RawIOBase):
    """Chunks of bytes as a file that is read from its start to its end."""

    def __init__(self, chunks: Iterator[bytes]):
        self.chunks = chunks
        self.rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        self.rest = self.rest or next(self.chunks, b"")
        size = min(len(buffer), len(self.rest))
        buffer[:size], self.rest = self.rest[:size], self.rest[size:]
        return size


# ---- splits


def split_of(name: str) -> str | None:
    """The split that a file's path names, by a folder of it or by how the file's name begins: `corpus/dev/12.ann`,
    `train_en.tsv`."""
    *folders, file = PurePosixPath(name).parts
    words = [folder.lower() for folder in folders] + [re.split(r"[._-]", file.lower())[0]]
    return next((split for word in words for split in SPLITS if word in SPLIT_NAMES[split]), None)


def split_files(folder: Path, suffixes: tuple[str, ...], needed: tuple[str, ...] = SPLITS) -> dict[str, Path]:
    """The file of each split right in a folder, by split. Raises ValueError where a needed one is missing, and where
    two are of one split."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: unpack it first")
    files: dict[str, Path] = {}
    for path in list_files(folder):
        split = split_of(path.name)
        if path.parent != folder or split is None or not unpacked_name(path.name).lower().endswith(suffixes):
            continue
        if split in files:
            raise ValueError(f"{folder} has two files of {split}, {files[split].name} and {path.name}: leave one")
        files[split] = path
    if missing := [split for split in needed if split not in files]:
        names = " or ".join(f"{missing[0]}{suffix}" for suffix in suffixes)
        raise ValueError(f"{folder} has no {' and no '.join(missing)} split: put {names} there")
    return {split: files[split] for split in SPLITS if split in files}
