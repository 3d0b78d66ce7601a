"""Text in, token store out: done once, offline, nothing truncated and nothing lost silently.

Three stages, so that the work can be interrupted, and spread over processes or machines:
1. Files are cut into chunks; each chunk is read, filtered and tokenised by itself, into a part:
   one .npz of ids and of facts about its documents.
2. The facts of all parts, in order, decide which documents stay.
3. The shards of the store are copied together from the parts.
Parts and shards lie in a work folder beside the store, `.NAME.work`, until the store is whole.

D documents of a part or of a block, N documents of all parts, L tokens of one document, G n-grams of words.
"""

import dataclasses
import errno
import functools
import hashlib
import itertools
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cptjax.command.escape import say
from cptjax.corpus import formats, pieces, pool, repetitions, sources
from cptjax.corpus.cleaning import Cleaning, Evaluation, read_evaluation
from cptjax.corpus.decide import CONTAMINATED, WHYS, Decision, decide, not_there
from cptjax.corpus.described import Description, describe, known_to_hub
from cptjax.corpus.parts import (
    DROPPED,
    EMPTY,
    FACTS,
    HELD_OUT,
    TRAIN,
    Job,
    Parts,
    Unit,
    chunks,
    known_digests,
    make_part,
    read_meta,
)
from cptjax.corpus.pieces import File, Reading
from cptjax.data.store import (
    SHARD_TOKENS,
    STORE_VERSION,
    Contamination,
    Described,
    LeftOut,
    Manifest,
    Shard,
    Source,
    file_hashes,
    sentences,
    write_shard,
)
from cptjax.data.tokenizer import Encoder, cautions, tokenizer_folder
from cptjax.files import (
    TOKENIZER_FILES,
    check_free,
    copy_tokenizer,
    locked,
    put_in_place,
    read_json,
    sha256,
    write_json,
)

MARKERS = ("manifest.json",)  # of a folder that may be replaced by a store
MOST_VALUES = 1000  # of a counted field: one with more is no class of documents

# How work is spread: engine(split, work, items) calls work(task) for every task of split(item), wherever it likes.
# By their `size`, where they have one, it may show how much is left.
Engine = Callable[[Callable[[Any], Iterator[Any]], Callable[[Any], None], Sequence[Any]], None]


def prepare(
    source: Sequence[Path | str],
    tokenizer: Path | str,
    out: Path | str,
    *,
    reading: Reading | None = None,
    cleaning: Cleaning | None = None,
    description: Description | None = None,
    held_out: float = 0.0,
    on_error: Literal["stop", "skip"] = "stop",
    count_fields: tuple[str, ...] = (),
    overwrite: bool = False,
    engine: Engine = pool.spread,
    group: repetitions.Group = repetitions.group,
) -> Manifest:
    """Tokenise text into a token store; returns its manifest.

    `source`: files, folders, patterns and data sets, as `sources.find` takes them. `tokenizer`: a folder
    with tokenizer.json, or a Hugging Face Hub id. `reading`, `cleaning`: which column is what, and
    which documents stay. `description`: what is said of the sources. `held_out`: share of documents, in [0, 1), that
    go to a second store, OUT/held_out. `on_error`: whether a row that cannot be read ends the work, or is left out,
    counted and listed. `count_fields`: columns by whose values documents and tokens are counted. `overwrite`:
    replace the store at `out`, once the new one is whole. `engine` does the work, `group` finds what repeats.

    The same call goes on with an interrupted one. ValueError, FileNotFoundError or FileExistsError, one line, when a
    source, the tokenizer or `out` will not do; OSError when it cannot be written. `out` is then absent
    or what it was before, and parts that are done wait in the work folder.
    """
    out = Path(out).absolute()
    reading, cleaning = reading or Reading(), cleaning or Cleaning()
    if not 0 <= held_out < 1:
        raise ValueError(f"--held-out is {held_out}: it is a share from 0 to below 1")
    if on_error not in ("stop", "skip"):
        raise ValueError(f"--on-error is {on_error!r}: it is stop or skip")
    if cleaning.weight_steps and reading.weight_field is None:
        raise ValueError("--weight-steps is for --weight-field: name the column that holds the scores")
    check_free(out, markers=MARKERS, overwrite=overwrite)
    wanted = (*reading.fields, *(condition.field for condition in cleaning.keep_if), *count_fields)
    reading = dataclasses.replace(reading, fields=tuple(dict.fromkeys(wanted)))
    job = Job(out.with_name(f".{out.name}.work"), reading, cleaning, held_out, on_error, count_fields)
    described, units, left_out = _units(source, description or Description(), (out, job.work))
    for sentence in sentences(left_out).values():
        say(sentence, stream=sys.stderr)
    folder = tokenizer_folder(tokenizer)
    encoder = Encoder(folder)
    for sentence in cautions(folder, encoder.tokenizer):
        say(sentence, stream=sys.stderr)
    evaluation = read_evaluation(cleaning.evaluation) if cleaning.evaluation else None
    job = dataclasses.replace(job, key=_key(job, folder, evaluation))
    with locked(job.work):
        try:
            check_free(out, markers=MARKERS, overwrite=overwrite)  # another prepare may just have made it
            _begin(job, folder, evaluation)
            known = known_digests(job)
            engine(functools.partial(chunks, job), functools.partial(make_part, job), units)
            parts = Parts(job, units)
            for name in parts.changed(known):
                say(f"{name} has changed since it was first read: it was read again", stream=sys.stderr)
            _finish(job, described, parts, left_out, encoder, evaluation, engine, group)
            put_in_place(job.work / "store", out)
            shutil.rmtree(job.work)
        except OSError as error:
            if error.errno == errno.ENOSPC and error.filename is None:  # most libraries do not say which disk it is
                error.filename = str(job.work)
            raise
        finally:  # what is done is kept for the next call; a call that did nothing leaves nothing
            if not any(job.work.glob("parts/*/*.npz")):
                shutil.rmtree(job.work, ignore_errors=True)
    return Manifest.read(out)


