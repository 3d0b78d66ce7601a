"""Splits that are cut by a seed, where the data has none of its own."""

import math
import random
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
SEED = 42  # of the splits of the papers' code


def shuffled(items: Sequence[T], sizes: tuple[int, int], seed: int = SEED) -> dict[str, list[T]]:
    """Train, dev and test of items, which come in the order of their names: once shuffled the first, the next, `sizes`
    of them, and the rest."""
    order = list(items)
    random.Random(seed).shuffle(order)
    train, dev = sizes
    return {"train": order[:train], "dev": order[train : train + dev], "test": order[train + dev :]}


def rounded_down(count: int, shares: tuple[float, float]) -> tuple[int, int]:
    """How many of `count` are in train and dev: their shares, rounded down."""
    train, dev = (int(count * share) for share in shares)
    return train, dev


def largest_remainders(count: int, shares: tuple[float, float]) -> tuple[int, int]:
    """How many of `count` are in train and dev, where what rounding down leaves goes to the splits, test too, that it
    took most from."""
    exact = [count * share for share in (*shares, max(0.0, 1.0 - shares[0] - shares[1]))]
    sizes = [int(size) for size in exact]
    order = sorted(range(3), key=lambda split: exact[split] - math.floor(exact[split]), reverse=True)
    for split in order[: count - sum(sizes)]:
        sizes[split] += 1
    return sizes[0], sizes[1]


def drawn_by_datasets(items: Sequence[T], test: float, dev_of_rest: float, seed: int = SEED) -> dict[str, list[T]]:
    """Train, dev and test as two calls of `train_test_split` of Hugging Face's datasets draw them."""
    rest, last = _two_parts(items, test, seed)
    train, dev = _two_parts(rest, dev_of_rest, seed)
    return {"train": train, "dev": dev, "test": last}


def _two_parts(items: Sequence[T], share: float, seed: int) -> tuple[list[T], list[T]]:
    order = np.random.default_rng(seed).permutation(len(items))
    size = math.ceil(share * len(items))
    return [items[place] for place in order[size:]], [items[place] for place in order[:size]]


def cut_dev(items: Sequence[T], share: float = 0.1, seed: int = SEED) -> tuple[list[T], list[T]]:
    """Train without dev, and dev: a `share` of the items, at least one, drawn by a seed; both in their order."""
    drawn = set(random.Random(seed).sample(range(len(items)), max(1, int(share * len(items)))))
    kept = [item for place, item in enumerate(items) if place not in drawn]
    return kept, [items[place] for place in sorted(drawn)]
