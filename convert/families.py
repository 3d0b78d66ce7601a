"""The families that conversion knows."""

from typing import Any

from convert import table
from convert.bert import Bert
from convert.family import Family
from convert.modernbert import ModernBert
from cptjax.families import SHAPES
from cptjax.shape import ModelConfig

FAMILIES: dict[type[ModelConfig], Family[Any]] = {family.shape: family for family in (ModernBert(), Bert())}


def family_of(architecture: str) -> Family[Any]:
    """The family of a model class."""
    return FAMILIES[SHAPES[table.ARCHITECTURES[architecture].shape_type]]