def _units(
    source: Sequence[Path | str], description: Description, avoid: tuple[Path, ...]
) -> tuple[list[Described], list[Unit], list[LeftOut]]:
    """Names of the sources and what is said of them, their files in order as units, and what they hold besides."""
    if not source:
        raise ValueError("no source is given: name at least one file or directory")
    described, files, left_out = describe(source, description), [], []
    for number, name in enumerate(map(str, source)):
        inputs, passed = sources.find(name, avoid)
        described[number] = known_to_hub(described[number], inputs[0])
        files += [(number, file) for file in inputs]
        left_out += passed
    groups: list[list[tuple[int, File]]] = []
    size = 0
    for entry in files:
        size += entry[1].size
        if not groups or size > pieces.PIECE_BYTES:
            groups.append([])
            size = entry[1].size
        groups[-1].append(entry)
    return described, [Unit(number, tuple(group)) for number, group in enumerate(groups)], left_out


def _key(job: Job, tokenizer: Path, evaluation: Evaluation | None) -> str:
    tokens = {name: sha256(tokenizer / name) for name in TOKENIZER_FILES if (tokenizer / name).is_file()}
    searched = None
    if evaluation is not None:
        ngrams = hashlib.sha256(evaluation.ngram_G.tobytes() + evaluation.file_G.tobytes()).hexdigest()
        searched = [ngrams, evaluation.files]
    decides = [STORE_VERSION, list(FACTS), formats.VERSION, pieces.PIECE_BYTES, tokens, searched, job.settings]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def _begin(job: Job, tokenizer: Path, evaluation: Evaluation | None) -> None:
    """Fill the work folder with what the workers need; parts of other settings are thrown away."""
    path = job.work / "job.json"
    try:
        begun = read_json(path)["key"] if path.exists() else job.key
    except (ValueError, KeyError):  # cut by a loss of power
        begun = None
    if begun != job.key:
        say(f"{job.work.name} was begun with other options or another tokenizer: it is begun anew", stream=sys.stderr)
        for folder in ("units", "parts", "shards"):
            shutil.rmtree(job.work / folder, ignore_errors=True)
    for folder in ("units", "parts", "shards", "tokenizer", "evaluation"):
        (job.work / folder).mkdir(exist_ok=True)
    copy_tokenizer(tokenizer, job.work / "tokenizer")
    if evaluation is not None:
        np.save(job.work / "evaluation" / "ngram_G.npy", evaluation.ngram_G)
        np.save(job.work / "evaluation" / "file_G.npy", evaluation.file_G)
    write_json(path, {"key": job.key})


