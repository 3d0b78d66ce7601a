"""A task that is learnt in seconds, a model that learns it, and the same training by PyTorch."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from convert import to_hf
from cptjax.data.tokenizer import Encoder
from cptjax.families import encoder
from cptjax.shape import ModelConfig, Precision
from eval.bench.peer import NO_LABEL, move, optimizer_of, padded
from eval.choose_head import head_of
from eval.finetune import Split, order_of, prepare_splits
from eval.heads import Head, TextHead
from eval.packed import Piece
from eval.problem import Problem
from eval.protocols import Protocol, protocol_of
from eval.tasks.task import Answer, Example, Examples, Kind, Span
from eval.update import start_params
from tests.fixtures_text import WORDS

CLASSES = {  # by what stands
    "bert": {"texts": "BertForSequenceClassification", "tokens": "BertForTokenClassification"},
    "modernbert": {"texts": "ModernBertForSequenceClassification", "tokens": "ModernBertForTokenClassification"},
}
ENTITIES = {"heart": "ORGAN", "vessels": "ORGAN", "blood": "FLUID"}


def example(kind: Kind, number: int, random_: random.Random) -> Example:
    """Some words; of two pieces where the kind has them. Its labels are of the words in it."""
    words = random_.choices(WORDS, k=random_.randint(2, 9))
    text, spans = " ".join(words), []
    for place, word in enumerate(words):
        start = len(" ".join(words[:place])) + (place > 0)
        spans += [Span(((start, start + len(word)),), ENTITIES[word])] if word in ENTITIES else []
    labels = sorted({span.label for span in spans})
    if kind == "relation":
        return Example(str(number), text, Answer(("yes" if "mind" in words else "no",)), second="mind the heart")
    if kind == "multiple_choice":
        order = ["mind", "blood", "the"]
        random_.shuffle(order)
        return Example(str(number), text, Answer((str(order.index("mind")),)), choices=tuple(order))
    if kind == "multi_label":
        return Example(str(number), text, Answer(tuple(labels)))
    return Example(str(number), text, Answer(spans=tuple(sorted(spans))))


def examples(kind: Kind, train: int = 40) -> Examples:
    """A task of this kind."""
    random_ = random.Random(0)
    return {
        split: [example(kind, i, random_) for i in range(size)]
        for split, size in {"train": train, "dev": 12, "test": 12}.items()
    }


LABELS: dict[Kind, tuple[str, ...]] = {
    **dict.fromkeys(("entities", "nested_entities", "multi_label"), ("FLUID", "ORGAN")),
    "relation": ("no", "yes"),
    "multiple_choice": (),
}
METRICS: dict[Kind, str] = {
    "entities": "entity_f1",
    "nested_entities": "span_f1_exact",
    "multi_label": "micro_f1",
}  # else accuracy


def peer_losses(
    folder: Path, config: ModelConfig, params: Any, split: Split, head: Head, protocol: Protocol, seed: int
) -> list[float]:
    """Losses of each step as transformers and PyTorch have them, from the same weights, texts and order: AdamW without
    decay of norms and biases, linear schedule, clipped gradients, a text a row with padding."""
    model = encoder(head.shape(config), Precision("float32"))
    theirs = exported(folder, model.config, start_params(model, head, params, jax.random.key(seed)), head).train()
    orders = order_of(seed, split, protocol)
    optimizer, schedule = optimizer_of(theirs, protocol, len(orders))
    return [
        move(theirs, optimizer, schedule, peer_loss(theirs, [split.pieces[i] for i in order], head), protocol)
        for order in orders
    ]


def exported(folder: Path, config: ModelConfig, params: Any, head: Head) -> Any:
    """A model under a head, as transformers reads it."""
    import transformers

    architecture = CLASSES[config.model_type][head.stands or ""]
    to_hf.save(config, jax.device_get(params), folder, architecture=architecture)
    return getattr(transformers, architecture).from_pretrained(folder).eval()


def peer_loss(theirs: Any, pieces: Sequence[Piece], head: Head) -> Any:
    """The loss of some texts as transformers' classes define it."""
    import torch
    from torch.nn import functional

    logits = peer_logits(theirs, pieces)
    if not isinstance(head, TextHead):
        tags = [
            np.where(piece.targets.of_tokens["tag"] < 0, NO_LABEL, piece.targets.of_tokens["tag"]) for piece in pieces
        ]
        return functional.cross_entropy(logits.flatten(0, 1), padded(tags, NO_LABEL).flatten())
    target_TN = torch.tensor(np.stack([piece.targets.of_text_N for piece in pieces]))
    if head.right == "any":
        return functional.binary_cross_entropy_with_logits(logits, target_TN, pos_weight=torch.tensor(head.positive_N))
    if head.of_choices:
        choices = max(piece.text.choice for piece in pieces) + 1
        return functional.cross_entropy(logits.reshape(-1, choices), target_TN.reshape(-1, choices).argmax(1))
    return functional.cross_entropy(logits, target_TN.argmax(1))


def peer_logits(theirs: Any, pieces: Sequence[Piece]) -> Any:
    """What a model of transformers says of texts, one a row."""
    fed = {
        "input_ids": padded([piece.text.token_L for piece in pieces], 0),
        "attention_mask": padded([np.ones_like(piece.text.token_L) for piece in pieces], 0),
    }
    if theirs.config.model_type == "bert":
        fed["token_type_ids"] = padded([piece.text.token_type_L for piece in pieces], 0)
    return theirs(**fed).logits


def peer_answers(theirs: Any, split: Split, head: Head) -> list[Answer]:
    """The answers that a model of transformers gives, a text at a time."""
    import torch

    told = []
    for piece in split.pieces:
        with torch.no_grad():
            score = peer_logits(theirs, [piece]).numpy()
        score = score if head.stands == "texts" else score.argmax(-1)
        told.append(head.of_text(score, 0, 0, 0, piece.text))
    return head.answers(split.texts, told, 0.5)[0]


def problem_of(
    kind: Kind, changes: Mapping[str, Any] | None = None, of: Examples | None = None, protocol: str = "cpu"
) -> Problem:
    """A small task, with other examples than its own where they are given."""
    of, metric = examples(kind) if of is None else of, METRICS.get(kind, "accuracy")
    return Problem(kind, LABELS[kind], of, protocol_of(protocol, kind, changes or {}), metric)


def splits_of(config: ModelConfig, tokenizer: Encoder, problem: Problem) -> tuple[Head, dict[str, Split]]:
    """The head of a task, and its splits as tokens."""
    head = head_of(problem)
    return head, prepare_splits(config, tokenizer, problem, head)


def without_dropout(config: ModelConfig) -> ModelConfig:
    """The same, of which nothing is dropped."""
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob") if config.model_type == "bert" else ()
    return replace(config, **dict.fromkeys(names, 0.0))
