"""Fine-tuning as a user of transformers and PyTorch writes it: their tokenizer, classes, losses and AdamW, a text a
row, padded to the longest of its step.

What the two sides agree on is not written twice: which words have tags and what tags say (`eval/tagging.py`), how
arguments are marked, what a threshold is.

L tokens and U words of a text, N labels.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cptjax.machine.host import cores
from eval import tagging
from eval.problem import Problem
from eval.protocols import Protocol
from eval.tasks.task import Answer, Example
from eval.texts import WORD, marked

KINDS = ("entities", "multi_label", "single_label", "relation")
TOLD_AT_ONCE = 32  # texts
NO_LABEL = -100  # of a token, as PyTorch's losses have it


def steps_of(problem: Problem) -> int:
    """Steps of a training."""
    protocol, texts = problem.protocol, len(problem.examples["train"])
    return protocol.steps or protocol.epochs * -(-texts // protocol.texts_per_step)


class Item(NamedTuple):
    """A text as the model takes it: arrays [L] by the names of its arguments, what is right, and its words."""

    inputs: dict[str, np.ndarray]
    target: np.ndarray  # of tokens [L], of labels [N], or the number of one
    first_U: list[int]  # tokens
    bound_U2: np.ndarray  # characters


def pretrained(folder: Path, problem: Problem) -> tuple[Any, Any]:
    """The tokenizer and the model under a classifier; what its folder has not is drawn by torch's seed."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # it warns of weights that are drawn
    torch.set_num_threads(cores())
    of_tokens = problem.kind == "entities"
    outputs = tagging.num_tags(problem.labels) if of_tokens else len(problem.labels)
    kind = (
        transformers.AutoModelForTokenClassification if of_tokens else transformers.AutoModelForSequenceClassification
    )
    return transformers.AutoTokenizer.from_pretrained(folder), kind.from_pretrained(folder, num_labels=outputs)


def encoded(tokenizer: Any, longest: int, problem: Problem, examples: Sequence[Example]) -> list[Item]:
    """Each example as the model takes it, cut to `longest` tokens."""
    longest = min(longest, problem.protocol.max_length)
    items = []
    for example in examples:
        text = example.text if problem.kind == "entities" else marked(example, problem.protocol)
        made = tokenizer(text, example.second, truncation=True, max_length=longest)
        first_U, bound_U2 = _words(made, text) if problem.kind == "entities" else ([], np.zeros((0, 2), int))
        if problem.kind == "entities":
            target = np.full(len(made["input_ids"]), NO_LABEL)
            target[first_U] = tagging.tags_of(example.gold.spans, bound_U2, problem.labels)
        elif problem.kind == "multi_label":
            target = np.array([label in example.gold.labels for label in problem.labels], np.float32)
        else:
            target = np.array(problem.labels.index(example.gold.labels[0]))
        items.append(Item({name: np.array(made[name]) for name in made}, target, first_U, bound_U2))
    return items


def _words(made: Any, text: str) -> tuple[list[int], np.ndarray]:
    """First token and characters of each word; words that begin in one token are one."""
    first: list[int] = []
    bounds: list[list[int]] = []
    for match in WORD.finditer(text):
        token = made.char_to_token(match.start())
        if first and token == first[-1]:
            bounds[-1][1] = match.end()
        elif token is not None:  # of what was cut, or is no character to the tokenizer
            first.append(token)
            bounds.append([*match.span()])
    return first, np.array(bounds, int).reshape(-1, 2)


def padded(arrays: Sequence[np.ndarray], value: int) -> Any:
    """A matrix of whole numbers, a text a row."""
    import torch

    rows = [torch.as_tensor(array).long() for array in arrays]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def collated(items: Sequence[Item], padding: int) -> dict[str, Any]:
    """The arguments of a model for some texts; `padding` is the token of that name."""
    names = items[0].inputs.keys()
    return {
        name: padded([item.inputs[name] for item in items], padding if name == "input_ids" else 0) for name in names
    }


def optimizer_of(model: Any, protocol: Protocol, steps: int) -> tuple[Any, Any]:
    """AdamW without decay of norms and biases, and transformers' schedule of its rate."""
    import torch
    import transformers

    still = {name for name, _ in model.named_parameters() if "bias" in name or "norm" in name.lower()}
    groups = [
        {"params": [p for name, p in model.named_parameters() if (name in still) == is_still], "weight_decay": decay}
        for is_still, decay in ((False, protocol.weight_decay), (True, 0.0))
    ]
    betas = (protocol.b1, protocol.b2)
    optimizer = torch.optim.AdamW(groups, lr=protocol.learning_rate, betas=betas, eps=protocol.eps)
    name = "linear" if protocol.schedule == "linear" else "constant_with_warmup"
    warmup = math.ceil(protocol.warmup * steps)
    return optimizer, transformers.get_scheduler(name, optimizer, warmup, steps)