# ---- shards copied together from parts, in any order, by any process


@dataclass(frozen=True)
class ShardTask:
    """A shard of one side: those of the documents first_document to last_document (excluded) that are on it."""

    side: int
    file: str
    first: int
    last: int
    key: str


def _folder(job: Job, side: int) -> Path:
    return job.work / "store" / "held_out" if side == HELD_OUT else job.work / "store"


def _shard(job: Job, task: ShardTask) -> Path:
    return job.work / "shards" / f"{task.side}-{task.file}"


def _shard_tasks(parts: Parts, side_N: np.ndarray, side: int, key: str) -> Iterator[ShardTask]:
    starts: list[int] = []
    before, shard = 0, -1
    for start, stop in parts.blocks:
        length_D = np.where(side_N[start:stop] == side, parts.column("length").read((start, stop)), 0)
        end_D = before + length_D.cumsum()
        shard_D = np.maximum(end_D - 1, 0) // SHARD_TOKENS  # by the last token of a document
        starts += (start + np.flatnonzero(np.diff(shard_D, prepend=shard))).tolist()
        before, shard = end_D[-1], shard_D[-1]
    for number, (first, last) in enumerate(zip(starts, [*starts[1:], parts.count], strict=True)):
        yield ShardTask(side, f"tokens-{number:05d}.array_record", first, last, key)


def _record(job: Job, task: ShardTask) -> Path:
    return _shard(job, task).with_suffix(".json")


def make_shard(job: Job, task: ShardTask) -> None:
    """Write a shard, and then, beside it in the work folder, what it holds; a shard that is done is left alone."""
    record, path = _record(job, task), _shard(job, task)
    if path.exists() and record.exists() and _is_made(path, record, task):
        return
    made = dataclasses.replace(write_shard(path, _copied(job, task)), file=task.file)
    write_json(record, {"key": task.key, "shard": dataclasses.asdict(made)})


def _is_made(path: Path, record: Path, task: ShardTask) -> bool:
    try:
        known = read_json(record)
        return known["key"] == task.key and known["shard"]["sha256"] == sha256(path)
    except (ValueError, KeyError, TypeError):  # cut by a loss of power
        return False


def _copied(job: Job, task: ShardTask) -> Iterator[np.ndarray]:
    side_N = np.load(job.work / "side_N.npy", mmap_mode="r")
    index = read_json(job.work / "parts.json")
    first = np.array(index["first"])
    for number in range(np.searchsorted(first, task.first, "right") - 1, np.searchsorted(first, task.last, "left")):
        start, stop = first[number], first[number + 1]
        wanted_D = np.array(side_N[start:stop]) == task.side
        wanted_D[: max(0, task.first - start)] = False
        wanted_D[max(0, task.last - start) :] = False
        if wanted_D.any():
            with np.load(job.work / index["paths"][number], allow_pickle=False) as arrays:
                ids, end_D = arrays["ids"], arrays["length"].cumsum()
            for d in np.flatnonzero(wanted_D):
                yield ids[end_D[d - 1] if d else 0 : end_D[d]]


def _finish(
    job: Job,
    described: Sequence[Described],
    parts: Parts,
    left_out: Sequence[LeftOut],
    encoder: Encoder,
    evaluation: Evaluation | None,
    engine: Engine,
    group: repetitions.Group,
) -> None:
    """Make the store, and the held-out one inside it if asked for, in the work folder."""
    for number, source in enumerate(described):
        if not parts.texts[number]:
            raise ValueError(f"{source.name} holds no text")
    decision = decide(job, parts, group) if parts.count else None
    sides = (TRAIN, HELD_OUT) if job.held_out else (TRAIN,)
    for side in sides:
        if decision is None or not (decision.side_N == side).any():
            raise ValueError(_nothing_left(job, parts, decision, side))
    assert decision is not None
    np.save(job.work / "side_N.npy", decision.side_N)
    paths = [str(path.relative_to(job.work)) for path in parts.paths]
    write_json(job.work / "parts.json", {"paths": paths, "first": parts.first})
    shared = _summary(job, described, parts, decision, left_out, evaluation)
    key = hashlib.sha256(decision.side_N.tobytes() + parts.key.encode()).hexdigest()
    tasks = {side: list(_shard_tasks(parts, decision.side_N, side, key)) for side in sides}
    engine(_itself, functools.partial(make_shard, job), [task for side in sides for task in tasks[side]])
    shutil.rmtree(job.work / "store", ignore_errors=True)  # of a call that was interrupted, perhaps with other options
    for side in sides:
        _folder(job, side).mkdir(parents=True)
        if side == TRAIN:
            (job.work / "dropped.jsonl").rename(job.work / "store" / "dropped.jsonl")
        shards = [Shard(**read_json(_record(job, task))["shard"]) for task in tasks[side]]
        _describe(job, side, parts, left_out, decision.side_N == side, encoder, shards, shared)
        for task in tasks[side]:
            _shard(job, task).rename(_folder(job, side) / task.file)


