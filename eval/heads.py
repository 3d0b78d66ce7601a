"""What each kind of task asks of a head: targets of its texts, the loss of a step, and answers out of its scores.

B rows, L tokens (M as ends), D width, T texts and G examples of a step, N labels, C entities of all rows, U words and
S entities of a text.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from cptjax import heads
from cptjax.dropout import Dropping
from cptjax.model import Encoder
from cptjax.shape import BertConfig, ModelConfig
from eval import tagging
from eval.tasks.task import Answer, Example
from eval.texts import Text, Texts

Batch = Mapping[str, Any]  # what `packed.batch` makes of texts and targets
Scores = Mapping[str, float]
NO_TAG = -1


@dataclass(frozen=True, eq=False)
class Targets:
    """What is right of a text: of its tokens by name, [L] or [L, N] each; of itself, [N]; and entities by the places of
    their first and last tokens and label, [S, 3]."""

    of_tokens: dict[str, np.ndarray]
    of_text_N: np.ndarray
    entity_S3: np.ndarray


NO_TEXT_TARGET, NO_ENTITIES = np.zeros(0, np.float32), np.zeros((0, 3), np.int32)


class Head(ABC):
    """A kind of task, as training sees it. `stands` is what transformers' classifier gives labels to, None where it
    has no such class."""

    stands: ClassVar[Literal["texts", "tokens"] | None]
    outputs: int  # numbers of the classifier for a text or token
    dropout: float = 0.0  # of the head itself, where it has layers

    def shape(self, config: ModelConfig) -> ModelConfig:
        """The encoder under this head."""
        if self.stands is None:
            return _with_pooler(replace(config, head="none", num_labels=0), False)
        config = replace(config, head="classifier", num_labels=self.outputs)
        return _with_pooler(config, self.stands == "texts")

    def init(self, key: jax.Array, config: ModelConfig) -> dict[str, Any]:
        """Random parameters of what the network does not hold itself."""
        return {}

    @abstractmethod
    def targets(self, text: Text, words_U2: np.ndarray, example: Example) -> Targets:
        """What is right of a text."""

    @abstractmethod
    def loss(
        self, model: Encoder, params: Any, hidden: Sequence[jax.Array], batch: Batch, dropping: list[Dropping | None]
    ) -> jax.Array:
        """The mean loss of a step. `hidden` [B, L, D] is that of each of batch["rows"]; `dropping` has the keys of each
        of them, then of the texts."""

    @abstractmethod
    def scores(self, model: Encoder, params: Any, hidden_BLD: jax.Array, batch: Batch) -> jax.Array:
        """What answers are made of, of a batch of rows of one length."""

    @abstractmethod
    def of_text(self, score: np.ndarray, number: int, row: int, start: int, text: Text) -> np.ndarray:
        """The part of a batch's scores that is of a text, by its number, row and place there."""

    @abstractmethod
    def answers(
        self, texts: Texts, score: Sequence[np.ndarray], threshold: float
    ) -> tuple[list[Answer], list[Scores] | None]:
        """What is said of each example from what `of_text` gave, and how likely each label of a text is."""

    def best_answers(self, texts: Texts, examples: Sequence[Example]) -> list[Answer]:
        """The answers of a head that makes no mistake: what cannot be said in words of the tokenizer is not in them."""
        return [example.gold for example in examples]


def _with_pooler(config: ModelConfig, pooler: bool) -> ModelConfig:
    return replace(config, pooler=pooler) if isinstance(config, BertConfig) else config


# ---- whole texts


