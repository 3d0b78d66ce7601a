"""What a linear classifier reads from the states of each layer of a frozen model: how much of a task is there before
any fine-tuning (Alain and Bengio 2016, arXiv:1610.01644).

N layers, the embeddings the first; B rows, L tokens; T texts of a batch; M of train, words where words are told; D
width; K tags or labels; E examples of a split.
"""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from cptjax import heads
from cptjax.command.bar import bar
from cptjax.data.tokenizer import Encoder
from cptjax.families import encoder as network
from cptjax.model import Encoder as Network
from cptjax.shape import ModelConfig, Precision
from eval import tagging
from eval.choose_head import head_of
from eval.finetune import Split, prepare_splits
from eval.heads import Batch, Head, TextHead, TokenHead
from eval.packed import by_text
from eval.problem import Problem
from eval.texts import ENTITIES, Text
from eval.update import layer_states

# As scikit-learn's LogisticRegression by default: its C, its bound of the gradient, and the same L-BFGS.
C, TOLERANCE = 1.0, 1e-4
ITERATIONS = 500
SAME = 1e-5  # deviation by mean of what differs by rounding alone


class Probed(NamedTuple):
    """The score of each layer, from the embeddings on, and the share of texts that were cut."""

    score_N: list[float]
    truncated: float


class Linear(NamedTuple):
    """A classifier of states."""

    weight_DK: np.ndarray
    bias_K: np.ndarray


def probe(
    config: ModelConfig,
    params: Any,
    encoder: Encoder,
    problem: Problem,
) -> Probed:
    """The score on dev of a classifier on each layer of a frozen model, fitted to train. Texts are pooled as a
    fine-tuned model's are; entities, nested ones too, are told by a tag for each word."""
    kind = "entities" if problem.kind in ENTITIES else problem.kind
    of = {split: problem.examples[split] for split in ("train", "dev")}
    problem = replace(problem, kind=kind, examples=of)
    head, protocol = head_of(problem), problem.protocol
    splits = prepare_splits(config, encoder, problem, head)
    model, params = network(config, Precision("float32")), jax.device_put(params)
    fitted = _fitted(model, params, head, splits["train"])
    weight_NDK, bias_NK = (np.stack(each) for each in zip(*fitted, strict=True))
    work = partial(scores, model, head, params, *jax.device_put((weight_NDK, bias_NK)))
    told = by_text(splits["dev"].pieces, config.longest_document, work, partial(_layers_of, head))
    threshold = 0.5 if protocol.threshold == "dev" else protocol.threshold
    values = []
    for layer in range(len(fitted)):
        answers, _ = head.answers(splits["dev"].texts, [each[layer] for each in told], threshold)
        values.append(problem.score("dev", answers))
    return Probed(values, float(np.mean([*splits["train"].texts.truncated_E, *splits["dev"].texts.truncated_E])))


@partial(jax.jit, static_argnums=(0, 1))
def states(model: Network, head: Head, params: Any, batch: Batch) -> jax.Array:
    """What a head reads, of every layer: of texts [N, T, D], of words [N, B, L, D], as `layer_states`
    has them."""
    (rows,) = batch["rows"]
    with model.precision.products():
        layer_NBLD = layer_states(model, params, rows)
    if head.stands == "tokens":
        return layer_NBLD
    text_BL, texts, pooling = rows["text_BL"], len(batch["group_T"]), model.config.classifier_pooling
    return jax.vmap(lambda hidden_BLD: heads.pool(hidden_BLD, text_BL, texts, pooling))(layer_NBLD)


@partial(jax.jit, static_argnums=(0, 1))
def scores(model: Network, head: Head, params: Any, weight_NDK, bias_NK, batch: Batch) -> jax.Array:
    """What classifiers of all layers say of a batch, in the form of the head's own scores, one for each layer."""
    state = states(model, head, params, batch)
    with model.precision.products():
        score = jnp.einsum("n...d,ndk->n...k", state, weight_NDK)
    score += bias_NK.reshape(len(bias_NK), *(1,) * (state.ndim - 2), -1)
    return score.argmax(-1).astype(jnp.int32) if head.stands == "tokens" else score


