"""The head of nested entities: a score for every span and label, behind recurrent layers and a chain of tags where the
protocol has them.

B rows, L tokens (M as ends), D width, N labels (twice, where entities have gaps), T tags, of a text U words and S
entities.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cptjax.dropout import Dropping, dropped_features
from eval import tagging
from eval.heads import NO_ENTITIES, NO_TEXT_TARGET, Batch, Head, Targets
from eval.spans import biaffine, crf
from eval.spans.gated_lstm import gated_lstm, init_layers
from eval.tasks.task import Answer, Example
from eval.texts import Text


@dataclass(frozen=True)
class SpanHead(Head):
    """How likely each span of words is an entity of each label: nested ones too, and with `gaps` those of several
    ranges.

    `layers` bidirectional LSTMs of `lstm_width` may stand before it; and with `tags` a chain of tags, which says what
    spans there can be: of these it takes the likeliest of those that begin or end with the same word, and the likely.
    """

    labels: tuple[str, ...]
    width: int
    longest: int
    threshold: float
    gaps: bool = False
    layers: int = 0
    lstm_width: int = 400
    tags: bool = False
    dropout: float = 0.0

    stands = None

    @property
    def outputs(self) -> int:
        """Labels of a span, and where there are gaps of a word and the one that follows it."""
        return len(self.labels) * (1 + self.gaps)

    def init(self, key, config):
        """All of it: nothing is the encoder's."""
        scorer_key, layers_key, tags_key = jax.random.split(key, 3)
        size = self.lstm_width if self.layers else config.hidden_size
        made: dict[str, Any] = biaffine.init_scorer(
            scorer_key, size, self.width, self.outputs, config.initializer_range
        )
        if self.layers:
            made["layers"] = init_layers(layers_key, config.hidden_size, self.lstm_width, self.layers)
        if self.tags:
            tags = len(self.labels) * crf.TAGS
            made["tags"] = config.initializer_range * jax.random.normal(tags_key, (tags, size))
            made["tags_bias"] = jnp.zeros(tags)
        return {"scorer": made}

    def targets(self, text, words_U2, example):
        """Numbers of words at their first tokens, which of them the window speaks for, entities by tokens, and tags."""
        word_L, own_L = np.zeros((2, len(text.token_L)), np.int32)
        word_L[text.word_U] = np.arange(1, len(text.word_U) + 1)
        own_U = slice(*(word - text.first_word for word in text.own))
        own_L[text.word_U[own_U]] = 1
        entity_S3 = tagging.candidates_of(example.gold.spans, words_U2, self.labels, self.gaps)
        of_tokens = {"word": word_L, "own": own_L}
        if self.tags:
            of_tokens["told"] = self._tags(entity_S3, text, own_U)
        entity_S3 = entity_S3[self._asked(entity_S3, text)]
        entity_S3[:, :2] = text.word_U[entity_S3[:, :2] - text.first_word]
        return Targets(of_tokens, NO_TEXT_TARGET, entity_S3)

    def _asked(self, entity_S3: np.ndarray, text: Text) -> np.ndarray:
        """Which entities this window is asked about."""
        first_S, last_S = entity_S3[:, 0], entity_S3[:, 1]
        reach_S = np.minimum(text.first_word + len(text.word_U), first_S + self.longest)
        return (first_S >= text.own[0]) & (first_S < text.own[1]) & (last_S < reach_S)

    def _tags(self, entity_S3: np.ndarray, text: Text, own_U: slice) -> np.ndarray:
        """Tags at the words' first tokens, [L, N]; any where the window does not speak for a word."""
        words = len(text.word_U)
        place_S2 = entity_S3[:, :2] - text.first_word
        whole_S = (place_S2[:, 0] >= 0) & (place_S2[:, 1] < words) & (entity_S3[:, 2] < len(self.labels))
        placed_S3 = np.concatenate([place_S2, entity_S3[:, 2:]], 1)[whole_S]
        tag_LN = np.full((len(text.token_L), len(self.labels)), crf.ANY, np.int32)
        tag_LN[text.word_U[own_U]] = crf.tags_of(placed_S3, words, len(self.labels))[own_U]
        return tag_LN

    def loss(self, model, params, hidden, batch, dropping):
        """Cross-entropy of every label of every span that is asked about, and the surprise at the tags, the sum over
        them by the step's words."""
        total, count = jnp.zeros(()), jnp.zeros(())
        for hidden_BLD, rows, own in zip(hidden, batch["rows"], dropping[:-1], strict=True):
            feature_BLD = self._features(params["scorer"], hidden_BLD, rows, own)
            score_BNLM = biaffine.span_scores(params["scorer"], feature_BLD)
            gold_BNLM = biaffine.gold_spans(rows["entity_C4"], score_BNLM.shape)
            loss_BNLM = jax.nn.softplus(score_BNLM) - gold_BNLM * score_BNLM
            total += jnp.where(self._asked_BLM(rows)[:, None], loss_BNLM, 0.0).sum()
            if self.tags:
                emission_BLNT = self._emissions(params["scorer"], feature_BLD)
                total += crf.surprise(emission_BLNT, rows["word_BL"], rows["told_BLN"])
            count += rows["own_BL"].sum().astype(jnp.float32)
        return total / jnp.maximum(count, 1.0)

    def _features(self, scorer: Any, hidden_BLD: jax.Array, rows: Batch, dropping: Dropping | None) -> jax.Array:
        """What scores are made of."""

        def drop(x: jax.Array, layer: int) -> jax.Array:
            return dropped_features(x, self.dropout, dropping, layer)

        if self.layers:
            hidden_BLD = gated_lstm(scorer["layers"], hidden_BLD, rows["word_BL"], rows["text_BL"], drop)
        return drop(hidden_BLD, self.layers)

    def _emissions(self, scorer: Any, feature_BLD: jax.Array) -> jax.Array:
        """Scores of each word's tags, [B, L, N, T] float32."""
        weight, bias = (scorer[name].astype(feature_BLD.dtype) for name in ("tags", "tags_bias"))
        score = jnp.einsum("bld,td->blt", feature_BLD, weight) + bias[None, None]
        return score.astype(jnp.float32).reshape(*score.shape[:2], len(self.labels), crf.TAGS)

    def _asked_BLM(self, rows):
        return biaffine.asked(rows["text_BL"], rows["word_BL"], rows["own_BL"] > 0, self.longest)

    def scores(self, model, params, hidden_BLD, batch):
        """Whether a span is an entity, [B, N, L, M]."""
        (rows,) = batch["rows"]
        feature_BLD = self._features(params["scorer"], hidden_BLD, rows, None)
        score_BNLM = biaffine.span_scores(params["scorer"], feature_BLD)
        likely_BNLM = jax.nn.sigmoid(score_BNLM) >= self.threshold
        asked_BLM = self._asked_BLM(rows)
        if self.tags:
            tag_BLNT = crf.likeliest(self._emissions(params["scorer"], feature_BLD), rows["word_BL"])
            there_BNLM = crf.spans_of_tags(tag_BLNT, rows["word_BL"]) & asked_BLM[:, None]
            told = slice(None, len(self.labels))
            likely_BNLM = likely_BNLM.at[:, told].set(_chosen(score_BNLM[:, told], likely_BNLM[:, told], there_BNLM))
        return likely_BNLM & asked_BLM[:, None]

    def of_text(self, score, number, row, start, text):
        """First and last word, and label, of each entity, [S, 3]."""
        place = slice(start, start + len(text.token_L))
        label_S, first_S, last_S = np.nonzero(score[row, :, place, place])
        word_L = np.zeros(len(text.token_L), np.int32)
        word_L[text.word_U] = np.arange(text.first_word, text.first_word + len(text.word_U))
        return np.stack([word_L[first_S], word_L[last_S], label_S], 1).astype(np.int32)

    def answers(self, texts, score, threshold):
        """The entities of all windows together."""
        by_example = [[NO_ENTITIES] for _ in texts.words]
        for text, entity_S3 in zip(texts.texts, score, strict=True):
            by_example[text.example].append(entity_S3)
        return [
            Answer(spans=tagging.spans_of_candidates(np.concatenate(entities), words, self.labels))
            for entities, words in zip(by_example, texts.words, strict=True)
        ], None

    def best_answers(self, texts, examples: Sequence[Example]):
        """The entities that some window is asked about."""
        asked = []
        for text in texts.texts:
            spans, words_U2 = examples[text.example].gold.spans, texts.words[text.example]
            entity_S3 = tagging.candidates_of(spans, words_U2, self.labels, self.gaps)
            asked.append(entity_S3[self._asked(entity_S3, text)])
        return self.answers(texts, asked, self.threshold)[0]


def _chosen(score_BNLM: jax.Array, likely_BNLM: jax.Array, there_BNLM: jax.Array) -> jax.Array:
    """Of spans that can be there, those that are likely, and the best of those of one first, and of one last, word."""
    score_BNLM = jnp.where(there_BNLM, score_BNLM, -jnp.inf)
    best_BNLM = (score_BNLM >= score_BNLM.max(-1, keepdims=True)) & (score_BNLM >= score_BNLM.max(-2, keepdims=True))
    return there_BNLM & (likely_BNLM | best_BNLM)
