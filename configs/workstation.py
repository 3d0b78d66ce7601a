"""One's own text, thousands to billions of tokens, on one GPU or a CPU: the phases as shares, sized by one number.

Run:    python -m cptjax train configs/workstation.py --workdir runs/mine --init MODEL --data.stores STORE 1 --passes 3
CPU:    add --precision.compute float32, which is faster there
Cost:   what python -m cptjax plan says with the same options      Expect: see docs/results.md
"""

from configs.recipe import DECAY_MASK_RATE, PEAK
from cptjax.config import Phase, Run
from cptjax.data.batches import Data
from cptjax.objectives import CLM, mlm
from cptjax.schedules import Schedule

TOKENS = 1_000_000  # of both phases; --passes or --tokens make it more or less
DECAY_SHARE = 0.2  # of them; the recipe's eleventh is too short to learn reading both sides again from little text
WARMUP_SHARE = 0.05  # of the causal phase


def get_config() -> Run:
    """The recipe in steps of 16,384 tokens."""
    clm, decay = round(TOKENS * (1 - DECAY_SHARE)), round(TOKENS * DECAY_SHARE)
    return Run(
        name="workstation",
        init="answerdotai/ModernBERT-base",
        data=Data((("stores/mine", 1.0),), sequence_length=512, global_batch_size=32),
        phases=(
            Phase("clm", CLM, clm, Schedule(PEAK, warmup_tokens=round(clm * WARMUP_SHARE))),
            Phase("decay", mlm(DECAY_MASK_RATE), decay, Schedule(PEAK, shape="one_minus_sqrt", final_ratio=0.1)),
        ),
        eval_every=100,
        checkpoint_every=100,
    )
