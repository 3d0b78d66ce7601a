"""Text in, token store out: done once, offline, nothing truncated and nothing lost silently.

A token store is a folder: `manifest.json` (what it is made of), `tokens-*.array_record` (one record
per document: the little-endian bytes of its ids), `length_N.npy` (tokens per document, in the same
order) and `tokenizer/` (the tokenizer that made it). It appears whole and at once, or not at all.

N documents, L tokens of one document.
"""

import array
import codecs
import dataclasses
import gzip
import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import grain
import huggingface_hub
import numpy as np
import tokenizers
import zstandard
from array_record.python.array_record_module import ArrayRecordWriter

from cptjax.files import TOKENIZER_FILES, copy_tokenizer, sha256, write_json

STORE_VERSION = 1
SHARD_BYTES = 256 * 2**20  # ids per shard file before a new one is begun
BATCH_BYTES = 2**20  # text given to the tokenizer at once: it spreads a batch over its threads
CHUNK_BYTES = 2**20  # compressed bytes read at once

# How each role is called in tokenizer_config.json, then how its token is usually written.
ROLES = {
    "bos": (("bos_token", "cls_token"), ("[CLS]", "<s>", "<bos>", "[BOS]")),
    "eos": (
        ("eos_token", "sep_token"),
        ("[SEP]", "</s>", "<eos>", "[EOS]", "<|endoftext|>", "<|end_of_text|>"),
    ),
    "pad": (("pad_token",), ("[PAD]", "<pad>", "<|padding|>")),
    "mask": (("mask_token",), ("[MASK]", "<mask>")),
    "unk": (("unk_token",), ("[UNK]", "<unk>")),
}


@dataclass(frozen=True)
class Source:
    """A file or directory the user named. `sha256` covers names and bytes of all its files."""

    name: str
    sha256: str
    files: int
    documents: int
    text_bytes: int


@dataclass(frozen=True)
class Shard:
    """One ArrayRecord file of a store."""

    file: str
    sha256: str
    documents: int
    tokens: int


@dataclass(frozen=True)
class Manifest:
    """What a token store holds and what it was made from.

    Every document ends with `eos_token_id`, and begins with `bos_token_id` unless that is None.
    `vocab_size` is the largest id of the tokenizer + 1. `text_bytes` are UTF-8 bytes of kept text.
    `dropped` counts documents without text ("empty") and files of other kinds met in a source
    directory ("other_files"). `sources` and `dropped` are of the whole run: a store and its
    held-out store share them.
    """

    version: int
    documents: int
    tokens: int
    text_bytes: int
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
    shards: tuple[Shard, ...]

    @property
    def fingerprint(self) -> str:
        """Names the content: equal for equal tokens made by an equal tokenizer. Hexadecimal."""
        parts = [self.tokenizer_sha256, *(shard.sha256 for shard in self.shards)]
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
        self.length_N: np.ndarray = np.load(self.path / "length_N.npy", allow_pickle=False)
        totals = (len(self.length_N), int(self.length_N.sum()))
        if totals != (self.manifest.documents, self.manifest.tokens):
            raise ValueError(
                f"{self.path / 'length_N.npy'} counts {totals[0]} documents and {totals[1]} "
                f"tokens, the manifest {self.manifest.documents} and {self.manifest.tokens}: "
                "copy the whole store again"
            )
        self._source = _open_shards(self.path, self.manifest.shards)

    def tokens(self, documents: Sequence[int]) -> list[np.ndarray]:
        """The ids of each of these documents, int32 [L], special tokens included."""
        dtype = np.dtype(self.manifest.dtype).newbyteorder("<")
        return [np.frombuffer(self._source[d], dtype).astype(np.int32) for d in documents]


def _open_shards(folder: Path, shards: Sequence[Shard]) -> grain.sources.ArrayRecordDataSource:
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


# ---- the tokenizer


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of a tokenizer's special tokens by role (None: it has none), and all of them, sorted."""

    bos: int | None
    eos: int | None
    pad: int | None
    mask: int | None
    unk: int | None
    all: tuple[int, ...]


