"""Chunks of files to parts: the work of `corpus.prepare` that any process can do, in any order.

A part is one .npz: the ids of the documents of a chunk, facts about each of them, and the rows that are left out.
It is named by what decides its content, so that it is found again wherever its files then stand among the others.

D documents of a part, N documents of all parts, L tokens and W words of one document.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import shutil
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cptjax.command.errors import reading
from cptjax.corpus import pieces, sources
from cptjax.corpus.cleaning import Cleaning, Evaluation, hash_text, hash_words, signature
from cptjax.corpus.pieces import Bad, File, Piece, Reading
from cptjax.corpus.repetitions import Column
from cptjax.corpus.sources import Document
from cptjax.data.tokenizer import Encoder
from cptjax.files import read_json, write_json, written

BATCH_BYTES = 2**20  # text given to the tokenizer at once
BLOCK = 2**18  # documents whose facts are read at once
DROPPED, TRAIN, HELD_OUT = 0, 1, 2  # sides of a document
EMPTY, BAD = "empty", "bad row"  # reasons to leave a row out
NO_ID = bytes(16)
FACTS = {  # types of the facts of a document, where they are not int64
    "side": np.int8,
    "place": np.int32,
    "weight": np.float32,
    "written_specials": np.int32,
    "crc32": np.uint32,
    "digest": np.uint64,
    "id": np.uint64,
    "contaminated_by": np.int32,
    "signature": np.uint32,
}


@dataclass(frozen=True)
class Job:
    """What a store is made with; `key` names all that decides the documents, but the text."""

    work: Path
    reading: Reading
    cleaning: Cleaning
    held_out: float
    on_error: Literal["stop", "skip"]
    count_fields: tuple[str, ...]
    key: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """The options that decide the content, as they stand in the manifest."""
        conditions = [str(condition) for condition in self.cleaning.keep_if]
        return {
            **dataclasses.asdict(self.reading),
            **dataclasses.asdict(self.cleaning),
            "keep_if": conditions,
            "held_out": self.held_out,
            "count_fields": self.count_fields,
        }


@dataclass(frozen=True)
class Unit:
    """Files cut into chunks together, one large file or small ones in a row, each with the number of its source.

    Once cut, it has a record in the work folder: the digests of its files, and the keys of its parts in order.
    """

    number: int
    files: tuple[tuple[int, File], ...]

    @property
    def size(self) -> int:
        """About its bytes."""
        return sum(file.size for _, file in self.files)


@dataclass(frozen=True)
class Chunk:
    """What one part is made of: pieces of a unit's files, each with the number of the file in the unit."""

    unit: Unit
    key: str  # of all that decides the part
    pieces: tuple[tuple[int, Piece | Bad], ...]

    @property
    def size(self) -> int:
        """About its bytes, unpacked."""
        return sum(piece.size for _, piece in self.pieces if isinstance(piece, Piece))


def chunks(job: Job, unit: Unit) -> Iterator[Chunk]:
    """The chunks of a unit that are not done yet. ValueError when a file of it was written to meanwhile."""
    before = [_stat(file) for _, file in unit.files]
    digests = [_digest(file) for _, file in unit.files]
    content = [(digest, file.format, file.split) for digest, (_, file) in zip(digests, unit.files, strict=True)]
    pending: list[tuple[int, Piece | Bad]] = []
    keys: list[str] = []
    size = 0
    record = {"digests": {_address(f): digest for (_, f), digest in zip(unit.files, digests, strict=True)}}
    write_json(_unit_path(job, unit), record)  # so that a change is noticed even if this is interrupted

    def undone() -> Iterator[Chunk]:
        key = hashlib.sha256(f"{job.key}\n{content}\n{len(keys)}".encode()).hexdigest()
        keys.append(key)
        meta = _known_meta(part_path(job, key))
        skipped = meta and any(drop["why"] == BAD for drop in meta["dropped"])
        if not meta or (skipped and job.on_error == "stop"):
            yield Chunk(unit, key, tuple(pending))

    for index, (_, file) in enumerate(unit.files):
        for piece in sources.pieces(file, job.reading):
            added = 0 if isinstance(piece, Bad) else piece.size
            if pending and size + added > pieces.PIECE_BYTES:
                yield from undone()
                pending.clear()
                size = 0
            pending.append((index, piece))
            size += added
    yield from undone()
    for (_, file), seen in zip(unit.files, before, strict=True):
        if _stat(file) != seen:
            raise ValueError(f"{file.name} was written to while it was read: wait for its end, then begin again")
    write_json(_unit_path(job, unit), {**record, "parts": keys})


def _address(file: File) -> str:
    return f"{file.path}@{file.split}"


def _digest(file: File) -> str:
    try:
        return sources.digest(file)
    except OSError:
        return "unreadable"  # a Bad piece says why


def _stat(file: File) -> tuple[int, int] | None:
    path = Path(file.path)
    stat = path.stat() if path.is_file() else None
    return stat and (stat.st_size, stat.st_mtime_ns)


def _unit_path(job: Job, unit: Unit) -> Path:
    return job.work / "units" / f"{unit.number:06d}.json"


