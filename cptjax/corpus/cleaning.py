"""What may be left out of a corpus: by the columns of a row, as a repetition, as text of an evaluation set.

Words are runs of letters and digits in lower case, so that spacing and punctuation do not hide a copy.
W words, G n-grams of words, P numbers of a signature.
"""

import functools
import hashlib
import json
import math
import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cptjax.corpus import unpack
from cptjax.corpus.folders import walk
from cptjax.data.store import MOST_WEIGHT
from cptjax.files import check_regular

NGRAM = 13  # words that a document shares with an evaluation text (the length of arXiv:2005.14165, appendix C)
SHINGLE = 5  # words whose sets are compared for near-duplicates
SIGNATURE = 128  # numbers of a MinHash
SHINGLES_AT_ONCE = 2**14  # each needs a row of SIGNATURE numbers
ROWS_AT_ONCE = 64  # of a Parquet file: a cell may be large
TAG = re.compile(r"(O|[BIESLU](-\S+)?)$")  # of a token, in the files of entity tasks

OPERATORS = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class Condition:
    """A bound on a column, such as `score>=3` or `language==fr`: documents that miss it are left out."""

    field: str
    operator: str
    value: float | str

    def __str__(self) -> str:
        value = f"{self.value:g}" if isinstance(self.value, float) else self.value
        return f"{self.field}{self.operator}{value}"

    def holds(self, value: Any) -> bool:
        """Whether a row with this value stays; a missing one, null, NaN or an empty cell, meets no condition.

        ValueError if it is no number where one is asked for.
        """
        if value is None or value == "" or value != value:
            return False
        if isinstance(value, bool):
            value = str(value).lower()  # as JSON writes it
        if isinstance(self.value, str):
            return OPERATORS[self.operator](str(value), self.value)
        try:
            number = float(value)
            return not math.isnan(number) and OPERATORS[self.operator](number, self.value)
        except (TypeError, ValueError):
            raise ValueError(f"{self.field} is {value!r}, not a number that {self} could be asked of") from None


def parse_condition(text: str) -> Condition:
    """A condition from its text. ValueError when it is none."""
    match = re.fullmatch(r"\s*(.+?)\s*(>=|<=|==|!=|>|<)\s*(.+?)\s*", text)
    if not match:
        raise ValueError(f"{text!r} is no condition: write a column, one of {' '.join(OPERATORS)}, and a value")
    field, sign, value = match.groups()
    try:
        number = float(value) if math.isfinite(float(value)) else None
    except ValueError:
        number = None
    if number is None and sign not in ("==", "!="):
        raise ValueError(f"{text!r} orders text: {sign} needs a number")
    return Condition(field, sign, value if number is None else number)


def parse_steps(text: str) -> tuple[tuple[float, float], ...]:
    """Weight steps from `SCORE:WEIGHT,...`. ValueError when they are none."""
    try:
        steps = [tuple(map(float, step.split(":"))) for step in text.split(",") if text]
        return tuple((score, weight) for score, weight in steps)
    except ValueError:
        raise ValueError(f"{text!r} are no weight steps: write SCORE:WEIGHT,SCORE:WEIGHT") from None


