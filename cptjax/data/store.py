"""Token stores: documents as ids in files of random access, and what they were made from.

A token store is a folder:
`manifest.json`  what it holds and what it was made from;
`tokens-*.array_record`  one record per document: the little-endian bytes of its ids;
`length_N.npy`  tokens per document, in the same order;
`crc32_N.npy`  of each document's bytes in its record: a restart need not read a large store to trust it;
`weight_N.npy`  how often a pass shows a document, where that is not once;
`row_N.npy`, `file_N.npy`, `files.json`  which row of which input file a document is, and each file's source and sha256;
`dropped.jsonl`  what was left out, row by row, and why;
`tokenizer/`  the tokenizer that made it.
It appears whole and at once, or not at all.

N documents, L tokens of one document, F files of its input.
"""

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from pydantic import Field

from cptjax.command.errors import reason
from cptjax.command.escape import listed
from cptjax.files import (
    changed,
    check_inside,
    folder_hashes,
    hash_of,
    read_array,
    read_json,
    sha256,
    typed,
    write_json,
    written,
)

STORE_VERSION = 2
MANIFEST, TOKENIZER = "manifest.json", "tokenizer"
OWN_HASH = "manifest_sha256"  # in manifest.json: of all else in it
FILES = ("length_N.npy", "crc32_N.npy", "weight_N.npy", "row_N.npy", "file_N.npy", "files.json", "dropped.jsonl")
VOCABULARY = (
    *("tokenizer_sha256", "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id"),
    "special_token_ids",
)  # of manifest.json: what comes of the tokenizer's files and decides what a model is shown and asked
HUB_ID = "^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?$"  # it stands in links
MOST_WEIGHT = 1000  # every copy is a round of packing, and learned by heart long before
SHARD_TOKENS = 2**27  # tokens per shard file before a new one is begun: 256 MiB in two bytes

WHYS = {
    "kind": "Of other kinds, not read",
    "hidden": "Hidden, temporary or incomplete, passed over where they are not named themselves",
    "again": "Links to files read already, not read again",
}


@dataclass(frozen=True)
class LeftOut:
    """A file or folder met in a source that is not read, and why: a reason of WHYS."""

    name: str
    why: str


def sentences(left_out: Sequence[LeftOut]) -> dict[str, str]:
    """What is left out, in one sentence for each reason there is."""
    said = {}
    for why, how in WHYS.items():
        names = [entry.name for entry in left_out if entry.why == why]
        if names:
            said[why] = f"{how}: {len(names):,} ({listed(names)})."
    return said


@dataclass(frozen=True)
class Described:
    """A name, and what its author says of it, for a model's card: what it is, its licence (an id of the Hub's, or a
    name), and its id among the Hub's data sets. Older stores say none of it."""

    name: str
    description: str | None = field(default=None, kw_only=True)
    licence: str | None = field(default=None, kw_only=True)
    hub_id: Annotated[str, Field(pattern=HUB_ID)] | None = field(default=None, kw_only=True)

    @property
    def said(self) -> dict[str, str | None]:
        """All but the name."""
        return {"description": self.description, "licence": self.licence, "hub_id": self.hub_id}


@dataclass(frozen=True)
class Source(Described):
    """What a user named: a file, a folder, a pattern, a data set. Its counts are of the documents kept.

    `sha256` covers names and bytes of all its files.
    """

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
class StoredFile:
    """An input file of a store, as files.json names it; `source` is the number of its source."""

    source: int
    name: str
    sha256: str


