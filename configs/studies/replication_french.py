"""docs/replication.md, part b: a small French ModernBERT, pretrained on leaflets, adapted to clinical cases.

Run:    see docs/replication.md
"""

from dataclasses import replace

from configs import tiny
from configs.studies import decay, detour, freeze
from eval.study.study import Comparison, Likeness, Study, Tasks

LAYERS = 6  # of the model
CLM_TOKENS, DECAY_TOKENS = 163_840, 49_152
SHORT_DECAY = 0.1  # of the causal phase's tokens; the others have 0.3


def get_study() -> Study:
    """Detour, twin, the detour with layers frozen, and both with a shorter decay; five seeds."""
    run = tiny.get_config()
    clm, masked = run.phases
    warmed = replace(clm.schedule, warmup_tokens=CLM_TOKENS // 20)
    phases = (replace(clm, tokens=CLM_TOKENS, schedule=warmed), replace(masked, tokens=DECAY_TOKENS))
    more, shorter = freeze.arms(LAYERS), decay.arms((SHORT_DECAY,))
    names = ("detour", *(arm.name for arm in more))
    return Study(
        name="replication_french",
        question="Which claims of arXiv:2605.12438 show in a small French encoder?",
        run=replace(run, phases=phases, eval_every=20, checkpoint_every=1000),
        arms=(detour.DETOUR, detour.TWIN, *more, *shorter),
        comparisons=(
            Comparison(title="Freezing, beside the masked twin", arms=names, against="twin", gain="detour"),
            *decay.comparisons((SHORT_DECAY,)),
        ),
        tasks=Tasks(
            names=("e3c_fr", "quaero_emea"),
            protocol="cpu",
            change={"learning_rate": 5e-4, "steps": 100, "evaluate_every": 100, "texts_per_step": 8},
        ),
        likeness=Likeness(pairs=(("detour", "twin"),), samples=500, length=256),
    )
