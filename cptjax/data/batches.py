"""Token stores to the batch of step s: a pure function of (stores, seed, step).

A packing plan says which span of which document lies where in which row, so rows are random access
and a run's place in its data is one integer, the step. Hosts, threads and restarts change nothing:
each process reads its own rows of the same global batch. Nothing here knows the objective.

N documents, S spans (a span is an unbroken piece of a document), R rows of a plan, B rows of a
batch, L tokens per row. token: id. segment: number of the span in its row from 1, 0 = padding.
"""

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np

from cptjax.data.packing import PackingPlan, stored_plan
from cptjax.data.store import Store, check_one_tokenizer

WEIGHT_TOTAL = 2**40  # shares become integers of this sum, so that the mixture never drifts
READ_AHEAD = 8  # batches
MOST = 2**31  # rows of a batch, tokens of a row, steps of a run: they are numbered in int32


@dataclass(frozen=True)
class Data:
    """What a run reads. The path of a store does not matter to its batches, only its content."""

    stores: tuple[tuple[str, float], ...]  # token store folder, share of the tokens (any scale)
    sequence_length: int = 8192  # tokens per row
    global_batch_size: int = 384  # rows per optimiser step, whatever the devices
    seed: int = 42  # order of documents and rows
    first_batch: int = 0  # that the first step reads: those before it are passed over

    def __post_init__(self):
        if not self.stores:
            raise ValueError("data.stores is empty: name at least one token store and its share")
        if len(self.shares) < len(self.stores):
            raise ValueError("data.stores names a token store twice: give it one share")
        for store, share in self.stores:
            if not (share > 0 and math.isfinite(share)):
                raise ValueError(f"the share of {store} is {share}: it must be positive")
        for name in ("sequence_length", "global_batch_size"):
            if not 1 <= getattr(self, name) < MOST:
                raise ValueError(f"data.{name} is {getattr(self, name)}: it must be from 1 to {MOST - 1}")
        if not 0 <= self.first_batch < MOST:
            raise ValueError(f"data.first_batch is {self.first_batch}: it must be from 0 to {MOST - 1}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"data.seed is {self.seed}: it must be from 0 to 2**32 - 1")

    @property
    def shares(self) -> dict[str, float]:
        """Share of the tokens by token store folder."""
        return dict(self.stores)


# ---- rows and batches


class _Rows:
    """The rows of one store by number: {"token_L": int32 [L], "segment_L": int32 [L]}.

    ValueError when the store's weights leave nothing to show.
    """

    def __init__(self, store: Store, sequence_length: int, seed: int):
        self.store, self.sequence_length = store, sequence_length
        self.plan: PackingPlan = stored_plan(
            store.path / "plans", store.manifest.fingerprint, store.length_N, sequence_length, seed, store.weight_N
        )
        if not len(self.plan):
            raise ValueError(f"{store.path} shows no document: at least one weight must be 1 or more")

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
    """Place in a stream that holds `own_rows` of every global batch -> (store, row of the store).

    Grain's own mixer rounds shares to a percent.
    """

    def __init__(self, weights: Sequence[int], global_batch_size: int, own_rows: Sequence[int]):
        self.weights, self.global_batch_size, self.own_rows = weights, global_batch_size, own_rows

    def __len__(self) -> int:
        return MOST * len(self.own_rows)  # grain divides it: sys.maxsize, taken for endless, would overflow

    def __getitem__(self, index: int) -> tuple[int, int]:
        step, place = divmod(index, len(self.own_rows))
        row = step * self.global_batch_size + self.own_rows[place]
        before, after = _drawn(self.weights, row), _drawn(self.weights, row + 1)
        store = next(i for i, count in enumerate(before) if after[i] != count)
        return store, before[store]


class Batches:
    """The batches of a run: {"token_BL": int32 [B, L], "segment_BL": int32 [B, L]}.

    Every store is read in passes; a pass shows each document as often as its weight says, once
    without one, and the next pass shows the same rows in another order. ValueError when a folder is
    no store, or two do not share one tokenizer.
    """

    def __init__(self, data: Data):
        self.data = data
        stores = {path: Store(path) for path in data.shares}
        check_one_tokenizer({path: store.manifest.vocabulary for path, store in stores.items()})
        # In order of content, so that neither paths nor their order change a batch.
        paths = sorted(stores, key=lambda path: stores[path].manifest.fingerprint)
        self._rows = {path: _Rows(stores[path], data.sequence_length, data.seed) for path in paths}
        # Shares are of tokens, and the rows of one store may be fuller than those of another.
        by_rows = [data.shares[path] / self.fill[path] for path in paths]
        self._weights = [max(1, round(rows / sum(by_rows) * WEIGHT_TOTAL)) for rows in by_rows]
        self._passes = [
            grain.MapDataset.source(rows).seed(data.seed).shuffle().repeat() for rows in self._rows.values()
        ]

    def _from(self, step: int, own_rows: Sequence[int] | None) -> grain.MapDataset:
        own_rows = range(self.data.global_batch_size) if own_rows is None else own_rows
        mixture = _Mixture(self._weights, self.data.global_batch_size, own_rows)
        mixed = grain.MapDataset.select_from_datasets(self._passes, mixture)
        return mixed.batch(len(own_rows), batch_fn=_stack)[self.data.first_batch + step :]

    def batch_of_step(self, step: int) -> dict[str, np.ndarray]:
        """The global batch of one step, by random access."""
        batch: Any = self._from(step, None)[0]
        return batch

    def contents(self, step: int) -> list[tuple[str, list[str]]]:
        """Store and documents, each as input file and row, of every row of a step's global batch."""
        mixture = _Mixture(self._weights, self.data.global_batch_size, range(self.data.global_batch_size))
        stores, said = list(self._rows.items()), []
        for place in range(self.data.global_batch_size):
            number, at = mixture[(self.data.first_batch + step) * self.data.global_batch_size + place]
            path, rows = stores[number]
            row: Any = grain.MapDataset.range(len(rows)).seed(self.data.seed).shuffle().repeat()[at]
            spans = slice(rows.plan.row_offset[row], rows.plan.row_offset[row + 1])
            said.append((path, rows.store.origins(rows.plan.document_S[spans].tolist())))
        return said

    def stream(
        self, start_step: int = 0, own_rows: Sequence[int] | None = None, threads: int = 4
    ) -> Generator[dict[str, np.ndarray]]:
        """Every global batch from `start_step` on, or only its rows of the numbers `own_rows`, read ahead by `threads`.

        Without threads each batch is read when it is asked for. It ends with the last step that a run can have;
        starting is O(1).
        """
        read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=READ_AHEAD if threads else 0)
        return _closing(self._from(start_step, own_rows).to_iter_dataset(read))

    def epochs(self, step: int) -> dict[str, float]:
        """How many passes over each store the steps before `step` have made, by store folder.

        It is how often they have shown a document of weight 1.
        """
        first = self.data.first_batch
        before, after = (_drawn(self._weights, s * self.data.global_batch_size) for s in (first, first + step))
        rows = [len(rows) for rows in self._rows.values()]
        return {path: (b - a) / n for path, a, b, n in zip(self._rows, before, after, rows, strict=True)}

    def tokens(self, step: int) -> dict[str, float]:
        """How many tokens of each store the steps before `step` have shown, by store folder.

        Exact after whole passes; within one the rows drawn count as full as the store's rows are on average.
        """
        return {path: passes * int(self._rows[path].plan.tokens) for path, passes in self.epochs(step).items()}

    def by_source(self) -> dict[str, list[tuple[int, int, float]]]:
        """Of each source of a store: its documents and tokens there, and its share of the tokens that a pass shows, by
        store folder. Raises as `Store.source_N` does."""
        return {path: _by_source(rows.store, rows.plan) for path, rows in self._rows.items()}

    @property
    def fill(self) -> dict[str, float]:
        """Share of a store's packed rows that holds text, by store folder."""
        return {
            path: int(rows.plan.tokens) / (len(rows) * self.data.sequence_length) for path, rows in self._rows.items()
        }


