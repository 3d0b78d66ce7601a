"""Does the gain of the detour grow with the model? Three shapes, pretrained on the same text.

Run:    python -m eval study configs/studies/size.py --workdir studies/size --data.stores STORE 1
"""

from collections.abc import Callable
from dataclasses import replace

from configs import tiny, tiny_base, workstation
from configs.studies import detour
from cptjax.config import Phase, Run, mlm_twin
from cptjax.objectives import mlm
from cptjax.schedules import Schedule
from cptjax.shape import ModernBertConfig
from eval.study.study import Arm, Comparison, Study

WIDTHS = {"small": 128, "medium": 256, "large": 512}
LAYERS, HEAD = 6, 64
VOCABULARY = 50_368  # of ModernBERT's tokenizer
PRETRAINING_TOKENS = 10_000_000


def sized(width: int) -> Callable[[Run], Run]:
    """The run for a model of this width, pretrained first: masked as ModernBERT was, then adapted."""
    model = ModernBertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width // 2,
        num_hidden_layers=LAYERS,
        num_attention_heads=width // HEAD,
    )
    schedule = Schedule(tiny.PEAK, warmup_tokens=PRETRAINING_TOKENS // 20)
    pretraining = Phase("pretraining", mlm(tiny_base.MASK_RATE), PRETRAINING_TOKENS, schedule)
    return lambda run: replace(run, init=None, model=model, phases=(pretraining, *run.phases))


def get_study() -> Study:
    """Each size with the detour and with its twin."""
    arms = [
        Arm(f"{name}_{kind}", lambda run, width=width, change=change: change(sized(width)(run)))
        for name, width in WIDTHS.items()
        for kind, change in (("detour", lambda run: run), ("twin", mlm_twin))
    ]
    return replace(
        detour.get_study(),
        name="size",
        question="Does the gain of the causal detour grow with the model?",
        run=workstation.get_config(),
        arms=tuple(arms),
        comparisons=tuple(
            Comparison(title=f"{name}: {width} wide", arms=(f"{name}_detour",), against=f"{name}_twin")
            for name, width in WIDTHS.items()
        ),
        likeness=None,
    )
