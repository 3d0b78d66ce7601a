"""The families of encoders: which network a shape belongs to, and which shape a name of transformers'."""

from typing import Any

from cptjax.bert import Bert
from cptjax.model import Encoder, ModernBert
from cptjax.shape import BertConfig, ModelConfig, ModernBertConfig

NETWORKS: dict[type[ModelConfig], type[Encoder]] = {ModernBertConfig: ModernBert, BertConfig: Bert}
SHAPES = {model_type: shape for shape in NETWORKS for model_type in shape.families}


def encoder(config: ModelConfig, *parts: Any, **named: Any) -> Encoder:
    """The network of this shape; the other arguments are the fields of `Encoder`."""
    return NETWORKS[type(config)](config, *parts, **named)
