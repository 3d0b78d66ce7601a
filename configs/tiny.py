"""The recipe at the size of a CPU: the same two phases, much smaller, and a longer decay.

Run:    python -m cptjax train configs/tiny.py --workdir runs/tiny --init MODEL --data.stores STORE 1
Cost:   minutes on 2 cores for a small model      Expect: see docs/results.md
"""

from dataclasses import replace

from configs.recipe import DECAY_MASK_RATE
from cptjax.config import Phase, Run
from cptjax.data.batches import Data
from cptjax.objectives import CLM, mlm
from cptjax.schedules import Schedule
from cptjax.shape import Precision

PEAK = 1e-3  # small models bear larger rates
CLM_TOKENS = 500_000
DECAY_TOKENS = 250_000  # not a tenth: that would be 25 steps, too few to learn reading both sides again


def get_config() -> Run:
    """CLM, then a masked decay, from the demo's base model on the demo's text."""
    schedule = Schedule(PEAK, warmup_tokens=CLM_TOKENS // 20)
    return Run(
        name="tiny",
        init="runs/demo/start",
        data=Data((("runs/demo/store_clinical", 1.0),), sequence_length=256, global_batch_size=8),
        phases=(
            Phase("clm", CLM, CLM_TOKENS, schedule),
            Phase(
                "decay",
                mlm(DECAY_MASK_RATE),
                DECAY_TOKENS,
                replace(schedule, warmup_tokens=0, shape="one_minus_sqrt"),
            ),
        ),
        precision=Precision(compute="float32"),  # bfloat16 gains nothing on a CPU
        held_out_rows=32,
        eval_every=100,
        checkpoint_every=100,
    )
