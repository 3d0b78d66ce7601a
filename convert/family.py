"""What conversion asks of a family of encoders, beside its rows in `table`: how a config.json and a shape are made of
each other. A family is a subclass in a file of its own, and a line in `families`."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, ClassVar, Generic, TypeVar

from convert import table
from cptjax.shape import ModelConfig

Shape = TypeVar("Shape", bound=ModelConfig)


@contextmanager
def refusals() -> Iterator[None]:
    """What transformers raises for a bad config, of many types, as a ValueError."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"transformers refuses this config: {reason}") from error


class Family(Generic[Shape]):
    """One family; the methods here are for one whose fields are called as transformers' are."""

    shape: ClassVar[type[ModelConfig]]
    unsaid: ClassVar[frozenset[str]]  # fields of the shape that config.json has not
    apart: ClassVar[frozenset[str]]  # fields that it has not always, or under other names
    anew: ClassVar[frozenset[str]] = frozenset()  # fields of config.json that are said anew for each export
    layers: ClassVar[str]  # where transformers' encoder has its layers
    scores: ClassVar[dict[str, dict[str, tuple[str, ...]]]]  # its modules that score tokens, by model_type and `stands`

    def prepared(self, raw: dict[str, Any], architecture: str) -> dict[str, Any]:
        """A config.json as transformers should read it. Raises ValueError for what has no counterpart here."""
        return raw

    def said(self) -> set[str]:
        """The fields of the shape that some config.json has."""
        return {field.name for field in fields(self.shape)} - {"head", "model_type"} - self.unsaid

    def same(self) -> list[str]:
        """Those that transformers' config classes call alike; of labels the head decides."""
        return sorted(self.said() - self.apart - {"num_labels"})

    def values(self, normal: Any, architecture: str) -> dict[str, Any]:
        """The other fields, from transformers' config. Raises ValueError for what has no counterpart here."""
        return {}

    def check(self, raw: dict[str, Any], config: Shape, architecture: str) -> None:
        """Raise ValueError where some version of transformers would read another model than `config`."""

    def fitted(self, config: Shape, architecture: str, tensors: Collection[str]) -> Shape:
        """The shape once the names of the tensors are known: of what no config.json tells."""
        return config

    def fields(self, config: Shape, architecture: str) -> dict[str, Any]:
        """config.json's fields for what is `apart`, as the installed transformers has them."""
        return {}

    def fields_of_4(self, config: Shape, architecture: str) -> dict[str, Any]:
        """config.json's fields that version 4 reads where version 5 has others."""
        return {}

    def versions(self, config: Shape, architecture: str) -> str:
        """The versions of transformers that have the model class and give this model the same numbers, as pip says."""
        raise NotImplementedError

    def cautions(self, config: Shape, ids: Mapping[str, int | None]) -> list[str]:
        """What to know of this model beside a tokenizer with these special ids, by config.json's names."""
        return []

    def is_decoder(self, architecture: str) -> bool:
        """Whether the model class reads causally."""
        return table.ARCHITECTURES[architecture].mask_mode == "causal"
