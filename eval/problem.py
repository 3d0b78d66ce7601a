"""What a model is trained on and asked, and how."""

from collections.abc import Sequence
from dataclasses import dataclass

from eval import metrics
from eval.protocols import Protocol
from eval.tasks.task import Answer, Examples, Kind


@dataclass(frozen=True, eq=False)
class Problem:
    """A kind of task with its labels in their order, its examples by split, and how it is learnt; `metric` is what
    answers are judged by where one number decides."""

    kind: Kind
    labels: tuple[str, ...]
    examples: Examples
    protocol: Protocol
    metric: str

    def gold(self, split: str) -> list[Answer]:
        """The right answers of a split."""
        return [example.gold for example in self.examples[split]]

    def score(self, split: str, answers: Sequence[Answer]) -> float:
        """What answers of a split are worth by the metric, 0 to 1."""
        return metrics.score(self.metric, self.gold(split), answers, self.labels)