@dataclass(frozen=True)
class Files:
    """The input files of a store, in the order of their numbers, and what was left out: files.json."""

    files: tuple[StoredFile, ...]
    left_out: tuple[LeftOut, ...] = ()


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
    `words` stand between white space. `written_specials`: how often the text reads like a special token
    ("[MASK]"), and stayed text. `sha256` is of each file of FILES that the store has, and of the tokenizer's.
    `settings` are the options of `prepare` that decide the content. Of the whole run, shared by a store and its
    held-out store: `sources`, `dropped` (documents left out, by reason, and "other_files": files of
    other kinds met in a source folder), `duplicates`, `contamination`, and `fields` (documents and
    tokens by the value of each field counted).
    """

    version: int
    documents: int
    tokens: int
    text_bytes: int
    words: int
    unknown_tokens: int
    dtype: Literal["uint16", "uint32"]
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
    sha256: dict[str, str]
    settings: dict[str, Any]
    shards: tuple[Shard, ...]
    written_specials: int

    def __post_init__(self):
        ids = (self.bos_token_id, self.eos_token_id, self.pad_token_id, self.mask_token_id, *self.special_token_ids)
        if strange := [i for i in ids if i is not None and not 0 <= i < self.vocab_size]:
            raise ValueError(f"special token {strange[0]} is beyond vocab_size {self.vocab_size}")
        counted = [value for values in self.fields.values() for value in values.values()]
        if any(value.keys() != {"documents", "tokens"} for value in counted):
            raise ValueError("fields: each value has a number of documents and one of tokens")

    @property
    def fingerprint(self) -> str:
        """Names all that decides what a run reads: equal for equal tokens and weights made by an equal tokenizer."""
        arrays = [self.sha256.get(name) for name in ("length_N.npy", "weight_N.npy")]
        ids = [self.vocab_size, self.pad_token_id, self.mask_token_id, *self.special_token_ids]
        shards = [(shard.sha256, shard.documents) for shard in self.shards]
        return hash_of([self.tokenizer_sha256, self.dtype, ids, shards, arrays])

    @property
    def files(self) -> dict[str, str]:
        """The sha256 of each file of the store but manifest.json."""
        return {**self.sha256, **{shard.file: shard.sha256 for shard in self.shards}}

    @property
    def vocabulary(self) -> dict[str, Any]:
        """What it says of its tokenizer, by field: all that `Encoder.vocabulary` does."""
        return {name: getattr(self, name) for name in VOCABULARY}

    def write(self, store: Path) -> None:
        """Write manifest.json, and in it the hash of all else that it says."""
        fields = json.loads(json.dumps(asdict(self)))
        write_json(store / MANIFEST, {**fields, OWN_HASH: hash_of(fields)})

    @classmethod
    def read(cls, store: Path | str) -> "Manifest":
        """The manifest of a store folder. ValueError when it is none of this version, or not all in its folder."""
        path = Path(store) / MANIFEST
        try:
            fields = read_json(path)
        except FileNotFoundError:
            raise ValueError(
                f"{store} is not a token store (it holds no manifest.json): make one with `python -m cptjax prepare`"
            ) from None
        own_hash = fields.pop(OWN_HASH, None)
        if (version := fields.get("version")) != STORE_VERSION:
            raise ValueError(
                f"{store} is a token store of version {version!r}, this program reads version "
                f"{STORE_VERSION}: prepare it again"
            )
        if own_hash != hash_of(fields):
            raise ValueError(f"{path} has changed since it was written: copy the whole store, or prepare it again")
        manifest = typed(cls, fields, str(path))
        check_inside(Path(store), [*manifest.sha256, *(shard.file for shard in manifest.shards)])
        return manifest

    @classmethod
    def of_whole(cls, store: Path) -> "Manifest":
        """The same of a folder that holds all of its files. ValueError for one that is missing, too."""
        manifest = cls.read(store)
        for name in manifest.files:
            if not (store / name).is_file():
                raise ValueError(f"{store / name} is missing: copy the whole store again")
        return manifest


def check_one_tokenizer(said: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ValueError where another place says of its tokenizer, by field of a manifest, what the first does not."""
    (first, expected), *others = said.items()
    for place, values in others:
        for name, value in values.items():
            if value != expected[name]:
                raise ValueError(
                    f"{first} and {place} do not share one tokenizer ({name} is {expected[name]} and {value}): "
                    "prepare the text again, all of it with the tokenizer folder of the model"
                )