@dataclass(frozen=True)
class Cleaning:
    """What is left out, and how often documents are shown. Everything is off unless asked for.

    Bounds on tokens count special ones. Of repetitions the first document stays; near-duplicates are documents whose
    sets of 5 words have an estimated Jaccard similarity of `near_threshold` or more (MinHash, 128 numbers), and chains
    of such. `weight_steps` are (score, weight) pairs in rising order: a document has the weight of the last step that
    its score reaches, below the first 0. A document of weight 0 is dropped.
    """

    keep_if: tuple[Condition, ...] = ()  # conditions on columns, all of which must hold
    min_tokens: int = 0  # shorter documents are dropped
    max_tokens: int | None = None  # longer documents are dropped; without it they are kept whole
    duplicates: Literal["keep", "exact", "near"] = "keep"  # which repetitions to drop
    near_threshold: float = 0.8  # Jaccard similarity of near-duplicates
    evaluation: tuple[str, ...] = ()  # files and folders that must not be trained on, separated by commas
    drop_contaminated: bool = False  # drop what shares 13 words in a row with them
    weight_steps: tuple[tuple[float, float], ...] = ()  # the weight column is a score, each step of it has a weight

    def __post_init__(self):
        if self.duplicates not in ("keep", "exact", "near"):
            raise ValueError(f"--duplicates is {self.duplicates!r}: it is keep, exact or near")
        if not 0.1 <= self.near_threshold <= 0.95:  # datasketch finds no bands for a signature outside
            raise ValueError(f"--near-threshold is {self.near_threshold}: it is a similarity from 0.1 to 0.95")
        if self.near_threshold != Cleaning.near_threshold and self.duplicates != "near":
            raise ValueError("--near-threshold is for --duplicates near: give that too")
        if self.min_tokens < 0:
            raise ValueError(f"--min-tokens is {self.min_tokens}: no document has fewer than 0")
        if self.max_tokens is not None and self.max_tokens < max(1, self.min_tokens):
            raise ValueError(f"--max-tokens is {self.max_tokens}: it is at least 1, and not below --min-tokens")
        if self.drop_contaminated and not self.evaluation:
            raise ValueError("--drop-contaminated is for --evaluation: name the files that must not be trained on")
        written = ",".join(f"{score:g}:{weight:g}" for score, weight in self.weight_steps)
        scores, weights = zip(*self.weight_steps, strict=True) if self.weight_steps else ((), ())
        if list(scores) != sorted(set(scores)) or not all(w >= 0 and math.isfinite(w) for w in weights):
            raise ValueError(f"--weight-steps {written}: scores must rise, with weights of 0 or more")

    def weight(self, value: float) -> float:
        """The weight of a document whose weight column holds `value`. ValueError when it is above MOST_WEIGHT."""
        if self.weight_steps:
            value = next((weight for score, weight in reversed(self.weight_steps) if value >= score), 0.0)
        if value > MOST_WEIGHT:
            raise ValueError(f"a weight of {value:g} would show it more than {MOST_WEIGHT} times in a pass: give less")
        return value


# ---- n-grams of words


