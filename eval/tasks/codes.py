"""Documents with codes: which codes are kept, and which documents then."""

from collections import Counter
from collections.abc import Collection, Mapping

DOUBTS = (  # of tasks whose labels are the most frequent codes
    "the paper says macro F1; its code scores micro F1, and its published numbers fit that",
    "codes are chosen by how many documents of all splits have them, as in the paper's code",
    "of codes as frequent as each other the first of the alphabet is kept; the paper's code draws",
)


def keep_most_frequent(codes: Mapping[str, Collection[str]], most: int) -> dict[str, tuple[str, ...]]:
    """By document, sorted, its codes among the `most` that most documents have; without documents that then have none.

    Of codes in as many documents the first of the alphabet is kept.
    """
    counts = Counter(code for each in codes.values() for code in set(each))
    kept = set(sorted(counts, key=lambda code: (-counts[code], code))[:most])
    chosen = {document: tuple(sorted(kept & set(codes[document]))) for document in sorted(codes)}
    return {document: each for document, each in chosen.items() if each}