def _itself(task: Any) -> Iterator[Any]:
    yield task


def _nothing_left(job: Job, parts: Parts, decision: Decision | None, side: int) -> str:
    whys = parts.dropped + (Counter() if decision is None else _whys(decision))
    if decision is None or not decision.side_N.any():
        asked = [read_meta(path)["asked"] for path in parts.paths]
        for condition in job.cleaning.keep_if:
            if str(condition) in whys and not any(fields[condition.field] for fields in asked):
                return f"no row has a value of {not_there(job, parts, condition.field)}; correct --keep-if {condition}"
        conditions = {str(condition) for condition in job.cleaning.keep_if}
        left = (
            f"{count:,} {'do not meet' if why in conditions else 'dropped as'} {why}" for why, count in whys.items()
        )
        return f"no document is left: {', '.join(left)}"
    state = "no document is held out" if side == HELD_OUT else "every document is held out"
    return f"{state} at --held-out {job.held_out}: change the share or add documents"


def _whys(decision: Decision) -> Counter[str]:
    """How many documents were left out, by reason."""
    return Counter(dict(zip(WHYS[1:], np.bincount(decision.why_N, minlength=len(WHYS))[1:].tolist(), strict=True)))


def _summary(
    job: Job,
    described: Sequence[Described],
    parts: Parts,
    decision: Decision,
    left_out: Sequence[LeftOut],
    evaluation: Evaluation | None,
) -> dict[str, Any]:
    """The fields of the manifest that a store and its held-out store share; also writes dropped.jsonl."""
    kept_N = decision.side_N != DROPPED
    source_of = np.array([source for source, _ in parts.files])
    counted = ("length", "text_bytes", "words", "unknown")
    kept = np.zeros((1 + len(counted), len(described)), np.int64)
    overlapping = np.zeros(len(evaluation.files) if evaluation else 0, np.int64)
    for block in parts.blocks:
        kept_D = kept_N[slice(*block)]
        source_D = source_of[parts.column("file").read(block)[kept_D]]
        kept[0] += np.bincount(source_D, minlength=len(described))
        for total, name in zip(kept[1:], counted, strict=True):
            np.add.at(total, source_D, parts.column(name).read(block)[kept_D])
        if evaluation is not None:
            by_D = parts.column("contaminated_by").read(block)
            overlapping += np.bincount(by_D[by_D >= 0], minlength=len(overlapping))
    hashes = [hashlib.sha256() for _ in described]
    for (source, file), digest in zip(parts.files, parts.digests, strict=True):
        hashes[source].update(f"{file.name}\n{digest}\n".encode())
    contamination = None
    if evaluation is not None:
        overlaps = {file: int(count) for file, count in zip(evaluation.files, overlapping, strict=True) if count}
        total = sum(overlaps.values())
        contamination = Contamination(len(evaluation.files), evaluation.texts, evaluation.short, total, overlaps)
    fields: dict[str, dict[str, dict[str, int]]] = {field: {} for field in job.count_fields}
    with open(job.work / "dropped.jsonl", "w", encoding="utf-8") as stream:
        for path, start, stop, first_file in zip(
            parts.paths, parts.first[:-1], parts.first[1:], parts.first_file, strict=True
        ):
            meta = read_meta(path)
            for drop in meta["dropped"]:
                file = parts.files[first_file + drop.pop("file")][1].name
                stream.write(json.dumps({"where": f"{file}:{drop.pop('row')}", **drop}, ensure_ascii=False) + "\n")
            for document in (start + np.flatnonzero(~kept_N[start:stop])).tolist():
                why, like = int(decision.why_N[document]), int(decision.like_N[document])
                other = evaluation.files[like] if why == CONTAMINATED and evaluation else parts.where(like)
                drop = {"where": parts.where(document), "why": WHYS[why], "like": other}
                stream.write(json.dumps(drop, ensure_ascii=False) + "\n")
            if kept_N[start:stop].any():
                _count_values(fields, meta["values"], kept_N[start:stop], parts.column("length").read((start, stop)))
    for field, counted in fields.items():
        if counted.keys() == {"None"}:
            raise ValueError(f"no row has a value of {not_there(job, parts, field)}; correct --count-fields")
    dropped = parts.dropped + _whys(decision)
    other_files = sum(entry.why == "kind" for entry in left_out)
    return {
        "sources": tuple(
            Source(of.name, sha.hexdigest(), sum(n == number for n, _ in parts.files), *counts, **of.said)
            for number, (of, sha, *counts) in enumerate(zip(described, hashes, *kept.tolist(), strict=True))
        ),
        "dropped": {EMPTY: dropped.pop(EMPTY, 0), "other_files": other_files, **dict(sorted(dropped.items()))},
        "duplicates": decision.duplicates,
        "contamination": contamination,
        "fields": fields,
        "settings": {**job.settings, "on_error": job.on_error},
    }


