"""docs/replication.md, part a: all-MiniLM-L6-v2 with a language-model head, adapted to articles on trials.

Run:    see docs/replication.md
"""

from dataclasses import replace

from configs import tiny
from configs.studies import decay, detour, freeze
from cptjax.dropout import Dropout
from eval.study.study import Comparison, Likeness, Study, Tasks

LAYERS = 6  # of the model
PEAK = 5e-4
CLM_TOKENS, DECAY_TOKENS = 98_304, 32_768
SHORT_DECAY = 1 / 12  # of the causal phase's tokens; the others have a third


def get_study() -> Study:
    """Detour, twin, the detour with layers frozen, and both with a shorter decay; five seeds."""
    run = tiny.get_config()
    clm, masked = run.phases
    warmed = replace(clm.schedule, peak=PEAK, warmup_tokens=CLM_TOKENS // 20)
    phases = (
        replace(clm, tokens=CLM_TOKENS, schedule=warmed),
        replace(masked, tokens=DECAY_TOKENS, schedule=replace(masked.schedule, peak=PEAK)),
    )
    more, shorter = freeze.arms(LAYERS), decay.arms((SHORT_DECAY,))
    names = ("detour", *(arm.name for arm in more))
    return Study(
        name="replication_english",
        question="Which claims of arXiv:2605.12438 show in a small English encoder?",
        run=replace(run, phases=phases, dropout=Dropout(0.0, 0.0, 0.0, 0.0), eval_every=16, checkpoint_every=1000),
        arms=(detour.DETOUR, detour.TWIN, *more, *shorter),
        comparisons=(
            Comparison(title="Freezing, beside the masked twin", arms=names, against="twin", gain="detour"),
            *decay.comparisons((SHORT_DECAY,)),
        ),
        tasks=Tasks(
            names=("bc5cdr", "anatem"),
            protocol="cpu",
            change={"learning_rate": 2e-4, "steps": 100, "evaluate_every": 100, "texts_per_step": 8},
            examples={"train": 1000, "dev": 200, "test": 500},
        ),
        likeness=Likeness(pairs=(("detour", "twin"),), samples=500, length=256),
    )