class Store:
    """A token store opened for random access.

    ValueError when the folder is not a store, or a file of it is missing, cut or of another store: every file
    is compared with the manifest's hash when it is read, but shards, of which each document is compared with its
    length and CRC-32.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.manifest = Manifest.of_whole(self.path)
        self._check_tokenizer()
        self.length_N = self._array("length_N.npy", np.integer, 1)
        self.weight_N = None
        if "weight_N.npy" in self.manifest.sha256:
            self.weight_N = self._array("weight_N.npy", np.number, 0, MOST_WEIGHT)
        if self.length_N.sum() != self.manifest.tokens:
            raise ValueError(
                f"{self.path / 'length_N.npy'} counts {self.length_N.sum()} tokens, the manifest "
                f"{self.manifest.tokens}: copy the whole store again"
            )
        self.crc32_N = self._array("crc32_N.npy", np.integer)
        held = sum(shard.documents for shard in self.manifest.shards)
        if not self.manifest.shards or held != self.manifest.documents:
            raise ValueError(
                f"{self.path / MANIFEST} names shards of {held} documents, the store has {self.manifest.documents}: "
                "copy the whole store again"
            )
        self._source = _open_shards(self.path, self.manifest.shards)

    def _check_tokenizer(self) -> None:
        now = _tokenizer_hashes(self.path)
        known = {name: value for name, value in self.manifest.sha256.items() if name.startswith(f"{TOKENIZER}/")}
        for name in sorted(now.keys() | known.keys()):
            if now.get(name) != known.get(name):
                how = "has changed since it was made" if name in now else "is missing"
                raise ValueError(f"{self.path / name} {how}: copy the whole store again")

    def _checked(self, name: str) -> Path:
        """The path of a file that is what the manifest says it is."""
        path = self.path / name
        if damage := changed(path, self.manifest.files.get(name, "")):
            raise ValueError(f"{path} {damage}: copy the whole store again")
        return path

    def _array(self, name: str, kind: type[np.generic], least: int = 0, most: int = 2**63 - 1) -> np.ndarray:
        array = read_array(self._checked(name), kind)
        if len(array) != self.manifest.documents:
            raise ValueError(
                f"{self.path / name} is of {len(array)} documents, the store of {self.manifest.documents}: "
                "copy the whole store again"
            )
        if not ((least <= array) & (array <= most)).all():  # NaN is neither
            raise ValueError(f"{self.path / name} holds numbers that are not from {least} to {most}: prepare it again")
        return array

    def tokens(self, documents: Sequence[int]) -> list[np.ndarray]:
        """The ids of each of these documents, int32 [L], special tokens included."""
        return [self._document(d) for d in documents]

    def _document(self, document: int) -> np.ndarray:
        dtype = np.dtype(self.manifest.dtype).newbyteorder("<")
        try:
            token_L = np.frombuffer(self._source[document], dtype)
        except Exception as error:  # array_record raises of many kinds for damaged bytes
            raise ValueError(self._damage(document, reason(error))) from error
        if len(token_L) != (length := self.length_N[document]):
            raise ValueError(
                self._damage(
                    document, f"it has {len(token_L)} tokens, length_N.npy says {length}: it is of another store"
                )
            )
        if zlib.crc32(token_L.data) != self.crc32_N[document]:
            raise ValueError(self._damage(document, "its ids have changed since they were written"))
        if token_L.max() >= self.manifest.vocab_size:
            raise ValueError(self._damage(document, f"id {token_L.max()} is beyond the vocabulary"))
        return token_L.astype(np.int32)

    def _damage(self, document: int, why: str) -> str:
        ends = np.cumsum([shard.documents for shard in self.manifest.shards])
        shard = self.manifest.shards[int(np.searchsorted(ends, document, "right"))]
        return f"{self.path / shard.file} is damaged at document {document} ({why}): copy the whole store again"

    def origins(self, documents: Sequence[int]) -> list[str]:
        """Where each of these documents stands in the input, as FILE:ROW, rows counted from 1."""
        files, row_N = self.files().files, self._array("row_N.npy", np.integer)
        file_N = self._array("file_N.npy", np.integer, 0, len(files) - 1)
        return [f"{files[file_N[d]].name}:{row_N[d]}" for d in documents]

    @property
    def source_N(self) -> np.ndarray:
        """The number of each document's source."""
        source_F = np.array([file.source for file in self.files().files])
        if not ((0 <= source_F) & (source_F < len(self.manifest.sources))).all():
            raise ValueError(f"{self.path / 'files.json'} names sources that the manifest does not: prepare it again")
        return source_F[self._array("file_N.npy", np.integer, 0, len(source_F) - 1)]

    def files(self) -> Files:
        """The files that the store was made from, and those that it was not."""
        path = self._checked("files.json")
        return typed(Files, read_json(path), str(path))

    def verify(self) -> None:
        """Read every file, those of the held-out store too, and compare hashes. ValueError names one that changed."""
        for _, damage in faults(self.path):
            if damage:
                raise ValueError(damage)


