"""Texts into rows: of a step, in one of a few shapes, and of a split, to be told. Every text lies whole in one row.

B rows, L tokens, T texts, C entities of all rows, N labels.
"""

import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

from eval.heads import NO_ENTITIES, NO_TAG, Targets
from eval.texts import Text

Told = TypeVar("Told")
SHORTEST_ROW, ROUND = 64, 32  # tokens
TEXTS_A_ROW = 3  # as long as so many texts of mean length, a row has little padding
MOST_SHAPES = 4  # of steps: each is compiled
CANDIDATES = 16  # of the commonest needs, alone and two together
WORTH_A_SHAPE = 0.05  # of all rows' tokens
COMPILING = 20  # steps that take as long as compiling another
TOKENS_AT_ONCE = 4096  # of a batch that is told
EMPTY = {"tag": NO_TAG}  # what padding holds, where it is not 0


class Piece(NamedTuple):
    """A text and what is right of it."""

    text: Text
    targets: Targets


class Shape(NamedTuple):
    """The static shape of a batch: rows of each length, texts, entities of each length of rows."""

    rows: tuple[tuple[int, int], ...]  # length, how many
    texts: int
    entities: int


def row_lengths(length_T: Sequence[int], most: int) -> tuple[int, ...]:
    """Lengths of rows for texts of these lengths: doubling from what holds several of the usual ones to the longest,
    `most` tokens at most."""
    longest = min(most, -(-max(length_T) // ROUND) * ROUND)
    shortest = max(SHORTEST_ROW, TEXTS_A_ROW * float(np.mean(length_T)))
    lengths = [SHORTEST_ROW]
    while lengths[-1] < longest:
        lengths.append(2 * lengths[-1])
    return tuple(min(length, longest) for length in lengths if length >= shortest or length >= longest)


def best_fit(length_T: Sequence[int], capacity: int) -> list[int]:
    """The row of each text, best fit decreasing: the longest first, each into the fullest row that has room."""
    free: list[tuple[int, int]] = []  # room and row, sorted
    row_T = [0] * len(length_T)
    for text in sorted(range(len(length_T)), key=lambda text: -length_T[text]):
        at = bisect.bisect_left(free, (length_T[text], -1))
        room, row = free.pop(at) if at < len(free) else (capacity, len(free))
        row_T[text] = row
        bisect.insort(free, (room - length_T[text], row))
    return row_T


def by_row_length(length_T: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Numbers of the texts that go into rows of each length: the shortest that holds them."""
    groups: list[list[int]] = [[] for _ in lengths]
    for text, length in enumerate(length_T):
        groups[bisect.bisect_left(lengths, length)].append(text)
    return groups


def rows_needed(length_T: Sequence[int], lengths: Sequence[int]) -> tuple[int, ...]:
    """How many rows of each length hold these texts."""
    groups = by_row_length(length_T, lengths)
    return tuple(
        max(best_fit([length_T[text] for text in group], length), default=-1) + 1
        for group, length in zip(groups, lengths, strict=True)
    )


def few_shapes(needed: Sequence[tuple[int, ...]], lengths: Sequence[int]) -> list[tuple[int, ...]]:
    """For each step, rows of each length in which it fits: few different ones for all steps together.

    The first has room for every step; another comes as long as it saves enough padding.
    """
    times = Counter(needed)
    every = tuple(map(max, zip(*needed, strict=True)))
    usual = [need for need, _ in times.most_common(CANDIDATES)]
    candidates = {tuple(map(max, zip(a, b, strict=True))) for a in usual for b in usual}

    def cost(rows: tuple[int, ...]) -> int:
        return sum(n * length for n, length in zip(rows, lengths, strict=True))

    def cheapest(need: tuple[int, ...], shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
        return min((rows for rows in shapes if all(map(int.__ge__, rows, need))), key=cost)

    def total(shapes: list[tuple[int, ...]]) -> int:
        return sum(count * cost(cheapest(need, shapes)) for need, count in times.items())

    shapes = [every]
    while len(shapes) < MOST_SHAPES:
        best = min(sorted(candidates), key=lambda rows: total([*shapes, rows]))
        saved = total(shapes) - total([*shapes, best])
        if saved < max(WORTH_A_SHAPE * total(shapes), COMPILING * cost(every)):
            break
        shapes.append(best)
    chosen = {need: cheapest(need, shapes) for need in times}
    return [chosen[need] for need in needed]


@dataclass(frozen=True, eq=False)
class Placed:
    """A batch as arrays, and where each text lies: length of rows by number, row, first token."""

    arrays: dict[str, Any]
    place_T: list[tuple[int, int, int]]


def batch(pieces: Sequence[Piece], shape: Shape) -> Placed:
    """Texts in rows of this shape, as arrays: "rows", for each length "token_BL", "token_type_BL", "text_BL" (numbers
    of texts from 1, 0 for padding), what the head wants of tokens and "entity_C4"; "group_T" and "target_TN"."""
    lengths = [length for length, _ in shape.rows]
    length_T = [len(piece.text.token_L) for piece in pieces]
    made, place_T = [], [(0, 0, 0)] * len(pieces)
    of_tokens = pieces[0].targets.of_tokens
    for number, (group, (length, rows)) in enumerate(zip(by_row_length(length_T, lengths), shape.rows, strict=True)):
        arrays = {
            name: np.full((rows, length, *value.shape[1:]), EMPTY.get(name, 0), np.int32)
            for name, value in of_tokens.items()
        }
        arrays |= {name: np.zeros((rows, length), np.int32) for name in ("token", "token_type", "text")}
        entities, used = [], [0] * rows
        for text, row in zip(group, best_fit([length_T[text] for text in group], length), strict=True):
            start = used[row]
            used[row] += length_T[text]
            place_T[text] = (number, row, start)
            _put(arrays, pieces[text], text + 1, row, slice(start, used[row]))
            entities += [(row, label, start + a, start + b) for a, b, label in pieces[text].targets.entity_S3.tolist()]
        rows_of = {f"{name}_{'BLN'[: array.ndim]}": array for name, array in arrays.items()}
        made.append(rows_of | {"entity_C4": _padded(np.array(entities, np.int32).reshape(-1, 4), shape.entities, -1)})
    group_T = np.unique([piece.text.example for piece in pieces], return_inverse=True)[1].astype(np.int32) + 1
    target_TN = np.stack([piece.targets.of_text_N for piece in pieces])
    whole = {"group_T": _padded(group_T, shape.texts, 0), "target_TN": _padded(target_TN, shape.texts, 0)}
    return Placed({"rows": tuple(made), **whole}, place_T)


def _put(arrays: dict[str, np.ndarray], piece: Piece, number: int, row: int, place: slice) -> None:
    arrays["token"][row, place] = piece.text.token_L
    arrays["token_type"][row, place] = piece.text.token_type_L
    arrays["text"][row, place] = number
    for name, value_L in piece.targets.of_tokens.items():
        arrays[name][row, place] = value_L


def _padded(array: np.ndarray, length: int, value: int) -> np.ndarray:
    return np.pad(array, [(0, length - len(array)), *[(0, 0)] * (array.ndim - 1)], constant_values=value)


def split_batches(pieces: Sequence[Piece], most: int, devices: int = 1) -> Iterator[tuple[list[int], Placed]]:
    """Every text of a split once, in batches of one shape for each length of rows (of `most` tokens at most), and the
    texts' numbers. A batch has as many rows for each of `devices`."""
    length_T = [len(piece.text.token_L) for piece in pieces]
    lengths = row_lengths(length_T, most)
    for group, length in zip(by_row_length(length_T, lengths), lengths, strict=True):
        row_T = best_fit([length_T[text] for text in group], length)
        a_device = min(max(1, TOKENS_AT_ONCE // length), -(-(max(row_T, default=0) + 1) // devices))
        at_once = devices * a_device
        batches: dict[int, list[int]] = {}
        for text, row in zip(group, row_T, strict=True):
            batches.setdefault(row // at_once, []).append(text)
        most = max(map(len, batches.values()), default=0)
        for numbers in batches.values():
            shape = Shape(((length, at_once),), most, 0)
            yield numbers, batch([_untold(pieces[text]) for text in numbers], shape)


def by_text(
    pieces: Sequence[Piece],
    most: int,
    work: Callable[[Any], Any],
    read: Callable[[np.ndarray, int, int, int, Text], Told],
    devices: int = 1,
) -> list[Told]:
    """What is made of each text of a split: `work` makes one array of the arrays of a batch, on the device, and `read`
    takes a text's part of it, by the text's number, row and first token there. Rows have `most` tokens at most, and
    their number is a multiple of `devices`."""
    told: dict[int, Told] = {}

    def read_all(numbers: list[int], placed: Placed, made: Any) -> None:
        made = np.asarray(made)
        for number, text in enumerate(numbers):
            _, row, start = placed.place_T[number]
            told[text] = read(made, number, row, start, pieces[text].text)

    before = None  # read while the device is at the next
    for numbers, placed in split_batches(pieces, most, devices):
        at_work = (numbers, placed, work(placed.arrays))
        if before is not None:
            read_all(*before)
        before = at_work
    if before is not None:
        read_all(*before)
    return [told[text] for text in range(len(pieces))]


def _untold(piece: Piece) -> Piece:
    """Without entities, whose number would be part of a batch's shape."""
    return piece._replace(targets=replace(piece.targets, entity_S3=NO_ENTITIES))