def tokenizer_folder(path_or_id: Path | str) -> Path:
    """The folder holding `tokenizer.json`: a local one, or one fetched from the Hugging Face Hub.

    ValueError when it cannot be had.
    """
    folder = Path(path_or_id)
    if not folder.exists():
        name = str(path_or_id)
        if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
            raise ValueError(f"tokenizer folder {name} does not exist")
        try:
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=list(TOKENIZER_FILES)))
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"tokenizer {name} is no local folder and cannot be fetched from the Hugging Face Hub ({reason})"
            ) from None
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"{path_or_id} holds no tokenizer.json: a folder with the file of the Hugging Face "
            "`tokenizers` library is needed"
        )
    return folder


def load_tokenizer(path_or_id: Path | str) -> tokenizers.Tokenizer:
    """The tokenizer of a folder or Hub id; it never truncates or pads. ValueError if unreadable.

    In text given to it "[MASK]" is the mask token; `prepare` turns that off for corpus text.
    """
    path = tokenizer_folder(path_or_id) / "tokenizer.json"
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 (the library raises the bare class)
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path} is not a tokenizer ({reason})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def special_tokens(folder: Path | str, tokenizer: tokenizers.Tokenizer) -> SpecialTokens:
    """Special tokens as the folder's JSON files name them, else under their usual names."""
    named: dict[str, Any] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        path = Path(folder) / file
        if path.is_file():
            try:
                named |= json.loads(path.read_bytes())
            except (ValueError, TypeError):
                raise ValueError(f"{path} is not a JSON object") from None
    ids: dict[str, int | None] = {}
    for role, (keys, usual) in ROLES.items():
        values = [named.get(key) for key in keys]
        written = [value["content"] if isinstance(value, dict) else value for value in values]
        found = [tokenizer.token_to_id(token) for token in (*written, *usual) if token]
        ids[role] = next((i for i in found if i is not None), None)
    added = tokenizer.get_added_tokens_decoder().items()
    every = {i for i, token in added if token.special} | {i for i in ids.values() if i is not None}
    return SpecialTokens(**ids, all=tuple(sorted(every)))


class _Encoder:
    """Text to ids, with what the tokenizer puts around a document; always ends with `eos`."""

    def __init__(self, folder: Path):
        self.tokenizer = load_tokenizer(folder)
        self.tokenizer.encode_special_tokens = True  # "[MASK]" in a user's text stays text
        self.special = special_tokens(folder, self.tokenizer)
        self.vocab_size = max(self.tokenizer.get_vocab().values()) + 1
        self.dtype = "uint16" if self.vocab_size <= 2**16 else "uint32"
        probe = self.tokenizer.encode("a")
        self.bos = probe.ids[0] if probe.ids and probe.special_tokens_mask[0] else None
        self.suffix: list[int] = []
        if self.tokenizer.encode("").ids and probe.special_tokens_mask[-1]:
            self.eos = probe.ids[-1]
        elif self.special.eos is not None:
            self.eos = self.special.eos
            self.suffix = [self.eos]
        else:
            raise ValueError(
                f"the tokenizer of {folder} ends no document and names no eos_token or sep_token: "
                "add one to tokenizer_config.json"
            )

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        little_endian = np.dtype(self.dtype).newbyteorder("<")
        encodings = self.tokenizer.encode_batch_fast(texts)
        return [np.array(encoding.ids + self.suffix, little_endian) for encoding in encodings]

    def write(self, source: Path, target: Path) -> None:
        """Copy the tokenizer, adding the tokenizer_config.json that AutoTokenizer wants."""
        copy_tokenizer(source, target)
        if not (target / "tokenizer_config.json").is_file():
            tokens = {
                key: self.tokenizer.id_to_token(getattr(self.special, role))
                for role, (keys, _) in ROLES.items()
                for key in keys
                if getattr(self.special, role) is not None
            }
            write_json(
                target / "tokenizer_config.json",
                {
                    "tokenizer_class": "PreTrainedTokenizerFast",
                    "model_input_names": ["input_ids", "attention_mask"],
                    **tokens,
                },
            )


# ---- reading text: one function per kind of file