def known_digests(job: Job) -> dict[str, str]:
    """The digests of the files that have been cut so far, by the address of each."""
    known = {}
    for path in (job.work / "units").glob("*.json"):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # cut by a loss of power
            known |= read_json(path)["digests"]
    return known


def part_path(job: Job, key: str) -> Path:
    """Where the part of that key lies."""
    return job.work / "parts" / key[:2] / f"{key}.npz"


def read_meta(part: Path) -> dict[str, Any]:
    """What a part says of itself: the rows it left out, and the counted fields of each document."""
    with np.load(part, allow_pickle=False) as arrays:
        return json.loads(arrays["meta"].tobytes())


def _known_meta(part: Path) -> dict[str, Any] | None:
    """What a part says of itself, None where it is not there or not whole."""
    try:
        with np.load(part, allow_pickle=False) as arrays:
            whole = {name: arrays[name] for name in arrays}  # the sums that zip keeps are compared
            return json.loads(whole["meta"].tobytes())
    except Exception:  # cut by a loss of power, or damaged: zip, zlib and numpy raise of many kinds
        return None


@functools.lru_cache(1)
def _encoder(job: Job) -> Encoder:
    return Encoder(job.work / "tokenizer")


@functools.lru_cache(1)
def _evaluation(job: Job) -> Evaluation | None:
    if not job.cleaning.evaluation:
        return None
    arrays = (np.load(job.work / "evaluation" / f"{name}_G.npy", mmap_mode="r") for name in ("ngram", "file"))
    return Evaluation(*arrays, files=(), texts=0, short=0)


def make_part(job: Job, chunk: Chunk) -> None:
    """Read, filter and tokenise a chunk, and write its part. ValueError for a row that cannot be read."""
    made = _Part(job, chunk)
    for index, piece in chunk.pieces:
        for row in _rows(job, chunk.unit.files[index][1], piece):
            made.add(index, row)
    made.flush()
    made.write()


def _rows(job: Job, file: File, piece: Piece | Bad) -> Iterator[Document | Bad]:
    with reading(file.name):  # reading alone: what is tokenised meanwhile may be of the files before it
        yield from [piece] if isinstance(piece, Bad) else sources.documents(file, piece, job.reading)


class _Part:
    """The documents of a chunk that stay, as ids and facts, and the rows that do not."""

    def __init__(self, job: Job, chunk: Chunk):
        self.job, self.chunk = job, chunk
        self.ids: list[np.ndarray] = []
        self.facts: defaultdict[str, list] = defaultdict(list)
        self.values: dict[str, list[str]] = {field: [] for field in job.count_fields}
        self.dropped: list[dict[str, Any]] = []
        self.asked: dict[str, bool] = dict.fromkeys((c.field for c in job.cleaning.keep_if), False)  # has one a value?
        self.waiting: list[tuple[int, Document, float]] = []
        self.waiting_bytes = 0

    def drop(self, file: int, row: int, why: str, **more: str) -> None:
        self.dropped.append({"file": file, "row": row, "why": why, **more})

    def add(self, file: int, row: Document | Bad) -> None:
        if isinstance(row, Document):
            try:
                why, weight = self.judge(row)
            except ValueError as error:
                row = Bad(row.row, f"{self.chunk.unit.files[file][1].name}:{row.row}: {error}")
        if isinstance(row, Bad):
            if self.job.on_error == "stop":
                raise ValueError(row.message)
            self.drop(file, row.row, BAD, message=row.message)
        elif why:
            self.drop(file, row.row, why)
        else:
            self.waiting.append((file, row, weight))
            self.waiting_bytes += len(row.text)
            if self.waiting_bytes >= BATCH_BYTES:
                self.flush()

    def judge(self, document: Document) -> tuple[str, float]:
        """Why a document is left out, "" when it is not, and its weight."""
        if not document.text.strip():
            return EMPTY, 0
        cleaning = self.job.cleaning
        for name in self.asked:
            self.asked[name] |= document.fields[name] is not None
        for condition in cleaning.keep_if:
            if not condition.holds(document.fields[condition.field]):
                return str(condition), 0
        weight = 1.0 if document.weight is None else cleaning.weight(document.weight)
        return ("" if weight else "weight 0"), weight

    def flush(self) -> None:
        """Tokenise the documents that wait."""
        encoder, evaluation = _encoder(self.job), _evaluation(self.job)
        low, high = self.job.cleaning.min_tokens, self.job.cleaning.max_tokens
        names = dict.fromkeys(self.chunk.unit.files[file][1].name for file, _, _ in self.waiting)
        with reading(", ".join(names)):
            all_ids = encoder.encode([document.text for _, document, _ in self.waiting])
        for (file, document, weight), token_L in zip(self.waiting, all_ids, strict=True):
            if len(token_L) < low:
                self.drop(file, document.row, f"fewer than {low} tokens")
                continue
            if high is not None and len(token_L) > high:
                self.drop(file, document.row, f"more than {high} tokens")
                continue
            self.ids.append(token_L)
            facts = {
                "length": len(token_L),
                "crc32": zlib.crc32(token_L.tobytes()),
                "text_bytes": len(document.text.encode()),
                "words": len(document.text.split()),
                "unknown": int((token_L == encoder.special.unk).sum()),
                "written_specials": encoder.written_specials(document.text),
                "digest": np.frombuffer(hash_text(document.text), np.uint64),
                "side": HELD_OUT if _is_held_out(document.text, self.job.held_out) else TRAIN,
                "place": file,
                "row": document.row,
                "weight": weight,
            }
            if self.job.reading.id_field is not None:
                name = NO_ID if document.id is None else hash_text(document.id)
                facts["id"] = np.frombuffer(name, np.uint64)
            if evaluation is not None or self.job.cleaning.duplicates == "near":
                word_W = hash_words(document.text)
                if evaluation is not None:
                    facts["contaminated_by"] = evaluation.match(word_W)
                if self.job.cleaning.duplicates == "near":
                    facts["signature"] = signature(word_W)
            for name, fact in facts.items():
                self.facts[name].append(fact)
            for field, values in self.values.items():
                values.append(str(document.fields[field]))
        self.waiting.clear()
        self.waiting_bytes = 0

    def write(self) -> None:
        meta = {"dropped": self.dropped, "values": self.values, "asked": self.asked}
        arrays: dict[str, Any] = {name: np.array(x, FACTS.get(name, np.int64)) for name, x in self.facts.items()}
        arrays["ids"] = np.concatenate([np.zeros(0, _encoder(self.job).dtype), *self.ids])
        arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
        path = part_path(self.job, self.chunk.key)
        path.parent.mkdir(exist_ok=True)
        with written(path) as partial:
            np.savez(partial, **arrays)


