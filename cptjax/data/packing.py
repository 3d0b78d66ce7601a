"""Which tokens lie in which row: computed once from the lengths of the documents, the row's length and a seed.

N documents, S spans (a span is an unbroken piece of a document), R rows of a plan, D documents that are
packed at once.
"""

import bisect
import hashlib
import itertools
import math
from array import array
from collections import defaultdict
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from cptjax.command.errors import warn_of_damage
from cptjax.files import read_json, sha256, write_json, written

PACKING_VERSION = 2  # counts up with every change of what a plan holds: one kept by another program is not read
HASHES = "sha256.json"  # of a kept plan's files
FILL = 0.995  # share of a packed row that holds text; documents are cut for it, only if they must be
MIN_PIECE = 32  # tokens: a cut for the sake of filling leaves no piece shorter than this


@dataclass(frozen=True)
class PackingPlan:
    """Which tokens lie in which row: row r holds spans row_offset[r]:row_offset[r + 1], in order.

    Every token of every document is in exactly one span, or in as many as the document has copies.
    No two copies of a document share a row. All arrays are int32.
    """

    document_S: np.ndarray  # number of the document in its store
    start_S: np.ndarray  # first token of the span inside the document
    length_S: np.ndarray  # tokens
    row_offset: np.ndarray  # [R + 1]
    tokens: np.ndarray  # [], int64: of all rows together

    def __len__(self) -> int:
        return len(self.row_offset) - 1


def packing_plan(
    length_N: np.ndarray, sequence_length: int, seed: int, weight_N: np.ndarray | None = None
) -> PackingPlan:
    """Rows of at most `sequence_length` tokens out of documents of `length_N` tokens.

    Documents longer than a row fill rows of their own; their remainders and all others are packed
    best fit, longest first (arXiv:2404.10830). If that leaves rows less than FILL full, the documents
    of the emptiest rows are cut to fill the holes of the others. The seed decides which of equally
    long documents meet, and the order of rows.

    `weight_N` is how often a pass shows each document: floor(w) times, and once more where a draw
    from the seed falls below the fraction. Copies are packed in rounds, round k the documents with
    more than k copies, so that no two share a row. ValueError when a weight is negative or no number.
    """
    random = np.random.default_rng(seed)
    length_N = np.asarray(length_N, np.int32)
    copies_N = _copies(weight_N, len(length_N), seed)
    rounds, num_rows = [], 0
    for round_ in range(copies_N.max(initial=1)):
        order_D = random.permutation(np.flatnonzero(copies_N > round_).astype(np.int32))
        packed = _pack(order_D, length_N[order_D], sequence_length)
        packed[3][:] += num_rows
        num_rows = packed[3].max(initial=num_rows - 1) + 1
        rounds.append(packed)
    document_S, start_S, length_S, row_S = (
        rounds[0] if len(rounds) == 1 else map(np.concatenate, zip(*rounds, strict=True))
    )
    del rounds, packed, order_D

    row_S = random.permutation(np.arange(num_rows, dtype=np.int32))[row_S]
    row_offset = np.zeros(num_rows + 1, np.int32)
    row_offset[1:] = np.bincount(row_S, minlength=num_rows).cumsum()
    order_S = np.argsort(row_S, kind="stable")
    del row_S
    return PackingPlan(
        document_S[order_S], start_S[order_S], length_S[order_S], row_offset, length_S.sum(dtype=np.int64)
    )


def _copies(weight_N: np.ndarray | None, documents: int, seed: int) -> np.ndarray:
    """How often a pass shows each document."""
    if weight_N is None:
        return np.ones(documents, np.int32)
    weight_N = np.asarray(weight_N, np.float64)
    if weight_N.shape != (documents,) or not (np.isfinite(weight_N) & (weight_N >= 0)).all():
        raise ValueError(f"weights must be {documents} numbers from 0 on, one for each document")
    whole_N = np.floor(weight_N)
    # A stream of draws of its own: draw d is a function of (seed, d), whatever the other weights.
    drawn_N = np.random.default_rng([seed, 1]).random(documents) < weight_N - whole_N
    return whole_N.astype(np.int32) + drawn_N