@dataclass(frozen=True)
class Reading:
    """How text files are read: see `prepare`."""

    text_field: str = "text"
    errors: Literal["strict", "replace"] = "strict"
    txt_documents: Literal["file", "paragraph"] = "file"


def _decode(data: bytes, offset: int, path: Path, reading: Reading) -> str:
    try:
        return data.decode("utf-8", reading.errors)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 at byte {offset + error.start} "
            f"(0x{data[error.start]:02x}): convert it, or give --errors replace"
        ) from None


def _lines(stream: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Lines with their byte offsets, split on newline bytes only, without a byte order mark."""
    offset = 0
    for line in stream:
        mark = len(codecs.BOM_UTF8) if offset == 0 and line.startswith(codecs.BOM_UTF8) else 0
        yield offset + mark, line[mark:]
        offset += len(line)


def _read_txt(path: Path, reading: Reading) -> Iterator[str]:
    with open(path, "rb") as stream:
        if reading.txt_documents == "file":
            data = stream.read()
            mark = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
            yield _decode(data[mark:], mark, path, reading)
            return
        paragraph = bytearray()
        start = 0
        for offset, line in _lines(stream):
            if line.strip():
                start = start if paragraph else offset
                paragraph += line
            elif paragraph:
                yield _decode(bytes(paragraph), start, path, reading).rstrip("\r\n")
                paragraph.clear()
        if paragraph:
            yield _decode(bytes(paragraph), start, path, reading).rstrip("\r\n")


def _read_jsonl(path: Path, stream: Iterable[bytes], reading: Reading) -> Iterator[str]:
    for number, (offset, line) in enumerate(_lines(stream), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(_decode(line, offset, path, reading))
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is not JSON ({error.msg}): one object a line") from None
        except RecursionError:
            raise ValueError(f"{where} is not JSON this deep: one flat object a line") from None
        if not isinstance(row, dict):
            raise ValueError(  # noqa: TRY004 (the file is wrong, not the call)
                f"{where} is not a JSON object: one object a line is needed"
            )
        if reading.text_field not in row:
            raise ValueError(
                f"{where} has no field {reading.text_field!r}: it has {', '.join(row) or 'none'}; "
                "name yours with --text-field"
            )
        text = row[reading.text_field]
        if not isinstance(text, str):
            raise ValueError(  # noqa: TRY004
                f"{where} field {reading.text_field!r} is {type(text).__name__}, not a string"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            if reading.errors == "strict":
                raise ValueError(
                    f"{where} holds half a surrogate pair at character {error.start} of "
                    f"{reading.text_field!r}: correct it, or give --errors replace"
                ) from None
            text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        yield text


def _read_plain_jsonl(path: Path, reading: Reading) -> Iterator[str]:
    with open(path, "rb") as stream:
        yield from _read_jsonl(path, stream, reading)


def _read_gz_jsonl(path: Path, reading: Reading) -> Iterator[str]:
    with gzip.open(path, "rb") as stream:
        try:
            yield from _read_jsonl(path, stream, reading)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is cut or damaged ({error}): get it again") from None


class _ZstStream:
    """Lines of a zst file. The library's own reader takes a cut file for a finished one."""

    def __init__(self, stream: IO[bytes]):
        self.stream = stream

    def __iter__(self) -> Iterator[bytes]:
        tail: list[bytes] = []
        for data in self._chunks():
            *ended, rest = data.split(b"\n")
            for line in ended:
                yield b"".join((*tail, line, b"\n"))
                tail.clear()
            tail.append(rest)
        if any(tail):
            yield b"".join(tail)

    def _chunks(self) -> Iterator[bytes]:
        frame = None
        while data := self.stream.read(CHUNK_BYTES):
            while data:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(data)
                data = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
        if frame is not None:
            raise EOFError("it ends inside a frame")


def _read_zst_jsonl(path: Path, reading: Reading) -> Iterator[str]:
    with open(path, "rb") as stream:
        try:
            yield from _read_jsonl(path, _ZstStream(stream), reading)
        except (EOFError, zstandard.ZstdError) as error:
            raise ValueError(f"{path} is cut or damaged ({error}): get it again") from None


READERS: dict[str, Callable[[Path, Reading], Iterator[str]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_plain_jsonl,
    ".jsonl.gz": _read_gz_jsonl,
    ".jsonl.zst": _read_zst_jsonl,
}


def _suffix(path: Path) -> str | None:
    """The suffix in READERS that says how to read this file, None for a file of another kind."""
    return next((suffix for suffix in READERS if path.name.lower().endswith(suffix)), None)


def _read(path: Path, reading: Reading) -> Iterator[str]:
    suffix = _suffix(path)
    if suffix is None:
        raise ValueError(f"{path} has an unknown suffix: known are {', '.join(READERS)}")
    return READERS[suffix](path, reading)


def _files(source: Path, out: Path) -> tuple[list[Path], int]:
    """The files to read of one source, sorted, and how many others a directory holds."""
    if not source.exists():
        raise FileNotFoundError(f"source {source} does not exist")
    if not source.is_dir():
        if _suffix(source) is None:
            raise ValueError(f"{source} has an unknown suffix: known are {', '.join(READERS)}")
        return [source], 0
    inside = [path for path in sorted(source.rglob("*")) if path.is_file()]
    inside = [path for path in inside if not path.resolve().is_relative_to(out.resolve())]
    files = [path for path in inside if _suffix(path)]
    if not files:
        raise ValueError(f"{source} holds no files of a known kind ({', '.join(READERS)})")
    return files, len(inside) - len(files)


def read_documents(source: Path, reading: Reading) -> Iterator[str]:
    """Every document of a file or directory, in order, empty ones too.

    ValueError or FileNotFoundError for what `prepare` refuses.
    """
    for path in _files(source, out=source / "nothing")[0]:
        yield from _read(path, reading)


# ---- writing a store


class _Writer:
    """Writes the documents of one store into a folder that exists."""

    def __init__(self, folder: Path, dtype: str):
        self.folder = folder
        self.itemsize = np.dtype(dtype).itemsize
        self.length_N = array.array("q")
        self.text_bytes = 0
        self.shards: list[Shard] = []
        self._open()

    def _open(self) -> None:
        self.file = f"tokens-{len(self.shards):05d}.array_record"
        self.first = len(self.length_N)
        self.tokens = 0
        self.records = ArrayRecordWriter(str(self.folder / self.file), "group_size:1")

    def add(self, token_L: np.ndarray, text_bytes: int) -> None:
        if self.tokens * self.itemsize >= SHARD_BYTES:
            self._close_shard()
            self._open()
        self.records.write(token_L.tobytes())
        self.length_N.append(len(token_L))
        self.text_bytes += text_bytes
        self.tokens += len(token_L)

    def _close_shard(self) -> None:
        try:
            self.records.close()  # a full disk is told here, not by write()
        except RuntimeError as error:
            raise OSError(f"cannot write {self.file}: {str(error).splitlines()[0]}") from None
        documents = len(self.length_N) - self.first
        self.shards.append(Shard(self.file, sha256(self.folder / self.file), documents, self.tokens))

    def finish(self) -> None:
        self._close_shard()
        np.save(self.folder / "length_N.npy", np.array(self.length_N, np.int64))


def _is_held_out(text: str, share: float) -> bool:
    # By content: a document's copies stay together, and it never changes sides between corpora.
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
    return number < share * 2**64


def prepare(
    sources: Sequence[Path | str],
    tokenizer: Path | str,
    out: Path | str,
    *,
    text_field: str = "text",
    errors: Literal["strict", "replace"] = "strict",
    txt_documents: Literal["file", "paragraph"] = "file",
    held_out: float = 0.0,
    overwrite: bool = False,
) -> Manifest:
    """Tokenise files and directories of text into a token store; returns its manifest.

    `sources`: .txt (one document a file, or paragraphs between blank lines), .jsonl, .jsonl.gz and
    .jsonl.zst (the text is in `text_field`); directories are searched recursively. `tokenizer`: a
    folder with tokenizer.json, or a Hugging Face Hub id. `errors`: how bytes that are not
    UTF-8 are met, refused or replaced by U+FFFD.
    `held_out`: share of documents, in [0, 1), that go to a second store, OUT/held_out.
    `overwrite`: replace the store at `out`, once the new one is complete.

    ValueError or FileNotFoundError, one line, when a source, the tokenizer or `out` will not do;
    OSError when it cannot be written. Nothing is left at `out` then, or what was there before.
    """
    out = Path(out)
    reading = Reading(text_field, errors, txt_documents)
    _check_arguments(sources, reading, out, held_out, overwrite)
    files_of = {Path(source): _files(Path(source), out) for source in sources}
    folder = tokenizer_folder(tokenizer)
    encoder = _Encoder(folder)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    try:
        temporary.mkdir(parents=True)
        manifest = _write_stores(files_of, encoder, folder, temporary, reading, held_out)
        if out.exists():
            out.rename(old)
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return manifest


def _check_arguments(
    sources: Sequence[Path | str], reading: Reading, out: Path, held_out: float, overwrite: bool
) -> None:
    if not sources:
        raise ValueError("no source is given: name at least one file or directory")
    if reading.errors not in ("strict", "replace"):
        raise ValueError(f"errors is {reading.errors!r}: it is strict or replace")
    if reading.txt_documents not in ("file", "paragraph"):
        raise ValueError(f"txt_documents is {reading.txt_documents!r}: it is file or paragraph")
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out is {held_out}: it is a share from 0 to below 1")
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists already: choose another folder, or give --overwrite")
    if out.exists() and not (out / "manifest.json").is_file():
        raise ValueError(f"{out} is not a token store and will not be overwritten: remove it first")


def _write_stores(
    files_of: dict[Path, tuple[list[Path], int]],
    encoder: _Encoder,
    tokenizer: Path,
    folder: Path,
    reading: Reading,
    held_out: float,
) -> Manifest:
    """Write the store, and the held-out one inside it if asked for; the manifest of the first."""
    folders = {False: folder} | ({True: folder / "held_out"} if held_out else {})
    for side in folders.values():
        side.mkdir(exist_ok=True)
    writers = {held: _Writer(side, encoder.dtype) for held, side in folders.items()}
    empty = 0
    records = []
    batch: list[str] = []

    def flush() -> None:
        for text, token_L in zip(batch, encoder.encode(batch), strict=True):
            writers[_is_held_out(text, held_out)].add(token_L, len(text.encode()))
        batch.clear()

    for source, (files, _) in files_of.items():
        digest = hashlib.sha256()
        documents = text_bytes = pending = 0
        for path in files:
            name = path.relative_to(source) if source.is_dir() else path.name
            digest.update(f"{name}\n{sha256(path)}\n".encode())
            for text in _read(path, reading):
                if not text.strip():
                    empty += 1
                    continue
                batch.append(text)
                documents += 1
                text_bytes += len(text.encode())
                pending += len(text.encode())
                if pending >= BATCH_BYTES:
                    flush()
                    pending = 0
        flush()
        if not documents:
            raise ValueError(f"{source} holds no text")
        records.append(Source(source.resolve().name, digest.hexdigest(), len(files), documents, text_bytes))
    manifests = {}
    for held, writer in writers.items():
        if not writer.length_N:
            side = "no document is held out" if held else "every document is held out"
            raise ValueError(f"{side} at held_out {held_out}: change the share or add documents")
        writer.finish()
        encoder.write(tokenizer, folders[held] / "tokenizer")
        manifests[held] = Manifest(
            version=STORE_VERSION,
            documents=len(writer.length_N),
            tokens=sum(writer.length_N),
            text_bytes=writer.text_bytes,
            dtype=encoder.dtype,
            vocab_size=encoder.vocab_size,
            tokenizer_sha256=sha256(tokenizer / "tokenizer.json"),
            bos_token_id=encoder.bos,
            eos_token_id=encoder.eos,
            pad_token_id=encoder.special.pad,
            mask_token_id=encoder.special.mask,
            special_token_ids=encoder.special.all,
            sources=tuple(records),
            dropped={"empty": empty, "other_files": sum(others for _, others in files_of.values())},
            shards=tuple(writer.shards),
        )
        write_json(folders[held] / "manifest.json", dataclasses.asdict(manifests[held]))
    return manifests[False]