def _is_held_out(text: str, share: float) -> bool:
    # By content: a document's copies stay together, and it never changes sides between corpora.
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
    return number < share * 2**64


class Parts:
    """The parts of a job in order, each read once: the facts of all their documents are columns on the disk."""

    def __init__(self, job: Job, units: Sequence[Unit]):
        self.files = [entry for unit in units for entry in unit.files]  # (source, file)
        self.digests: list[str] = []  # of the files
        self.paths: list[Path] = []
        self.first_file: list[int] = []  # of each part's unit
        self.dropped: Counter[str] = Counter()  # rows left out of the parts, by reason
        self.texts: Counter[int] = Counter()  # rows with text, by source
        self.first = [0]  # document of each part, and the end
        self._folder, self._columns = job.work / "facts", {}
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        keys: list[str] = []
        with contextlib.ExitStack() as held:
            opened = functools.cache(lambda name: held.enter_context((self._folder / name).open("wb")))
            for unit in units:
                record = read_json(_unit_path(job, unit))
                first_file = len(self.digests)
                for key in record["parts"]:
                    self._take(part_path(job, key), unit, first_file, opened)
                keys += record["parts"]
                self.digests += [record["digests"][_address(file)] for _, file in unit.files]
        self.key = hashlib.sha256("".join(keys).encode()).hexdigest()
        self.count = self.first[-1]
        self.blocks = [(start, min(start + BLOCK, self.count)) for start in range(0, self.count, BLOCK)]

    def _take(self, path: Path, unit: Unit, first_file: int, opened: Callable[[str], Any]) -> None:
        """Put the facts of a part behind those before it."""
        with np.load(path, allow_pickle=False) as arrays:
            facts = {name: arrays[name] for name in arrays if name not in ("ids", "meta")}
            meta = json.loads(arrays["meta"].tobytes())
        place_D = facts.pop("place", np.zeros(0, FACTS["place"]))
        for name, fact in (facts | {"file": first_file + place_D}).items() if len(place_D) else ():
            fact.tofile(opened(name))
            self._columns[name] = Column(self._folder / name, fact.dtype.str, fact.size // len(fact))
        self.paths.append(path)
        self.first_file.append(first_file)
        self.first.append(self.first[-1] + len(place_D))
        for drop in meta["dropped"]:
            self.dropped[drop["why"]] += 1
            self.texts[unit.files[drop["file"]][0]] += drop["why"] != EMPTY
        for (source, _), count in zip(unit.files, np.bincount(place_D, minlength=len(unit.files)), strict=True):
            self.texts[source] += int(count)

    def changed(self, known: dict[str, str]) -> list[str]:
        """The names of files whose digest is not the known one."""
        named = zip(self.files, self.digests, strict=True)
        return [file.name for (_, file), digest in named if known.get(_address(file), digest) != digest]

    def column(self, name: str) -> Column:
        """A fact of all documents; "file" is the number of a document's file."""
        return self._columns[name]

    def keep(self, name: str, fact_N: np.ndarray) -> Column:
        """What was found out of all documents, as a column."""
        fact_N.tofile(self._folder / name)
        return Column(self._folder / name, fact_N.dtype.str)

    def where(self, document: int) -> str:
        """FILE:ROW of a document."""
        file, row = (int(self.column(name).read((document, document + 1))[0]) for name in ("file", "row"))
        return f"{self.files[file][1].name}:{row}"
