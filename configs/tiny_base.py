"""A small encoder from scratch by masked language modelling: what tiny.py then adapts.

Run:    python -m cptjax train configs/tiny_base.py --workdir runs/tiny_base --data.stores STORE 1
Cost:   minutes on 2 cores      Expect: see docs/results.md
"""

from dataclasses import replace

from configs import tiny
from cptjax.config import Phase, Run
from cptjax.objectives import mlm
from cptjax.schedules import Schedule
from cptjax.shape import ModernBertConfig

TOKENS = 600_000
MASK_RATE = 0.30  # ModernBERT's own pretraining


def get_config() -> Run:
    """Masked language modelling with a warm-up and a 1-sqrt decay over the whole run."""
    schedule = Schedule(tiny.PEAK, warmup_tokens=TOKENS // 20, shape="one_minus_sqrt")
    return replace(
        tiny.get_config(),
        name="tiny_base",
        init=None,
        model=ModernBertConfig(
            vocab_size=4096,
            hidden_size=128,
            intermediate_size=192,
            num_hidden_layers=4,
            num_attention_heads=2,
            max_position_embeddings=512,
        ),
        phases=(Phase("mlm", mlm(MASK_RATE), TOKENS, schedule),),
    )
