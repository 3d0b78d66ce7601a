"""Which documents stay: contaminated ones go first, then repetitions, of which the first stays.

What is known of documents is read from columns on the disk, block by block; in memory are some bytes of each.

N documents, D of a block, R of them that repeat an earlier one.
"""

import contextlib
from dataclasses import dataclass

import numpy as np

from cptjax.command.escape import nearest, printable
from cptjax.corpus import sources
from cptjax.corpus.parts import DROPPED, Job, Parts
from cptjax.corpus.repetitions import Clusters, Column, Group, Keys, bands, number_type
from cptjax.data.store import Duplicates

WHYS = ("", "contaminated", "repeated id", "exact duplicate", "near duplicate")  # a document is left out for
CONTAMINATED, REPEATED_ID, EXACT, NEAR = range(1, len(WHYS))
SIGNATURES = 2**14  # read at once, of half a kilobyte each


@dataclass(frozen=True)
class Decision:
    """What becomes of each document: its side, why it is left out (a number of WHYS), and what it is like.

    `like_N` is the number of an earlier document, or, for "contaminated", of an evaluation file.
    """

    side_N: np.ndarray
    why_N: np.ndarray
    like_N: np.ndarray
    duplicates: Duplicates


def decide(job: Job, parts: Parts, group: Group) -> Decision:
    """What becomes of all documents. Raises ValueError for a column of ids that no row has, and for an id that is
    repeated unless such are skipped."""
    why_N, like_N = np.zeros(parts.count, np.int8), np.full(parts.count, -1, number_type(parts.count))

    def repetitions(column: str, why: int, *, drop: bool, but_zero: bool = False) -> int:
        """How many documents have the key of an earlier one that is there, too."""
        keys = Keys(parts.column(column), parts.keep("why", why_N), but_zero)
        is_again_N = np.zeros(parts.count, bool)
        for run_R3 in group(keys, parts.blocks):
            first_R, _, again_R = run_R3.T
            is_again_N[again_R] = True
            if drop:
                why_N[again_R], like_N[again_R] = why, first_R
        return int(is_again_N.sum())

    if job.cleaning.drop_contaminated:
        for start, stop in parts.blocks:
            by_D = parts.column("contaminated_by").read((start, stop))
            why_N[start:stop] = np.where(by_D >= 0, CONTAMINATED, 0)
            like_N[start:stop] = by_D
    if job.reading.id_field is not None:
        if not any(parts.column("id").read(block).any() for block in parts.blocks):
            has = not_there(job, parts, job.reading.id_field)
            raise ValueError(f"no row has a value of {has}; name yours with --id-field")
        if repetitions("id", REPEATED_ID, drop=True, but_zero=True) and job.on_error == "stop":
            repeated = int(np.argmax(why_N == REPEATED_ID))
            second, first = parts.where(repeated), parts.where(int(like_N[repeated]))
            raise ValueError(
                f"{second} has the id of {first}: make ids differ, or give --on-error skip to leave it out"
            )
    policy, near = job.cleaning.duplicates, None
    exact = repetitions("digest", EXACT, drop=policy != "keep")
    if policy == "near":
        near = _drop_near(job, parts, group, why_N, like_N)
    side_N = np.zeros(parts.count, np.int8)
    for start, stop in parts.blocks:
        side_N[start:stop] = np.where(why_N[start:stop] == 0, parts.column("side").read((start, stop)), DROPPED)
    return Decision(side_N, why_N, like_N, Duplicates(exact, near))


def _drop_near(job: Job, parts: Parts, group: Group, why_N: np.ndarray, like_N: np.ndarray) -> int:
    """Leave out documents that are near-duplicates of earlier ones; how many that are."""
    signature, threshold, there = parts.column("signature"), job.cleaning.near_threshold, parts.keep("why", why_N)
    clusters, again = Clusters(parts.count), 0
    for band in _band_columns(parts, threshold):
        for run_R3 in group(Keys(band, there), parts.blocks):
            clusters.join_alike(run_R3, signature.rows, threshold)
    for start, stop in parts.blocks:
        document_D = np.arange(start, stop)
        first_D = clusters.first(document_D)
        again_D = document_D[first_D != document_D]
        why_N[again_D], like_N[again_D] = NEAR, first_D[again_D - start]
        again += len(again_D)
    return again


def _band_columns(parts: Parts, threshold: float) -> list[Column]:
    """The bands of all signatures, a column for each."""
    signature = parts.column("signature")
    count = len(bands(signature.read((0, 1)), threshold))
    paths = [signature.path.with_name(f"band_{number}") for number in range(count)]
    with contextlib.ExitStack() as held:
        opened = [held.enter_context(path.open("wb")) for path in paths]
        for start in range(0, parts.count, SIGNATURES):
            band_BD = bands(signature.read((start, min(start + SIGNATURES, parts.count))), threshold)
            for file, band_D in zip(opened, band_BD, strict=True):
                band_D.tofile(file)
    return [Column(path, "uint64") for path in paths]


def not_there(job: Job, parts: Parts, name: str) -> str:
    """A column that no row has, and what the first row has instead."""
    columns = [column for column in sources.columns(parts.files[0][1], job.reading) if column != name]
    return f"{name!r}{nearest(name, columns)}: the first has {', '.join(map(printable, columns))}"