@dataclass(frozen=True)
class TextHead(Head):
    """Scores of a whole text: of several labels one is right, or any number; or of a choice how right it is."""

    labels: tuple[str, ...]
    right: Literal["one", "any"]
    of_choices: bool = False
    positive_N: tuple[float, ...] = ()  # of labels: what a right text counts, a wrong one counting 1
    fallback: bool = True

    stands = "texts"

    @property
    def outputs(self) -> int:
        """Numbers of the classifier for a text."""
        return 1 if self.of_choices else len(self.labels)

    def targets(self, text, words_U2, example):
        """1 where a label of the text, or the choice in it, is right."""
        names = [str(text.choice)] if self.of_choices else self.labels
        target_N = np.array([name in example.gold.labels for name in names], np.float32)
        return Targets({}, target_N, NO_ENTITIES)

    def loss(self, model, params, hidden, batch, dropping):
        """Cross-entropy where one is right, over the labels or over an example's choices; else of each label alone."""
        texts = len(batch["group_T"])
        pooled = [
            heads.pool(x, rows["text_BL"], texts, model.config.classifier_pooling)
            for x, rows in zip(hidden, batch["rows"], strict=True)
        ]
        pooled_T1D = jnp.stack(pooled).sum(0)[:, None].astype(hidden[0].dtype)
        score_TN = heads.token_scores(model, params, pooled_T1D, dropping[-1])[:, 0]
        return self.mean_loss(score_TN, batch["target_TN"], batch["group_T"])

    def mean_loss(self, score_TN: jax.Array, target_TN: jax.Array, group_T: jax.Array) -> jax.Array:
        """`group_T` numbers the examples that texts belong to, from 1; 0: no text."""
        real_T1 = (group_T > 0).astype(jnp.float32)[:, None]
        if self.right == "any":
            positive_N = jnp.asarray(self.positive_N or (1.0,) * self.outputs)[None]
            right_TN = positive_N * target_TN * jax.nn.log_sigmoid(score_TN)
            wrong_TN = (1 - target_TN) * jax.nn.log_sigmoid(-score_TN)
            return -((right_TN + wrong_TN) * real_T1).sum() / (real_T1.sum() * self.outputs)
        if not self.of_choices:
            return -(target_TN * jax.nn.log_softmax(score_TN)).sum() / real_T1.sum()
        group_GT = group_T[None] == jnp.arange(1, len(group_T) + 1, dtype=jnp.int32)[:, None]
        there_G = group_GT.any(1).astype(jnp.float32)
        total_G = jax.nn.logsumexp(jnp.where(group_GT, score_TN.T, -1e30), axis=1)
        return ((there_G * total_G).sum() - (target_TN * score_TN).sum()) / there_G.sum()

    def scores(self, model, params, hidden_BLD, batch):
        """[T, N]."""
        (rows,) = batch["rows"]
        return heads.text_scores(model, params, hidden_BLD, rows["text_BL"], len(batch["group_T"]))

    def of_text(self, score, number, row, start, text):
        """[N]."""
        return score[number]

    def answers(self, texts, score, threshold):
        """The likeliest where one is right; else those of at least this probability."""
        by_example: list[list[np.ndarray]] = [[] for _ in texts.words]
        for text, score_N in zip(texts.texts, score, strict=True):
            by_example[text.example].append(score_N)
        answered = [self._answer(np.concatenate(each).astype(np.float64), threshold) for each in by_example]
        return [answer for answer, _ in answered], [scores for _, scores in answered]

    def _answer(self, score_N: np.ndarray, threshold: float) -> tuple[Answer, Scores]:
        names = [str(i) for i in range(len(score_N))] if self.of_choices else self.labels
        chosen = [int(score_N.argmax())]
        if self.right == "one":
            share_N = np.exp(score_N - score_N.max())
            share_N /= share_N.sum()
        else:
            share_N = 1 / (1 + np.exp(-score_N))
            passed = np.flatnonzero(share_N >= threshold).tolist()
            chosen = passed or (chosen if self.fallback else [])
        shares = {name: round(float(share), 6) for name, share in zip(names, share_N, strict=True)}
        return Answer(labels=tuple(names[i] for i in chosen)), shares


# ---- entities


@dataclass(frozen=True)
class TokenHead(Head):
    """A tag for each word: flat entities."""

    labels: tuple[str, ...]

    stands = "tokens"

    @property
    def outputs(self) -> int:
        """Numbers of the classifier for a token."""
        return tagging.num_tags(self.labels)

    def targets(self, text, words_U2, example):
        """The tag of each word that the window speaks for, at its first token."""
        first, last = text.own
        tag_U = tagging.tags_of(example.gold.spans, words_U2, self.labels)[first:last]
        tag_L = np.full(len(text.token_L), NO_TAG, np.int32)
        tag_L[text.word_U[first - text.first_word : last - text.first_word]] = tag_U
        return Targets({"tag": tag_L}, NO_TEXT_TARGET, NO_ENTITIES)

    def loss(self, model, params, hidden, batch, dropping):
        """Cross-entropy, the mean over the step's words."""
        total, count = jnp.zeros(()), jnp.zeros(())
        for hidden_BLD, rows, own in zip(hidden, batch["rows"], dropping[:-1], strict=True):
            score_BLN = heads.token_scores(model, params, hidden_BLD, own)
            tag_BL = rows["tag_BL"]
            share_BL1 = jnp.take_along_axis(jax.nn.log_softmax(score_BLN), jnp.maximum(tag_BL, 0)[..., None], -1)
            told_BL = (tag_BL != NO_TAG).astype(jnp.float32)
            total, count = total - (told_BL * share_BL1[..., 0]).sum(), count + told_BL.sum()
        return total / jnp.maximum(count, 1.0)

    def scores(self, model, params, hidden_BLD, batch):
        """The likeliest tag, [B, L] int32."""
        return heads.token_scores(model, params, hidden_BLD).argmax(-1).astype(jnp.int32)

    def of_text(self, score, number, row, start, text):
        """[U] of the words that the window speaks for."""
        first, last = (word - text.first_word for word in text.own)
        return score[row, start + text.word_U[first:last]]

    def answers(self, texts, score, threshold):
        """The entities of the tags of all windows together."""
        tags = [np.zeros(len(words_U2), np.int32) for words_U2 in texts.words]
        for text, tag_U in zip(texts.texts, score, strict=True):
            tags[text.example][slice(*text.own)] = tag_U
        spans = (tagging.spans_of(tag_U, words, self.labels) for tag_U, words in zip(tags, texts.words, strict=True))
        return [Answer(spans=each) for each in spans], None

    def best_answers(self, texts, examples):
        """What the tags of the right answers give back."""
        tags = (
            tagging.tags_of(example.gold.spans, words, self.labels)
            for example, words in zip(examples, texts.words, strict=True)
        )
        spans = (tagging.spans_of(tag_U, words, self.labels) for tag_U, words in zip(tags, texts.words, strict=True))
        return [Answer(spans=each) for each in spans]
