"""The families of encoders: which network a shape belongs to, and which shape a name of transformers'."""

import reprlib
from typing import Any

from cptjax.bert import Bert
from cptjax.model import Encoder, ModernBert
from cptjax.shape import BertConfig, ModelConfig, ModernBertConfig

NETWORKS: dict[type[ModelConfig], type[Encoder]] = {ModernBertConfig: ModernBert, BertConfig: Bert}
SHAPES = {model_type: shape for shape in NETWORKS for model_type in shape.families}


def shape_of(model_type: Any) -> type[ModelConfig]:
    """The shape that this value of model_type names. Raises ValueError, with the choices, for what is none."""
    if not isinstance(model_type, str) or model_type not in SHAPES:
        raise ValueError(f"model_type is {reprlib.repr(model_type)}, it must be one of {', '.join(SHAPES)}")
    return SHAPES[model_type]


def encoder(config: ModelConfig, *parts: Any, **named: Any) -> Encoder:
    """The network of this shape; the other arguments are the fields of `Encoder`. Raises ValueError as it does, and for
    what is no shape."""
    if type(config) not in NETWORKS:
        raise ValueError(f"{config!r:.60} is no shape: give a {' or '.join(shape.__name__ for shape in NETWORKS)}")
    return NETWORKS[type(config)](config, *parts, **named)
