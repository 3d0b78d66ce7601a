"""Examples to tokens: what stands around a text, the two of a pair, marked arguments, windows of a long text, and the
words that labels belong to. Characters are the truth: every token knows which it comes from.

E examples of a split, L tokens of a text, U words of an example.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cptjax.data.tokenizer import Encoder
from cptjax.shape import ModelConfig
from eval.protocols import Protocol
from eval.tasks.task import Example, Kind, Span

MARKS = ("@", "#", "$", "%")  # around the first, second ... argument of a relation: in every vocabulary
WORD = re.compile(r"\w+|[^\w\s]")
ENTITIES = ("entities", "nested_entities")


@dataclass(frozen=True, eq=False)
class Text:
    """What one segment of a row holds: an example, a window of it, or it with one of its choices."""

    example: int  # its number in the split
    choice: int  # and the number of its choice, 0 where there is none
    token_L: np.ndarray
    token_type_L: np.ndarray
    word_U: np.ndarray  # place in `token_L` of the first token of each of its words; none where whole texts are told
    first_word: int = 0  # number in the example of its first word
    own: tuple[int, int] = (0, 0)  # numbers in the example of the words that it speaks for: first, one past the last


@dataclass(frozen=True, eq=False)
class Texts:
    """A split as tokens."""

    texts: list[Text]
    steps_of: list[tuple[int, ...]]  # numbers of the texts that go into a step together: an example's choices
    words: list[np.ndarray]  # by example: characters of each word, [U, 2]; empty where whole texts are told
    tokens_E: np.ndarray  # of the example, before anything was cut
    truncated_E: np.ndarray  # whether something was cut


def tokenise(
    encoder: Encoder, config: ModelConfig, examples: Sequence[Example], kind: Kind, protocol: Protocol
) -> Texts:
    """A split as tokens, for a model of this shape. Raises ValueError where a text has no room for any token."""
    longest = min(protocol.max_length, config.longest_document)
    if kind in ENTITIES:
        return _windows(encoder, examples, longest, protocol)
    types = getattr(config, "type_vocab_size", 1) > 1
    texts: list[Text] = []
    steps_of, tokens, cut = [], [], []
    pairs = [pair for example in examples for pair in _pairs(example, protocol)]
    first = encoder.with_offsets([pair[0] for pair in pairs])
    second = iter(encoder.with_offsets([pair[1] for pair in pairs if pair[1] is not None]))
    whole = iter(
        (ids, None if pair[1] is None else next(second)[0]) for (ids, _), pair in zip(first, pairs, strict=True)
    )
    for number, example in enumerate(examples):
        choices = range(max(1, len(example.choices)))
        steps_of.append(tuple(range(len(texts), len(texts) + len(choices))))
        made = [_joined(encoder, *next(whole), longest, types) for _ in choices]
        texts += [
            Text(number, choice, ids, type_L, np.zeros(0, np.int32)) for choice, (ids, type_L, _) in enumerate(made)
        ]
        tokens.append(max(length for *_, length in made))
        cut.append(any(length > len(ids) for ids, _, length in made))
    return Texts(texts, steps_of, [np.zeros((0, 2), np.int32)] * len(examples), np.array(tokens), np.array(cut, bool))


def _pairs(example: Example, protocol: Protocol) -> Iterator[tuple[str, str | None]]:
    """The texts of an example, each with what stands beside it."""
    text = marked(example, protocol)
    if example.choices:
        yield from ((text, choice) for choice in example.choices)
    else:
        yield text, example.second


def marked(example: Example, protocol: Protocol) -> str:
    """The text with its arguments marked as the protocol says.

    "around": @ the first @ and # the second #. "role": each replaced by its role, as @GENE$; two that overlap by both
    roles, as @CHEMICAL-GENE$.
    """
    if protocol.markers == "none" or not example.arguments:
        return example.text
    if protocol.markers == "role":
        return _with_roles(example.text, example.arguments)
    put = []  # character, whether it opens, mark; what closes comes before what opens at the same place
    for mark, argument in zip(MARKS * len(example.arguments), example.arguments, strict=False):
        put += [(argument.start, 1, f"{mark} "), (argument.end, 0, f" {mark}")]
    text = example.text
    for character, _, mark in sorted(put, reverse=True):
        text = text[:character] + mark + text[character:]
    return text


def _with_roles(text: str, arguments: Sequence[Span]) -> str:
    runs: list[list] = []  # start, end, roles
    for argument in sorted(arguments):
        if runs and argument.start < runs[-1][1]:
            runs[-1][1] = max(runs[-1][1], argument.end)
            runs[-1][2].append(argument.label)
        else:
            runs.append([argument.start, argument.end, [argument.label]])
    for start, end, roles in reversed(runs):
        text = f"{text[:start]}@{'-'.join(roles).upper()}${text[end:]}"
    return text


def _joined(
    encoder: Encoder, first_L: np.ndarray, second_L: np.ndarray | None, longest: int, types: bool
) -> tuple[np.ndarray, np.ndarray, int]:
    """Tokens and their types, cut to `longest`, and how many there were; of a pair the longer text is cut first, as
    the tokenizers library does."""
    if second_L is None:
        before, after = encoder.around_one()
        room = longest - len(before) - len(after)
        ids = np.array([*before, *first_L[:room], *after], np.int32)
        return ids, np.zeros_like(ids), len(first_L) + len(before) + len(after)
    before, between, after = encoder.around_two()
    around = len(before) + len(between) + len(after)
    room, lengths = longest - around, [len(first_L), len(second_L)]
    if sum(lengths) > room:
        shorter = min(*lengths, room // 2)
        lengths = [room - shorter, shorter] if lengths[0] > lengths[1] else [shorter, room - shorter]
    left = [*before, *first_L[: lengths[0]], *between]
    right = [*second_L[: lengths[1]], *after]
    type_L = np.array([0] * len(left) + [int(types)] * len(right), np.int32)
    return np.array(left + right, np.int32), type_L, len(first_L) + len(second_L) + around


# ---- entities: words and windows


def _windows(encoder: Encoder, examples: Sequence[Example], longest: int, protocol: Protocol) -> Texts:
    before, after = encoder.around_one()
    room = longest - len(before) - len(after)
    texts, words, tokens = [], [], []
    encoded = encoder.with_offsets([example.text for example in examples])
    for number, (example, (ids, offset_L2)) in enumerate(zip(examples, encoded, strict=True)):
        first_U, bound_U2 = words_of(example.text, offset_L2, every=protocol.token_labels == "every")
        words.append(bound_U2)
        tokens.append(len(ids) + len(before) + len(after))
        for start, (first, last), own in _places(len(ids), first_U, room, min(protocol.overlap, room // 4)):
            token_L = np.array([*before, *ids[start : start + room], *after], np.int32)
            word_U = first_U[first:last] - start + len(before)
            texts.append(Text(number, 0, token_L, np.zeros_like(token_L), word_U, first, own))
    alone = [(number,) for number in range(len(texts))]
    return Texts(texts, alone, words, np.array(tokens), np.zeros(len(examples), bool))


def words_of(text: str, offset_L2: np.ndarray, *, every: bool) -> tuple[np.ndarray, np.ndarray]:
    """The words of a text as tokens see them: the place of each one's first token [U], and its characters [U, 2].

    A token begins a word where a run of letters and digits, or any other sign, begins among its characters; with
    `every`, each token is a word of its own. A token that shares a character with the one before it goes on with its
    word, and so do tokens without characters of their own. Marks, such as an accent that is a character by itself,
    belong to what they stand on: a tokenizer that composes them leaves them out of its offsets.
    """
    starts = np.zeros(len(text) + 1, np.int32)
    starts[[match.start() for match in WORD.finditer(text)]] = 1
    before = np.concatenate([[0], starts.cumsum()])  # words that begin before each character
    first, bounds, reached = [], [], 0
    for token, (start, end) in enumerate(offset_L2.tolist()):
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        while start < end < len(text) and unicodedata.category(text[end])[0] == "M":
            end += 1
        if start == end:
            continue
        if not bounds or (start >= reached and (every or before[end] > before[start])):
            first.append(token)
            bounds.append([start, end])
        reached = bounds[-1][1] = max(reached, end)
    return np.array(first, np.int32), np.array(bounds, np.int32).reshape(-1, 2)


def _places(tokens: int, first_U: np.ndarray, room: int, overlap: int) -> Iterator[tuple[int, tuple[int, int], tuple]]:
    """Windows of at most `room` tokens: the first token, the words that begin in it, and those that it speaks for:
    each word is told where it has most context."""
    last = max(0, tokens - room)
    begin = [*range(0, last, max(1, room - overlap)), last]
    turns = [(a + room + b) // 2 for a, b in zip(begin, begin[1:], strict=False)]  # as far from either edge
    owned = np.searchsorted(first_U, [0, *turns, tokens]).tolist()
    for window, start in enumerate(begin):
        words = np.searchsorted(first_U, [start, start + room]).tolist()
        yield start, (words[0], words[1]), (owned[window], owned[window + 1])