def move(model: Any, optimizer: Any, schedule: Any, loss: Any, protocol: Protocol) -> float:
    """A step down a loss; returns it."""
    import torch

    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), protocol.clip_norm or float("inf"))
    optimizer.step()
    schedule.step()
    return float(loss.detach())


class Training:
    """One training, its head and what it drops drawn by a seed."""

    def __init__(self, folder: Path, problem: Problem, seed: int):
        import torch

        torch.manual_seed(seed)
        self.problem = problem
        self.tokenizer, self.model = pretrained(folder, problem)
        self.model.train()
        longest = self.model.config.max_position_embeddings
        self.items = encoded(self.tokenizer, longest, problem, problem.examples["train"])
        right_N = np.sum([item.target for item in self.items], 0) if problem.kind == "multi_label" else np.zeros(0)
        mixed_N = (right_N > 0) & (right_N < len(self.items)) & problem.protocol.positive_weights
        weight_N = np.where(mixed_N, (len(self.items) - right_N) / np.maximum(right_N, 1), 1)
        self._positive_N = torch.tensor(weight_N, dtype=torch.float32)
        self._optimizer, self._schedule = optimizer_of(self.model, problem.protocol, steps_of(problem))

    def step(self, numbers: Sequence[int]) -> float:
        """Learn from these texts; returns their loss."""
        items = [self.items[number] for number in numbers]
        return move(self.model, self._optimizer, self._schedule, self._loss(items), self.problem.protocol)

    def _loss(self, items: Sequence[Item]) -> Any:
        import torch

        inputs = collated(items, self.tokenizer.pad_token_id)
        targets = [item.target for item in items]
        if self.problem.kind == "entities":
            return self.model(**inputs, labels=padded(targets, NO_LABEL)).loss
        labels = torch.tensor(np.stack(targets))
        if self.problem.kind != "multi_label":
            return self.model(**inputs, labels=labels).loss
        loss = torch.nn.BCEWithLogitsLoss(pos_weight=self._positive_N)
        return loss(self.model(**inputs).logits, labels)


def shuffled(problem: Problem, seed: int) -> Iterator[list[int]]:
    """Numbers of the texts of each step, in an order of PyTorch's."""
    import torch

    generator, texts = torch.Generator().manual_seed(seed), len(problem.examples["train"])
    size = problem.protocol.texts_per_step
    passes = (torch.randperm(texts, generator=generator).split(size) for _ in itertools.count())
    return (numbers.tolist() for numbers in itertools.islice(itertools.chain.from_iterable(passes), steps_of(problem)))


def told(tokenizer: Any, model: Any, problem: Problem, examples: Sequence[Example]) -> tuple[list[Answer], list[float]]:
    """What a model says of examples, and how far each answer is from another one, in the model's scores."""
    import torch

    model.eval()
    items = encoded(tokenizer, model.config.max_position_embeddings, problem, examples)
    order = sorted(range(len(items)), key=lambda number: len(items[number].inputs["input_ids"]))
    answers, margins = [Answer()] * len(items), [0.0] * len(items)
    for first in range(0, len(order), TOLD_AT_ONCE):
        numbers = order[first : first + TOLD_AT_ONCE]
        with torch.no_grad():
            scores = model(**collated([items[number] for number in numbers], tokenizer.pad_token_id)).logits.numpy()
        for number, score in zip(numbers, scores, strict=True):
            answers[number], margins[number] = answer_of(problem, items[number], score)
    return answers, margins


def answer_of(problem: Problem, item: Item, score: np.ndarray) -> tuple[Answer, float]:
    """What the scores of a text say ([L, N] of tokens, else [N]), and how far they are from saying something else."""
    if problem.kind == "entities":
        score_UN = score[item.first_U]
        spans = tagging.spans_of(score_UN.argmax(-1), item.bound_U2, problem.labels)
        return Answer(spans=spans), _lead(score_UN)
    chosen, margin = [int(score.argmax())], _lead(score[None])
    if problem.kind == "multi_label":
        threshold = problem.protocol.threshold
        assert threshold != "dev"
        above_N = score - math.log(threshold / (1 - threshold))
        passed = np.flatnonzero(above_N >= 0).tolist()
        alone = not passed and problem.protocol.fallback
        margin = min(float(np.abs(above_N).min()), margin if alone else math.inf)
        chosen = chosen if alone else passed
    return Answer(labels=tuple(problem.labels[i] for i in chosen)), margin


def _lead(score_UN: np.ndarray) -> float:
    """The least lead of a best score over the next."""
    top_UN = np.sort(score_UN, -1)
    return float((top_UN[:, -1] - top_UN[:, -2]).min(initial=math.inf))
