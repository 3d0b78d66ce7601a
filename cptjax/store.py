"""Token stores: documents as ids in files of random access, and what they were made from.

A token store is a folder:
`manifest.json`  what it holds and what it was made from;
`tokens-*.array_record`  one record per document: the little-endian bytes of its ids;
`length_N.npy`  tokens per document, in the same order;
`weight_N.npy`  how often a pass shows a document, where that is not once;
`origin.npz`, `files.json`  which row of which input file a document is (file_N, row_N; source, name, sha256);
`dropped.jsonl`  what was left out, row by row, and why;
`tokenizer/`  the tokenizer that made it.
It appears whole and at once, or not at all.

N documents, L tokens of one document.
"""

import hashlib
import json
import uuid
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from cptjax.files import read_json, sha256

STORE_VERSION = 2
SHARD_TOKENS = 2**27  # tokens per shard file before a new one is begun: 256 MiB in two bytes


@dataclass(frozen=True)
class Source:
    """What a user named: a file, a folder, a pattern, a data set. Its counts are of the documents kept.

    `sha256` covers names and bytes of all its files.
    """

    name: str
    sha256: str
    files: int
    documents: int
    tokens: int
    text_bytes: int
    words: int
    unknown_tokens: int


@dataclass(frozen=True)
class Shard:
    """One ArrayRecord file of a store."""

    file: str
    sha256: str
    documents: int
    tokens: int


@dataclass(frozen=True)
class Duplicates:
    """Documents that repeat an earlier one, dropped or not. `near` is None where nobody looked."""

    exact: int
    near: int | None


@dataclass(frozen=True)
class Contamination:
    """Documents that share an n-gram of words with an evaluation text, dropped or not.

    `texts` evaluation texts in `files` were read; `short` of them have fewer words than an n-gram
    and match nothing. `found` counts documents by evaluation file.
    """

    files: int
    texts: int
    short: int
    documents: int
    found: dict[str, int]


@dataclass(frozen=True)
class Manifest:
    """What a token store holds and what it was made from.

    Every document ends with `eos_token_id`, and begins with `bos_token_id` unless that is None.
    `vocab_size` is the largest id of the tokenizer + 1. `text_bytes` are UTF-8 bytes of kept text,
    `words` stand between white space. `weights_sha256` is of the weights (float32), None where each
    is 1. `settings` are the options of `prepare` that decide the content. Of the whole run, shared by
    a store and its held-out store: `sources`, `dropped` (documents left out, by reason, and
    "other_files": files of other kinds met in a source folder), `duplicates`, `contamination`, and
    `fields` (documents and tokens by the value of each field counted).
    """

    version: int
    documents: int
    tokens: int
    text_bytes: int
    words: int
    unknown_tokens: int
    dtype: str
    vocab_size: int
    tokenizer_sha256: str
    bos_token_id: int | None
    eos_token_id: int
    pad_token_id: int | None
    mask_token_id: int | None
    special_token_ids: tuple[int, ...]
    sources: tuple[Source, ...]
    dropped: dict[str, int]
    duplicates: Duplicates
    contamination: Contamination | None
    fields: dict[str, dict[str, dict[str, int]]]
    weights_sha256: str | None
    settings: dict[str, Any]
    shards: tuple[Shard, ...]

    @property
    def fingerprint(self) -> str:
        """Names the content: equal for equal tokens and weights made by an equal tokenizer. Hexadecimal."""
        parts = [self.tokenizer_sha256, *(shard.sha256 for shard in self.shards), self.weights_sha256 or ""]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @classmethod
    def read(cls, store: Path | str) -> "Manifest":
        """The manifest of a store folder. ValueError when it is not a store of this version."""
        path = Path(store) / "manifest.json"
        try:
            fields = json.loads(path.read_bytes())
            version = fields.get("version")
        except OSError:
            raise ValueError(
                f"{store} is not a token store (it holds no manifest.json): make one with `python -m cptjax prepare`"
            ) from None
        except (ValueError, AttributeError):
            raise ValueError(f"{path} is not a manifest: prepare the store again") from None
        if version != STORE_VERSION:
            raise ValueError(
                f"{store} is a token store of version {version}, this program reads version "
                f"{STORE_VERSION}: prepare it again"
            )
        try:
            fields["special_token_ids"] = tuple(fields["special_token_ids"])
            fields["sources"] = tuple(Source(**source) for source in fields["sources"])
            fields["shards"] = tuple(Shard(**shard) for shard in fields["shards"])
            fields["duplicates"] = Duplicates(**fields["duplicates"])
            if fields["contamination"] is not None:
                fields["contamination"] = Contamination(**fields["contamination"])
            return cls(**fields)
        except (TypeError, KeyError):
            raise ValueError(f"{path} is not a manifest: prepare the store again") from None