def faults(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """What is wrong with each file of a store, and of its held-out store, read to its end; None: nothing is."""
    try:
        manifest = Manifest.read(folder)
    except (ValueError, OSError) as error:
        yield folder / MANIFEST, reason(error)
        return
    yield folder / MANIFEST, None
    whole = True
    for name, known in manifest.files.items():
        damage = changed(folder / name, known)
        whole &= damage is None
        yield folder / name, damage and f"{folder / name} {damage}: copy the whole store again"
    if whole:
        try:
            Store(folder)
        except (ValueError, OSError) as error:  # a file too many, or counts that contradict each other
            yield folder, reason(error)
    if (folder / "held_out").exists():
        yield from faults(folder / "held_out")


def file_hashes(folder: Path) -> dict[str, str]:
    """The sha256 of each file of FILES and of the tokenizer in a folder, as a manifest holds them."""
    kept = {name: sha256(folder / name) for name in FILES if (folder / name).is_file()}
    return kept | _tokenizer_hashes(folder)


def _tokenizer_hashes(folder: Path) -> dict[str, str]:
    return {f"{TOKENIZER}/{name}": value for name, value in folder_hashes(folder / TOKENIZER).items()}


def _open_shards(folder: Path, shards: Sequence[Shard]) -> Any:
    import grain  # here, for it imports jax: the processes that write stores need neither

    # ArrayRecord may open a cut file without complaint and find 0 records: the counts tell.
    for shard in shards:
        try:
            source: Any = grain.sources.ArrayRecordDataSource(str(folder / shard.file))
            documents = len(source)
        except Exception:  # array_record raises of many kinds for damaged bytes
            documents = 0
        if documents != shard.documents:
            raise ValueError(
                f"{folder / shard.file} holds {documents} documents instead of {shard.documents}: "
                "the file is damaged, copy the store again"
            )
    return grain.sources.ArrayRecordDataSource([str(folder / shard.file) for shard in shards])


def write_shard(path: Path, documents: Iterable[np.ndarray]) -> Shard:
    """Write documents (ids [L], little-endian) as one file of a store; OSError when the disk is full."""
    count = tokens = 0
    with written(path) as partial:
        records = ArrayRecordWriter(str(partial), "group_size:1")
        for token_L in documents:
            records.write(token_L.tobytes())
            count += 1
            tokens += len(token_L)
        try:
            records.close()  # a full disk is told here, not by write()
        except RuntimeError as error:
            raise OSError(f"cannot write {path}: {reason(error)}") from None
        return Shard(path.name, sha256(partial), count, tokens)