def _layers_of(head: Head, made_N: np.ndarray, number: int, row: int, start: int, text: Text) -> list[np.ndarray]:
    """A text's part of what a batch gave, for each layer."""
    return [head.of_text(made, number, row, start, text) for made in made_N]


def _fitted(model: Network, params: Any, head: Head, train: Split) -> list[Linear]:
    """A classifier of each layer."""
    work = partial(states, model, head, params)
    told = by_text(train.pieces, model.config.longest_document, work, partial(_layers_of, head))
    said, target_MK, group_M = _targets(head, train)
    join = np.concatenate if head.stands == "tokens" else np.stack
    layers = len(told[0])
    with bar(layers, " layers") as shown:
        fitted = []
        for layer in range(layers):
            fitted.append(fit(said, join([each[layer] for each in told]), target_MK, group_M))
            shown.update()
    return fitted


def _targets(head: Head, train: Split) -> tuple[TextHead, np.ndarray, np.ndarray]:
    """How right answers are scored, which they are, and the number from 1 of the example that each is of."""
    if isinstance(head, TokenHead):
        tags = [head.of_text(piece.targets.of_tokens["tag"][None], 0, 0, 0, piece.text) for piece in train.pieces]
        names = tagging.tag_names(head.labels)
        tag_M = np.concatenate(tags)
        return TextHead(tuple(names), "one"), np.eye(len(names), dtype=np.float32)[tag_M], np.arange(1, len(tag_M) + 1)
    assert isinstance(head, TextHead)
    target_MK = np.stack([piece.targets.of_text_N for piece in train.pieces])
    return head, target_MK, np.array([piece.text.example + 1 for piece in train.pieces])


def fit(head: TextHead, state_MD: np.ndarray, target_MK: np.ndarray, group_M: np.ndarray) -> Linear:
    """The classifier with the least loss of this head on states whose deviation is made 1, with a penalty of squared
    weights, by L-BFGS: for labels of texts what scikit-learn's LogisticRegression finds."""
    width, outputs = state_MD.shape[1], target_MK.shape[1]
    mean_D, deviation_D = moments(state_MD)
    terms = target_MK.size if head.right == "any" else len(np.unique(group_M))  # that the loss is the mean of
    data = jax.device_put(((state_MD - mean_D) / deviation_D, target_MK, group_M.astype(np.int32)))

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = penalised(head, flat.astype(np.float32).reshape(width + 1, outputs), *data, terms)
        return float(value), np.asarray(gradient, np.float64).ravel()

    options = {"maxiter": ITERATIONS, "gtol": TOLERANCE}
    start = np.zeros((width + 1) * outputs)
    best = scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
    weight_DK = best.reshape(width + 1, outputs)[:-1] / deviation_D[:, None]
    bias_K = best[-outputs:] - mean_D @ weight_DK
    return Linear(weight_DK.astype(np.float32), bias_K.astype(np.float32))


def moments(state_MD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the deviation of states, which is 1 where they are the same but for rounding."""
    mean_D, deviation_D = state_MD.mean(0), state_MD.std(0)
    same_D = deviation_D <= SAME * np.abs(mean_D)  # a first token's embedding, in every text
    deviation_D[same_D] = 1
    return mean_D, deviation_D


@partial(jax.jit, static_argnums=0)
@partial(jax.value_and_grad, argnums=1)
def penalised(head: TextHead, table, state_MD, target_MK, group_M, terms) -> jax.Array:
    """The mean loss and the penalty of a table [D + 1, K] of weights, the last of them biases, which cost nothing."""
    with jax.default_matmul_precision("highest"):
        score_MK = state_MD @ table[:-1] + table[-1:]
    return head.mean_loss(score_MK, target_MK, group_M) + (table[:-1] ** 2).sum() / (2 * C * terms)