def _by_source(store: Store, plan: PackingPlan) -> list[tuple[int, int, float]]:
    sources = len(store.manifest.sources)
    if not sources:
        return []
    source_N = store.source_N
    documents, tokens, shown = (
        np.bincount(of, weights, sources).tolist()
        for of, weights in (
            (source_N, None),
            (source_N, store.length_N),
            (source_N[plan.document_S], plan.length_S),
        )
    )
    return [(n, round(t), s / int(plan.tokens)) for n, t, s in zip(documents, tokens, shown, strict=True)]


def _closing(dataset: grain.IterDataset) -> Generator[dict[str, np.ndarray]]:
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()


def held_out_batches(
    store: Path | str,
    sequence_length: int,
    rows: int,
    limit_rows: int | None = None,
    own_rows: Sequence[int] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Each row of a held-out store once, always in the same order, in batches of `rows` rows.

    `limit_rows` keeps the first rows only: a fixed random sample of the store. The last batch is
    filled up with rows of padding. Of each batch only the rows of the numbers `own_rows` are read, if given.
    """
    if sequence_length < 1 or rows < 1 or (limit_rows is not None and limit_rows < 1):
        raise ValueError("sequence_length, rows and limit_rows must be at least 1")
    opened = Store(store)
    source = _Rows(opened, sequence_length, seed=0)
    count = min(len(source), limit_rows or len(source))
    padding = _padding_row(opened, sequence_length)
    own_rows = range(rows) if own_rows is None else own_rows
    return (
        _stack([source[first + row] if first + row < count else padding for row in own_rows])
        for first in range(0, count, rows)
    )
