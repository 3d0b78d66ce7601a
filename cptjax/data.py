"""Token stores to the batch of step s: a pure function of (stores, seed, step).

A packing plan says which span of which document lies where in which row, so rows are random access
and a run's place in its data is one integer, the step. Hosts, threads and restarts change nothing:
each process reads its own rows of the same global batch. Nothing here knows the objective.

N documents, S spans (a span is an unbroken piece of a document), R rows of a plan, B rows of a
batch, L tokens per row. token: id. segment: number of the span in its row from 1, 0 = padding.
"""

import bisect
import itertools
import math
import sys
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np

from cptjax.corpus import Manifest, Store

FILL = 0.99  # share of a packed row that holds text; documents are cut for it, only if they must be
MIN_PIECE = 32  # tokens: a cut for the sake of filling leaves no piece shorter than this
WEIGHT_TOTAL = 2**40  # shares become integers of this sum, so that the mixture never drifts
READ = grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)  # in batches


@dataclass(frozen=True)
class Data:
    """What a run reads. The path of a store does not matter to its batches, only its content."""

    stores: tuple[tuple[str, float], ...]  # token store folder, share of the tokens (any scale)
    sequence_length: int = 8192  # tokens per row
    global_batch_size: int = 384  # rows per optimiser step, whatever the devices
    seed: int = 42  # order of documents and rows

    def __post_init__(self):
        if not self.stores:
            raise ValueError("data.stores is empty: name at least one token store and its share")
        if len(self.shares) < len(self.stores):
            raise ValueError("data.stores names a token store twice: give it one share")
        for store, share in self.stores:
            if not (share > 0 and math.isfinite(share)):
                raise ValueError(f"the share of {store} is {share}: it must be positive")
        for name in ("sequence_length", "global_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} is {getattr(self, name)}: it must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"data.seed is {self.seed}: it must be from 0 to 2**32 - 1")

    @property
    def shares(self) -> dict[str, float]:
        """Share of the tokens by token store folder."""
        return dict(self.stores)


@dataclass(frozen=True)
class Plan:
    """Which tokens lie in which row: row r holds spans row_offset[r]:row_offset[r + 1], in order.

    Every token of every document is in exactly one span.
    """

    document_S: np.ndarray  # number of the document in its store
    start_S: np.ndarray  # first token of the span inside the document
    length_S: np.ndarray  # tokens
    row_offset: np.ndarray  # [R + 1]

    def __len__(self) -> int:
        return len(self.row_offset) - 1


def packing_plan(length_N: np.ndarray, sequence_length: int, seed: int) -> Plan:
    """Rows of at most `sequence_length` tokens out of documents of `length_N` tokens.

    Documents longer than a row fill rows of their own; their remainders and all others are packed
    best fit, longest first (arXiv:2404.10830). If that leaves rows under 99 % full, the documents
    of the emptiest rows are cut to fill the holes of the others. The seed decides which of equally
    long documents meet, and the order of rows.
    """
    random = np.random.default_rng(seed)
    order_N = random.permutation(len(length_N))
    full_N = np.asarray(length_N)[order_N] // sequence_length
    rest_N = np.asarray(length_N)[order_N] % sequence_length

    document_S = np.repeat(order_N, full_N)
    start_S = sequence_length * (np.arange(len(document_S)) - np.repeat(full_N.cumsum() - full_N, full_N))
    row_S = np.arange(len(document_S))
    full = (document_S, start_S, np.full(len(document_S), sequence_length), row_S)

    ragged_N = rest_N > 0
    document_S, start_S = order_N[ragged_N], (full_N * sequence_length)[ragged_N]
    length_S = rest_N[ragged_N]
    row_S = _best_fit(length_S, sequence_length)
    rest = _fill_holes(document_S, start_S, length_S, row_S, sequence_length, length_N.sum())
    rest = (*rest[:3], rest[3] + len(full[0]))

    document_S, start_S, length_S, row_S = (np.concatenate(pair) for pair in zip(full, rest, strict=True))
    # Rows are renumbered to be without gaps and in random order.
    used_R, row_S = np.unique(row_S, return_inverse=True)
    row_S = random.permutation(len(used_R))[row_S]
    order_S = np.argsort(row_S, kind="stable")
    row_offset = np.concatenate([[0], np.bincount(row_S, minlength=len(used_R)).cumsum()])
    return Plan(document_S[order_S], start_S[order_S], length_S[order_S], row_offset)


def _best_fit(length_S: np.ndarray, capacity: int) -> np.ndarray:
    """The row of each span, best fit decreasing, whole groups of equal rows and spans at a time."""
    by_length_S = np.argsort(-length_S, kind="stable")
    lengths, counts = np.unique(length_S, return_counts=True)
    row_S = np.empty(len(length_S), np.int64)
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
                put(capacity, np.arange(num_rows, num_rows + new))
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
    total: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Empty as many of the emptiest rows as FILL asks for, cutting their spans to fit elsewhere.

    `total` tokens are in these rows and in those that are full already.
    """
    used_R = np.bincount(row_S, weights=length_S).astype(np.int64)
    num_full = (total - used_R.sum()) // capacity
    enough = max(math.ceil(total / capacity), int(total / (capacity * FILL)))
    surplus = int(num_full) + len(used_R) - enough
    emptiest_R = np.argsort(used_R, kind="stable")
    hole_R = capacity - used_R[emptiest_R]
    hole_R[hole_R < MIN_PIECE] = 0
    moved_R = used_R[emptiest_R].cumsum()  # tokens to move when the rows up to this one are emptied
    room_R = hole_R.sum() - hole_R.cumsum()  # and the room for them in the rows after it
    num_emptied = min(surplus, int((moved_R <= room_R).sum()))
    if num_emptied <= 0:
        return document_S, start_S, length_S, row_S

    is_emptied_R = np.zeros(len(used_R), bool)
    is_emptied_R[emptiest_R[:num_emptied]] = True
    moving_S = is_emptied_R[row_S]
    holes = itertools.chain(  # largest first; should cuts waste too much room, new rows follow
        zip(emptiest_R[num_emptied:].tolist(), hole_R[num_emptied:].tolist(), strict=True),
        ((row, capacity) for row in itertools.count(len(used_R))),
    )
    pieces = []
    row, room = next(holes)
    moving = np.stack([length_S, document_S, start_S], axis=1)[moving_S]
    for left, document, start in moving[np.argsort(-moving[:, 0], kind="stable")].tolist():
        while left:
            while room < min(left, MIN_PIECE):
                row, room = next(holes)
            piece = min(left, room)
            if 0 < left - piece < MIN_PIECE <= left - MIN_PIECE:
                piece = left - MIN_PIECE
            pieces.append((document, start, piece, row))
            start, left, room = start + piece, left - piece, room - piece
    stayed = np.stack([document_S, start_S, length_S, row_S])[:, ~moving_S]
    return tuple(np.concatenate([stayed, np.array(pieces).T], axis=1))


# ---- rows and batches


class _Rows:
    """The rows of one store by number: {"token_L": int32 [L], "segment_L": int32 [L]}."""

    def __init__(self, store: Store, plan: Plan, sequence_length: int):
        self.store, self.plan, self.sequence_length = store, plan, sequence_length

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        plan = self.plan
        spans = slice(plan.row_offset[index], plan.row_offset[index + 1])
        documents = self.store.tokens(plan.document_S[spans].tolist())
        cells = _padding_row(self.store, self.sequence_length)
        at = 0
        for segment, (token_L, start, length) in enumerate(
            zip(documents, plan.start_S[spans], plan.length_S[spans], strict=True), start=1
        ):
            cells["token_L"][at : at + length] = token_L[start : start + length]
            cells["segment_L"][at : at + length] = segment
            at += length
        return cells


def _padding_row(store: Store, sequence_length: int) -> dict[str, np.ndarray]:
    pad = store.manifest.pad_token_id or 0
    return {
        "token_L": np.full(sequence_length, pad, np.int32),
        "segment_L": np.zeros(sequence_length, np.int32),
    }


def _stack(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {
        "token_BL": np.stack([row["token_L"] for row in rows]),
        "segment_BL": np.stack([row["segment_L"] for row in rows]),
    }


def _drawn(weights: Sequence[int], rows: int) -> list[int]:
    """How many of the mixture's first `rows` rows come from each store: each share, rounded."""
    counts = []
    total = sum(weights)
    for weight in weights:
        others = (rows * (total - weight) + total // 2) // total
        counts.append(rows - others)
        rows, total = others, total - weight
    return counts


class _Mixture(grain.transforms.DatasetSelectionMap):
    """Row of the mixture -> (store, row of the store). Grain's mixer rounds shares to a percent."""

    def __init__(self, weights: Sequence[int]):
        self.weights = weights

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        before, after = _drawn(self.weights, index), _drawn(self.weights, index + 1)
        store = next(i for i, count in enumerate(before) if after[i] != count)
        return store, before[store]


class Batches:
    """The batches of a run: {"token_BL": int32 [B, L], "segment_BL": int32 [B, L]}.

    Every store is read in passes; a pass shows each of its tokens once, the next one in another
    order of rows. ValueError when a folder is no store, or two were made by different tokenizers.
    """

    def __init__(self, data: Data):
        self.data = data
        stores = {path: Store(path) for path in data.shares}
        by = {store.manifest.tokenizer_sha256: path for path, store in stores.items()}
        if len(by) > 1:
            one, other = list(by.values())[:2]
            raise ValueError(f"{one} and {other} were made by different tokenizers: prepare both with the same one")
        # In order of content, so that neither paths nor their order change a batch.
        paths = sorted(stores, key=lambda path: stores[path].manifest.fingerprint)
        self._rows = {
            path: _Rows(
                stores[path],
                packing_plan(stores[path].length_N, data.sequence_length, data.seed),
                data.sequence_length,
            )
            for path in paths
        }
        total = sum(data.shares.values())
        self._weights = [max(1, round(data.shares[p] / total * WEIGHT_TOTAL)) for p in paths]
        passes = [grain.MapDataset.source(rows).seed(data.seed).shuffle().repeat() for rows in self._rows.values()]
        self._mixed = grain.MapDataset.select_from_datasets(passes, _Mixture(self._weights))

    def batch_of_step(self, step: int) -> dict[str, np.ndarray]:
        """The global batch of one step, by random access."""
        batch: Any = self._mixed.batch(self.data.global_batch_size, batch_fn=_stack)[step]
        return batch

    def stream(
        self, start_step: int = 0, process_index: int = 0, process_count: int = 1
    ) -> Generator[dict[str, np.ndarray]]:
        """This process's rows of every global batch from `start_step` on, read ahead by threads.

        Process p of n has rows [p * B / n, (p + 1) * B / n). It never ends; starting is O(1).
        ValueError when n does not divide the global batch.
        """
        rows, ragged = divmod(self.data.global_batch_size, process_count)
        if ragged:
            raise ValueError(
                f"global_batch_size {self.data.global_batch_size} is not a multiple of the {process_count} processes"
            )
        parts = self._mixed.batch(rows, batch_fn=_stack)[process_index::process_count]
        return _closing(parts[start_step:].to_iter_dataset(READ))

    def epochs(self, step: int) -> dict[str, float]:
        """How many passes over each store the steps before `step` have made, by store folder."""
        drawn = _drawn(self._weights, step * self.data.global_batch_size)
        return {path: count / len(rows) for (path, rows), count in zip(self._rows.items(), drawn, strict=True)}

    @property
    def fill(self) -> dict[str, float]:
        """Share of a store's packed rows that holds text, by store folder."""
        return {
            path: float(rows.plan.length_S.sum() / (len(rows) * self.data.sequence_length))
            for path, rows in self._rows.items()
        }


def _closing(dataset: grain.IterDataset) -> Generator[dict[str, np.ndarray]]:
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()


def fingerprint(data: Data) -> dict[str, str]:
    """Fingerprint of each store by its folder: what a resumed run must find again."""
    return {path: Manifest.read(path).fingerprint for path in data.shares}


def held_out_batches(
    store: Path | str, sequence_length: int, rows: int, limit_rows: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Each row of a held-out store once, always in the same order, in batches of `rows` rows.

    `limit_rows` keeps the first rows only: a fixed random sample of the store. The last batch is
    filled up with rows of padding.
    """
    if sequence_length < 1 or rows < 1 or (limit_rows is not None and limit_rows < 1):
        raise ValueError("sequence_length, rows and limit_rows must be at least 1")
    opened = Store(store)
    source = _Rows(opened, packing_plan(opened.length_N, sequence_length, 0), sequence_length)
    count = min(len(source), limit_rows or len(source))
    padding = [_padding_row(opened, sequence_length)] * (-count % rows)
    return (
        _stack([source[row] for row in range(first, min(first + rows, count))] + padding * last)
        for first in range(0, count, rows)
        for last in [first + rows > count]
    )