class Store:
    """A token store opened for random access.

    ValueError when the folder is not a store, or a file of it is missing, cut or of another store.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.manifest = Manifest.read(path)
        for name in ("length_N.npy", *(shard.file for shard in self.manifest.shards)):
            if not (self.path / name).is_file():
                raise ValueError(f"{self.path / name} is missing: copy the whole store again")
        try:
            self.length_N: np.ndarray = np.load(self.path / "length_N.npy", allow_pickle=False)
        except (OSError, EOFError, ValueError):
            raise ValueError(f"{self.path / 'length_N.npy'} is damaged: copy the whole store again") from None
        self.weight_N: np.ndarray | None = self._weights()
        totals = (len(self.length_N), int(self.length_N.sum()))
        if totals != (self.manifest.documents, self.manifest.tokens):
            raise ValueError(
                f"{self.path / 'length_N.npy'} counts {totals[0]} documents and {totals[1]} "
                f"tokens, the manifest {self.manifest.documents} and {self.manifest.tokens}: "
                "copy the whole store again"
            )
        self._source = _open_shards(self.path, self.manifest.shards)

    def _weights(self) -> np.ndarray | None:
        path, expected = self.path / "weight_N.npy", self.manifest.weights_sha256
        if expected is None:
            return None
        try:
            weight_N = np.load(path, allow_pickle=False)
        except (OSError, EOFError, ValueError):
            weight_N = np.zeros(0)
        if hashlib.sha256(weight_N.tobytes()).hexdigest() != expected:
            raise ValueError(f"{path} is missing or not the one of this store: copy the whole store again")
        return weight_N

    def tokens(self, documents: Sequence[int]) -> list[np.ndarray]:
        """The ids of each of these documents, int32 [L], special tokens included."""
        dtype = np.dtype(self.manifest.dtype).newbyteorder("<")
        return [np.frombuffer(self._source[d], dtype).astype(np.int32) for d in documents]

    def origins(self, documents: Sequence[int]) -> list[str]:
        """Where each of these documents stands in the input, as FILE:ROW, rows counted from 1."""
        files = read_json(self.path / "files.json")["files"]
        try:
            with np.load(self.path / "origin.npz", allow_pickle=False) as origin:
                file_N, row_N = origin["file_N"], origin["row_N"]
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            raise ValueError(f"{self.path / 'origin.npz'} is damaged: copy the whole store again") from None
        return [f"{files[file_N[d]]['name']}:{row_N[d]}" for d in documents]

    def verify(self) -> None:
        """Read every shard, those of the held-out store too, and compare hashes. ValueError names one that changed."""
        for shard in self.manifest.shards:
            if sha256(self.path / shard.file) != shard.sha256:
                raise ValueError(f"{self.path / shard.file} has changed since it was made: copy the whole store again")
        if (self.path / "held_out").exists():
            Store(self.path / "held_out").verify()


def _open_shards(folder: Path, shards: Sequence[Shard]) -> Any:
    import grain  # here, for it imports jax: the processes that write stores need neither

    # ArrayRecord may open a cut file without complaint and find 0 records: the counts tell.
    for shard in shards:
        try:
            source: Any = grain.sources.ArrayRecordDataSource(str(folder / shard.file))
            found = len(source)
        except RuntimeError:
            found = 0
        if found != shard.documents:
            raise ValueError(
                f"{folder / shard.file} holds {found} documents instead of {shard.documents}: "
                "the file is damaged, copy the store again"
            )
    return grain.sources.ArrayRecordDataSource([str(folder / shard.file) for shard in shards])


def write_shard(path: Path, documents: Iterable[np.ndarray]) -> Shard:
    """Write documents (ids [L], little-endian) as one file of a store; OSError when the disk is full."""
    count = tokens = 0
    partial = path.with_name(f".{uuid.uuid4().hex}")  # its own, should another machine try the same
    try:
        records = ArrayRecordWriter(str(partial), "group_size:1")
        for token_L in documents:
            records.write(token_L.tobytes())
            count += 1
            tokens += len(token_L)
        try:
            records.close()  # a full disk is told here, not by write()
        except RuntimeError as error:
            raise OSError(f"cannot write {path}: {str(error).splitlines()[0]}") from None
        shard = Shard(path.name, sha256(partial), count, tokens)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    return shard