@functools.lru_cache(2**18)
def _hash_word(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def hash_words(text: str) -> np.ndarray:
    """A number for each word of a text: uint64 [W], the same in every process."""
    words = re.findall(r"\w+", text.lower())
    return np.fromiter(map(_hash_word, words), np.uint64, len(words))


def hash_ngrams(word_W: np.ndarray, n: int) -> np.ndarray:
    """A number for each `n` words in a row: uint64 [W - n + 1], none for fewer words than n."""
    count = max(0, len(word_W) - n + 1)
    ngram_G = np.zeros(count, np.uint64)
    for i in range(n):
        ngram_G = mix(ngram_G + word_W[i : i + count])
    return ngram_G


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of MurmurHash3, of uint64: sums of mixed numbers keep their order apart."""
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return x ^ (x >> np.uint64(33))


# ---- what repetitions are found by


def hash_text(text: str) -> bytes:
    """16 bytes that name a text."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


@functools.cache
def _no_shingles() -> Any:
    """The MinHash of nothing, to be copied: drawing its permutations took two thirds of the time of a short text."""
    from datasketch import MinHash

    return MinHash(SIGNATURE, scheme="affine32", hashfunc=int)


def signature(word_W: np.ndarray) -> np.ndarray:
    """The MinHash of a document's shingles: uint32 [P]. A text shorter than a shingle is one by itself."""
    shingle_G = np.unique(hash_ngrams(word_W, max(1, min(SHINGLE, len(word_W))))) >> np.uint64(32)
    minhash = _no_shingles().copy()
    for start in range(0, len(shingle_G), SHINGLES_AT_ONCE):
        minhash.update_batch(shingle_G[start : start + SHINGLES_AT_ONCE].tolist())
    return minhash.hashvalues.astype(np.uint32)


# ---- evaluation sets


@dataclass(frozen=True)
class Evaluation:
    """The n-grams of evaluation texts, sorted (uint64 [G]), and the file each was first seen in."""

    ngram_G: np.ndarray
    file_G: np.ndarray
    files: tuple[str, ...]
    texts: int
    short: int

    def match(self, word_W: np.ndarray) -> int:
        """The evaluation file that an n-gram of a document is in, -1 when none is; of the first such n-gram."""
        ngram_G = hash_ngrams(word_W, NGRAM)
        if not (len(ngram_G) and len(self.ngram_G)):
            return -1
        place_G = np.minimum(np.searchsorted(self.ngram_G, ngram_G), len(self.ngram_G) - 1)
        hits = np.flatnonzero(self.ngram_G[place_G] == ngram_G)
        return int(self.file_G[place_G[hits[0]]]) if len(hits) else -1


def read_evaluation(paths: Sequence[str]) -> Evaluation:
    """The texts of evaluation files and folders.

    Every string of a .jsonl (also .gz, .zst), .json or Parquet file is a text; of tables (.csv, .tsv) every line;
    files of a token and its tag a line, and all others, are one text each. ValueError for a file that is no text,
    and for a path without any text that could be found.
    """
    ngrams, files, names = [], [], []
    texts = short = 0
    for path in map(Path, paths):
        before = texts - short
        for file in _evaluation_files(path):
            for text in _texts(file):
                word_W = hash_words(text)
                texts += len(word_W) > 0
                short += 0 < len(word_W) < NGRAM
                ngrams.append(hash_ngrams(word_W, NGRAM))
                files.append(np.full(len(ngrams[-1]), len(names), np.int32))
            names.append(file.relative_to(path.parent).as_posix())
        if texts - short == before:
            raise ValueError(f"{path} holds no text of {NGRAM} words or more: nothing of it could be found in a corpus")
    ngram_G, first_G = np.unique(np.concatenate([np.zeros(0, np.uint64), *ngrams]), return_index=True)
    file_G = np.concatenate([np.zeros(0, np.int32), *files])[first_G]
    return Evaluation(ngram_G, file_G, tuple(names), texts, short)


def _evaluation_files(path: Path) -> list[Path]:
    if not path.exists():
        raise FileNotFoundError(f"evaluation file {path} does not exist")
    check_regular(path)
    if path.is_file():
        return [path]
    return sorted(file for file, aside in walk(path, lambda _: False) if file.is_file() and not aside)


def _texts(path: Path) -> Iterator[str]:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in (".gz", ".zst")]
    kind = suffixes[-1] if suffixes else ""
    try:
        if kind == ".parquet":
            import pyarrow.parquet

            with pyarrow.parquet.ParquetFile(path) as table:
                for group in range(table.num_row_groups):
                    unpack.check_size(table.metadata.row_group(group).total_byte_size, path.stat().st_size)
                for batch in table.iter_batches(ROWS_AT_ONCE):
                    yield from _strings(batch.to_pylist())
            return
        stream = unpack.chunks(str(path))
        if kind in (".jsonl", ".ndjson"):
            for line in unpack.lines(stream):
                yield from _strings(json.loads(line) if line.strip() else None)
            return
        content = unpack.joined(stream).decode("utf-8-sig")
        if kind == ".json":
            yield from _strings(_json(content))
        else:
            yield from _words_of_tagged(content) or (content.split("\n") if kind in (".csv", ".tsv") else [content])
    except (*unpack.FAILURES, RecursionError) as error:
        raise ValueError(f"evaluation file {path} is not text that can be read ({error})") from None


def _json(content: str) -> Any:
    """A JSON value, or a list of those of lines."""
    try:
        return json.loads(content)
    except ValueError:
        return [json.loads(line) for line in content.split("\n") if line.strip()]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _words_of_tagged(content: str) -> list[str]:
    """The one text of a file of tokens and their tags; nothing for another file."""
    rows = [line.split() for line in content.split("\n") if line.strip()]
    tagged = [row[0] for row in rows if len(row) > 1 and TAG.fullmatch(row[-1])]
    return [" ".join(tagged)] if len(tagged) > 0.9 * len(rows) else []
