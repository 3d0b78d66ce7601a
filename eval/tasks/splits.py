"""Splits that are cut by a seed, where the data has none of its own."""

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
SEED = 42  # of the splits of the papers' code


def shuffled(items: Sequence[T], shares: tuple[float, float], seed: int = SEED) -> dict[str, list[T]]:
    """Train, dev and test of items, which come in the order of their names: the first `shares` of them once shuffled,
    rounded down, and the rest."""
    order = list(items)
    random.Random(seed).shuffle(order)
    train, dev = (int(share * len(order)) for share in shares)
    return {"train": order[:train], "dev": order[train : train + dev], "test": order[train + dev :]}


def cut_dev(items: Sequence[T], share: float = 0.1, seed: int = SEED) -> tuple[list[T], list[T]]:
    """Train without dev, and dev: a `share` of the items, at least one, drawn by a seed; both in their order."""
    drawn = set(random.Random(seed).sample(range(len(items)), max(1, int(share * len(items)))))
    kept = [item for place, item in enumerate(items) if place not in drawn]
    return kept, [items[place] for place in sorted(drawn)]