def _pack(document_D: np.ndarray, length_D: np.ndarray, sequence_length: int) -> tuple[np.ndarray, ...]:
    """Spans and rows of D different documents: document_S, start_S, length_S, row_S; rows from 0, without gaps."""
    full_D = length_D // sequence_length
    rest_D = length_D % sequence_length
    num_full = full_D.sum(dtype=np.int64)
    row_S = np.arange(num_full, dtype=np.int32)
    full = (
        np.repeat(document_D, full_D),
        (row_S - np.repeat((full_D.cumsum() - full_D).astype(np.int32), full_D)) * np.int32(sequence_length),
        np.full(num_full, sequence_length, np.int32),
        row_S,
    )
    ragged_D = rest_D > 0
    document_S, start_S, length_S = (x[ragged_D] for x in (document_D, length_D - rest_D, rest_D))
    del full_D, rest_D, ragged_D
    rest = _fill_holes(document_S, start_S, length_S, _best_fit(length_S, sequence_length), sequence_length, num_full)
    del document_S, start_S, length_S
    is_used_R = np.bincount(rest[3]) > 0
    rest[3][:] = (num_full - 1 + is_used_R.cumsum())[rest[3]]
    return tuple(np.concatenate(pair) for pair in zip(full, rest, strict=True))


def _best_fit(length_S: np.ndarray, capacity: int) -> np.ndarray:
    """The row of each span, best fit decreasing, whole groups of equal rows and spans at a time."""
    by_length_S = np.argsort(-length_S, kind="stable").astype(np.int32)
    lengths, counts = np.unique(length_S, return_counts=True)
    row_S = np.empty(len(length_S), np.int32)
    rows_with: defaultdict[int, list[np.ndarray]] = defaultdict(list)  # free tokens -> rows
    free: list[int] = []  # the keys of rows_with, sorted
    num_rows = placed = 0

    def put(room: int, rows: np.ndarray) -> None:
        if room not in rows_with:
            bisect.insort(free, room)
        rows_with[room].append(rows)

    for length, count in zip(lengths[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while count:
            fit = bisect.bisect_left(free, length)
            if fit == len(free):
                new = -(-count // (capacity // length))
                put(capacity, np.arange(num_rows, num_rows + new, dtype=np.int32))
                num_rows += new
                continue
            room = free[fit]
            rows = rows_with[room].pop()
            if not rows_with[room]:
                del rows_with[room], free[fit]
            if len(rows) > count:
                put(room, rows[count:])
                rows = rows[:count]
            row_S[by_length_S[placed : placed + len(rows)]] = rows
            placed += len(rows)
            count -= len(rows)
            if room > length:
                put(room - length, rows)
    return row_S


def _fill_holes(
    document_S: np.ndarray,
    start_S: np.ndarray,
    length_S: np.ndarray,
    row_S: np.ndarray,
    capacity: int,
    num_full: int,
) -> tuple[np.ndarray, ...]:
    """Empty as many of the emptiest rows as FILL asks for, cutting their spans to fit elsewhere.

    `num_full` other rows are full already.
    """
    used_R = np.bincount(row_S, weights=length_S).astype(np.int32)
    total = int(used_R.sum(dtype=np.int64)) + num_full * capacity
    enough = max(math.ceil(total / capacity), int(total / (capacity * FILL)))
    surplus = num_full + len(used_R) - enough
    emptiest_R = np.argsort(used_R, kind="stable").astype(np.int32)
    hole_R = capacity - used_R[emptiest_R]
    hole_R[hole_R < MIN_PIECE] = 0
    moved_R = used_R[emptiest_R].cumsum(dtype=np.int64)  # tokens to move when the rows up to this one are emptied
    room_R = hole_R.sum(dtype=np.int64) - hole_R.cumsum(dtype=np.int64)  # and the room for them in the rows after it
    num_emptied = min(surplus, int((moved_R <= room_R).sum()))
    if num_emptied <= 0:
        return document_S, start_S, length_S, row_S

    is_emptied_R = np.zeros(len(used_R), bool)
    is_emptied_R[emptiest_R[:num_emptied]] = True
    moving_S = is_emptied_R[row_S]
    new_rows = ((row, capacity) for row in itertools.count(len(used_R)))  # should cuts waste too much room
    holes = itertools.chain(zip(emptiest_R[num_emptied:].data, hole_R[num_emptied:].data, strict=True), new_rows)
    (row, room), (spare, spare_room) = next(holes), (0, 0)
    pieces = array("i")  # document, start, length, row of one after the other: millions fit in memory
    moving = np.flatnonzero(moving_S).astype(np.int32)
    moving = moving[np.argsort(-length_S[moving], kind="stable")]
    for left, document, start in zip(*(x[moving].data for x in (length_S, document_S, start_S)), strict=True):
        while left:
            while room < min(left, MIN_PIECE):
                row, room = next(holes)
            # The rest must fill a hole of any size in its turn: 0, MIN_PIECE, or twice that and more.
            rest = max(left - room, 0)
            if rest < 2 * MIN_PIECE:
                rest = -(-rest // MIN_PIECE) * MIN_PIECE
            piece = left - rest
            if rest and piece < MIN_PIECE:  # there is no such cut: it stays whole
                if spare_room < left:
                    spare, spare_room = next(new_rows)
                pieces.extend((document, start, left, spare))
                spare_room -= left
                break
            pieces.extend((document, start, piece, row))
            start, left, room = start + piece, left - piece, room - piece
    pieces = np.frombuffer(pieces, np.int32).reshape(-1, 4).T
    stayed = (document_S, start_S, length_S, row_S)
    return tuple(np.concatenate([x[~moving_S], piece]) for x, piece in zip(stayed, pieces, strict=True))


def stored_plan(
    folder: Path,
    fingerprint: str,
    length_N: np.ndarray,
    sequence_length: int,
    seed: int,
    weight_N: np.ndarray | None = None,
) -> PackingPlan:
    """The plan of the store with this fingerprint, memory-mapped from `folder`; made and kept there if it is not yet.

    Opening a kept plan takes no more than reading it: its files are compared with their hashes. Processes may
    race: what they write is equal. A damaged plan is named and made anew; where nothing can be written the
    plan stays in memory.
    """
    content = hashlib.sha256(fingerprint.encode())
    content.update(np.asarray(length_N, np.int64).data)
    content.update(b"" if weight_N is None else np.asarray(weight_N, np.float64).data)
    kept = folder / f"v{PACKING_VERSION}-{sequence_length}-{seed}-{content.hexdigest()[:32]}"
    plan = _open_plan(kept)
    if plan is None:
        plan = packing_plan(length_N, sequence_length, seed, weight_N)
        try:
            _keep_plan(plan, kept)
        except OSError:
            return plan
        plan = _open_plan(kept) or plan  # mapped from here on too: its memory is free for others
    return plan


def _open_plan(kept: Path) -> PackingPlan | None:
    if not (kept / HASHES).exists():  # none yet, or not finished
        return None
    try:
        recorded = read_json(kept / HASHES)
        if changed := [name for name, value in _hashes(kept).items() if recorded.get(name) != value]:
            raise ValueError(f"changed since it was written: {', '.join(changed)}")
        return PackingPlan(
            *(np.load(kept / f"{x.name}.npy", mmap_mode="r", allow_pickle=False) for x in fields(PackingPlan))
        )
    except (OSError, ValueError) as error:
        warn_of_damage(f"packing plan {kept} is damaged ({error}); without it the same is made again")
        return None


def _hashes(kept: Path) -> dict[str, str]:
    """The sha256 of a plan's files, and the name that says of what it is a plan."""
    return {"plan": kept.name, **{x.name: sha256(kept / f"{x.name}.npy") for x in fields(PackingPlan)}}


def _keep_plan(plan: PackingPlan, kept: Path) -> None:
    kept.mkdir(parents=True, exist_ok=True)
    for field in fields(PackingPlan):
        with written(kept / f"{field.name}.npy") as partial:
            np.save(partial, getattr(plan, field.name))
    write_json(kept / HASHES, _hashes(kept))
