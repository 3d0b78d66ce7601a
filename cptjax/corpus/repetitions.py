"""Which documents repeat which: equal keys are found share by share, near-duplicates band by band. What is known of a
document is on the disk; a few bytes of each are in memory.

N documents, D of them read at once, K numbers of a key, P numbers of a signature, B bands, R documents with the key of
an earlier one, E pairs of documents that may be alike, F documents that are the first of their clusters.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cptjax.corpus.cleaning import SIGNATURE, mix

AT_ONCE = 2**22  # keys sorted at once
COMPARED = 2**14  # pairs of signatures in memory

Block = tuple[int, int]  # the documents from the first number on, to below the second


@dataclass(frozen=True)
class Column:
    """A fact of all documents in a file of its own, which every process can read from any document on."""

    path: Path
    dtype: str
    width: int = 1  # numbers of a document

    def read(self, block: Block) -> np.ndarray:
        """[D], or [D, width] for more than one."""
        start, stop = (document * self.width for document in block)
        numbers = np.fromfile(self.path, self.dtype, stop - start, offset=start * np.dtype(self.dtype).itemsize)
        return numbers.reshape(-1, self.width) if self.width > 1 else numbers

    def rows(self, document_E: np.ndarray) -> np.ndarray:
        """Those of some documents, in any order: [E, width]."""
        document_F, place_E = np.unique(document_E, return_inverse=True)
        size = self.width * np.dtype(self.dtype).itemsize
        with self.path.open("rb") as file:  # not mapped: what is mapped counts as this process's memory
            read = b"".join(os.pread(file.fileno(), size, size * document) for document in document_F.tolist())
        return np.frombuffer(read, self.dtype).reshape(-1, self.width)[place_E]


@dataclass(frozen=True)
class Keys:
    """The keys that are compared: of documents that are still there, and have one."""

    of: Column
    why: Column  # 0 for a document that is there
    but_zero: bool = False  # zeros are no key

    def __call__(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """Keys [D, K] and their documents [D]."""
        key_DK = self.of.read(block).reshape(block[1] - block[0], -1)
        is_there_D = self.why.read(block) == 0
        if self.but_zero:
            is_there_D &= key_DK.any(axis=1)
        return key_DK[is_there_D], block[0] + np.flatnonzero(is_there_D)


# What finds equal keys: for each document with the key of earlier ones, in any order, the first of these, the one
# before it, and itself: [R, 3].
Group = Callable[[Keys, Sequence[Block]], Iterator[np.ndarray]]


def group(keys: Keys, blocks: Sequence[Block]) -> Iterator[np.ndarray]:
    """By sorting, in this process: AT_ONCE keys at a time, those that have the same rest."""
    shares = -(-blocks[-1][1] // AT_ONCE)
    for share in range(shares):
        chosen = []
        for block in blocks:
            key_DK, document_D = keys(block)
            is_in_D = key_DK[:, 0] % np.uint64(shares) == share
            chosen.append((key_DK[is_in_D], document_D[is_in_D]))
        yield runs(*map(np.concatenate, zip(*chosen, strict=True)))


def runs(key_NK: np.ndarray, document_N: np.ndarray) -> np.ndarray:
    """What a Group gives for these keys, of documents in rising order."""
    order_N = np.lexsort(key_NK.T[::-1])  # stable: a run begins with its first document
    is_first_N = np.ones(len(order_N), bool)
    is_first_N[1:] = (key_NK[order_N[1:]] != key_NK[order_N[:-1]]).any(axis=1)
    place_N = np.maximum.accumulate(np.where(is_first_N, np.arange(len(order_N)), 0))
    again_R = np.flatnonzero(~is_first_N)
    return document_N[order_N[np.stack([place_N[again_R], again_R - 1, again_R], axis=1)]]


# ---- near-duplicates


def bands(signature_DP: np.ndarray, threshold: float) -> np.ndarray:
    """A number for each band of a signature, which documents that are as alike as `threshold` very likely share: uint64
    [B, D] (MinHash: Broder 1997; divided as datasketch does)."""
    from datasketch import MinHashLSH

    divided = MinHashLSH(threshold=threshold, num_perm=SIGNATURE)
    band_BD = np.zeros((divided.b, len(signature_DP)), np.uint64)
    for number, column in np.ndindex(divided.b, divided.r):
        band_BD[number] = mix(band_BD[number] + signature_DP[:, number * divided.r + column].astype(np.uint64))
    return band_BD


class Clusters:
    """Documents that are alike, and chains of such: the first document of the cluster of each."""

    def __init__(self, count: int):
        self._earlier_N = np.arange(count, dtype=number_type(count))  # an earlier document of the cluster, or itself

    def first(self, document_E: np.ndarray) -> np.ndarray:
        """The first document of the clusters of these."""
        first_E = self._earlier_N[document_E]
        while ((earlier_E := self._earlier_N[first_E]) != first_E).any():
            first_E = earlier_E
        return first_E

    def join(self, left_E: np.ndarray, right_E: np.ndarray) -> None:
        """These pairs are alike."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        first_F, place_2E = np.unique(np.stack([self.first(left_E), self.first(right_E)]), return_inverse=True)
        edges = coo_array((np.ones(len(left_E)), tuple(place_2E.reshape(2, -1))), (len(first_F),) * 2)
        _, cluster_F = connected_components(edges, directed=False)
        _, lowest, of_F = np.unique(cluster_F, return_index=True, return_inverse=True)
        self._earlier_N[first_F] = first_F[lowest[of_F]]

    def join_alike(self, run_R3: np.ndarray, rows: Callable[[np.ndarray], np.ndarray], threshold: float) -> None:
        """Of documents that share a band join each with the one before it and with the first, where their signatures,
        which `rows` gives, agree in a share of `threshold` or more."""
        for other in (1, 0):  # after the ones before, most are of one cluster with the first
            for start in range(0, len(run_R3), COMPARED):
                left_E, right_E = run_R3[start : start + COMPARED, [other, 2]].T
                apart_E = self.first(left_E) != self.first(right_E)
                left_E, right_E = left_E[apart_E], right_E[apart_E]
                alike_E = (rows(left_E) == rows(right_E)).mean(1) >= threshold
                self.join(left_E[alike_E], right_E[alike_E])


def number_type(count: int) -> type[np.signedinteger]:
    """Of the numbers of so many documents."""
    return np.int32 if count < 2**31 else np.int64


def near_duplicates(signature_NP: np.ndarray, threshold: float) -> np.ndarray:
    """The first document of each cluster of near-duplicates, for every document: [N]; signatures in memory."""
    clusters, document_N = Clusters(len(signature_NP)), np.arange(len(signature_NP))
    for band_N in bands(signature_NP, threshold):
        clusters.join_alike(runs(band_N[:, None], document_N), signature_NP.__getitem__, threshold)
    return clusters.first(document_N)