def _count_values(
    fields: dict[str, dict[str, dict[str, int]]], values: dict[str, list[str]], kept_D: np.ndarray, length_D: np.ndarray
) -> None:
    for field, counted in fields.items():
        for d in np.flatnonzero(kept_D):
            count = counted.setdefault(values[field][d], {"documents": 0, "tokens": 0})
            count["documents"] += 1
            count["tokens"] += int(length_D[d])
        if len(counted) > MOST_VALUES:
            raise ValueError(f"field {field!r} has more than {MOST_VALUES} values: it cannot be counted by value")


def _describe(
    job: Job,
    side: int,
    parts: Parts,
    left_out: Sequence[LeftOut],
    is_in_N: np.ndarray,
    encoder: Encoder,
    shards: Sequence[Shard],
    shared: dict[str, Any],
) -> None:
    """Write all of a store but its shards."""
    folder = _folder(job, side)
    count = int(is_in_N.sum())

    def chosen(name: str) -> Iterator[np.ndarray]:
        return (parts.column(name).read(block)[is_in_N[slice(*block)]] for block in parts.blocks)

    summed = ("length", "text_bytes", "words", "unknown", "written_specials")
    totals = {name: sum(int(fact_D.sum()) for fact_D in chosen(name)) for name in summed}
    for fact in ("length", "crc32", "row", "file"):
        _save(folder / f"{fact}_N.npy", count, chosen(fact))
    if side == TRAIN and any((weight_D != 1).any() for weight_D in chosen("weight")):  # a held-out text is asked once
        _save(folder / "weight_N.npy", count, chosen("weight"))
    files = [
        {"source": source, "name": file.name, "sha256": digest}
        for (source, file), digest in zip(parts.files, parts.digests, strict=True)
    ]
    write_json(folder / "files.json", {"files": files, "left_out": list(map(dataclasses.asdict, left_out))})
    copy_tokenizer(job.work / "tokenizer", folder / "tokenizer")
    manifest = Manifest(
        version=STORE_VERSION,
        documents=count,
        tokens=totals["length"],
        text_bytes=totals["text_bytes"],
        words=totals["words"],
        unknown_tokens=totals["unknown"],
        written_specials=totals["written_specials"],
        dtype="uint16" if encoder.dtype.itemsize == 2 else "uint32",
        **encoder.vocabulary,
        sha256=file_hashes(folder),
        shards=tuple(shards),
        **shared,
    )
    manifest.write(folder)


def _save(path: Path, count: int, fact: Iterator[np.ndarray]) -> None:
    """A fact of so many documents as numpy saves it, without all of it in memory."""
    first_D = next(fact)
    with path.open("wb") as file:
        head = {"descr": first_D.dtype.str, "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(file, head)
        for fact_D in itertools.chain([first_D], fact):
            fact_D.tofile(file)
