"""Pairs of a needle, a sentence, and a haystack, a long text that holds it or does not, made of texts by a seed.

Pairs come in fours: two needles, and a haystack with either of them at the same place. So every needle and every
haystack stands in one pair that holds and in one that does not: neither tells alone, nor does the seam. The rows of all
pairs have the same number of tokens.

T texts, S sentences of a text, L tokens of it.
"""

import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from cptjax.data.tokenizer import Encoder
from eval.tasks.splits import largest_remainders

SHARES = (0.7, 0.15)  # of train and dev, in pairs and in text; the rest is test
ENDS = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")  # of a sentence
LONGEST_SENTENCE = 40  # words: what is longer is cut
NEEDLE = (8, 32)  # tokens, at least and at most
ENCODED_AT_ONCE = 256  # texts
FOUR = ((0, 0), (1, 1), (1, 0), (0, 1))  # needle and haystack of each pair: it holds where the two are the same


class Sentence(NamedTuple):
    """A sentence, the number of its text, and its tokens there."""

    words: str
    text: int
    tokens: int


class Four(NamedTuple):
    """Two needles, and a haystack with the first of them and with the second."""

    needles: tuple[str, str]
    haystacks: tuple[str, str]


def make_fours(
    encoder: Encoder, texts: Iterable[str], lengths: Sequence[int], fours: int, seed: int
) -> dict[str, dict[int, list[Four]]]:
    """Fours of pairs whose rows have so many tokens, by split and length: `fours` of each length in all splits, fewer
    where the texts give no more. No text is in two splits, no sentence in two haystacks of a length."""
    sentences = cut(encoder, dict.fromkeys(texts))
    often = Counter(sentence.words.casefold() for text in sentences for sentence in text)
    once = {words for words, times in often.items() if times == 1}
    split = split_texts(sentences, np.random.default_rng(seed))
    return {
        name: {
            length: list(_made(encoder, split[name], once, length, size, np.random.default_rng([seed, length, number])))
            for length in lengths
        }
        for number, (name, size) in enumerate(sizes(fours).items())
    }


def sizes(fours: int) -> dict[str, int]:
    """How many fours of each split."""
    train, dev = largest_remainders(fours, SHARES)
    return {"train": train, "dev": dev, "test": fours - train - dev}


def cut(encoder: Encoder, texts: Iterable[str]) -> list[list[Sentence]]:
    """The sentences of each text that has any: a line has at least one, white space in them is a space."""
    parts = []
    for text in texts:
        words = [sentence.split() for sentence in ENDS.split(text)]
        starts = ((own, start) for own in words for start in range(0, len(own), LONGEST_SENTENCE))
        parts.append([" ".join(own[start : start + LONGEST_SENTENCE]) for own, start in starts])
    parts = [each for each in parts if each]
    made = []
    for first in range(0, len(parts), ENCODED_AT_ONCE):
        some = parts[first : first + ENCODED_AT_ONCE]
        for own, (_, offset_L2) in zip(some, encoder.with_offsets([*map(" ".join, some)]), strict=True):
            end_S = np.cumsum([len(words) + 1 for words in own])
            token_S = np.bincount(np.searchsorted(end_S, offset_L2[:, 1]), minlength=len(own)).tolist()
            made.append([Sentence(words, len(made), tokens) for words, tokens in zip(own, token_S, strict=True)])
    return made


def split_texts(texts: Sequence[list[Sentence]], random: np.random.Generator) -> dict[str, list[list[Sentence]]]:
    """The texts in a drawn order, cut into splits where these shares of all tokens are reached."""
    order = random.permutation(len(texts)).tolist()
    token_T = np.array([sum(sentence.tokens for sentence in texts[number]) for number in order])
    middle_T = (np.cumsum(token_T) - token_T / 2) / max(1, token_T.sum())
    of_T = np.searchsorted(np.cumsum(SHARES), middle_T).tolist()
    names = ("train", "dev", "test")
    return {name: [texts[n] for n, of in zip(order, of_T, strict=True) if names[of] == name] for name in names}


def _made(
    encoder: Encoder,
    texts: Sequence[list[Sentence]],
    once: Collection[str],
    length: int,
    fours: int,
    random: np.random.Generator,
) -> Iterator[Four]:
    """Fours, so many at most, of parts of the texts in a drawn order: short texts follow each other in another, too."""
    couples = _couples([sentence for text in texts for sentence in text if sentence.words.casefold() in once], random)
    parts = list(_parts([sentence for number in random.permutation(len(texts)) for sentence in texts[number]], length))
    tried = (_four(encoder, parts[number], couples, length, random) for number in random.permutation(len(parts)))
    yield from itertools.islice(filter(None, tried), fours)


def _parts(sentences: Sequence[Sentence], length: int) -> Iterator[list[Sentence]]:
    """Sentences cut where the next of them have so many tokens."""
    part, tokens = [], 0
    for sentence in sentences:
        part.append(sentence)
        tokens += sentence.tokens
        if tokens >= length:
            yield part
            part, tokens = [], 0


def _couples(sentences: Sequence[Sentence], random: np.random.Generator) -> list[tuple[Sentence, Sentence]]:
    """Needles, two of as many tokens from two texts, in a drawn order."""
    couples, waiting = [], {}
    for number in random.permutation(len(sentences)):
        sentence = sentences[number]
        if NEEDLE[0] <= sentence.tokens <= NEEDLE[1]:
            other = waiting.setdefault(sentence.tokens, sentence)
            if other.text != sentence.text:
                couples.append((waiting.pop(sentence.tokens), sentence))
    return couples


def _four(
    encoder: Encoder,
    sentences: Sequence[Sentence],
    couples: list[tuple[Sentence, Sentence]],
    length: int,
    random: np.random.Generator,
) -> Four | None:
    """A haystack of these sentences with the first needles that are of other texts, which are taken; None where there
    are none, or where it would not do."""
    own = {sentence.text for sentence in sentences}
    number = next((n for n, couple in enumerate(couples) if own.isdisjoint(each.text for each in couple)), None)
    if number is None:
        return None
    first, second = couples.pop(number)
    needles = (first.words, second.words)
    room = length - sum(map(len, encoder.around_two()))
    least, most = sorted(room - len(ids) for ids, _ in encoder.with_offsets(needles))  # tokens of the haystack
    before_S = np.cumsum([0, *(sentence.tokens for sentence in sentences)])
    place = int(random.integers(np.searchsorted(before_S, least - first.tokens, "right")))
    words = [sentence.words for sentence in sentences]
    haystacks = []
    for needle in needles:
        begin = " ".join([*words[:place], needle])
        text = " ".join([begin, *words[place:]])
        ((_, offset_L2),) = encoder.with_offsets([text])
        if len(offset_L2) < most or offset_L2[least - 1, 1] < len(begin):  # other tokens than in their text
            return None
        end = offset_L2[most - 1, 1]
        haystacks.append(text[:end] + text[end:].partition(" ")[0])  # to the end of a word
    known = [haystack.casefold() for haystack in haystacks]
    if any(needle.casefold() in other for needle, other in zip(needles, reversed(known), strict=True)):
        return None
    return Four(needles, (haystacks[0], haystacks[1]))
