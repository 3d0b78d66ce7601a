"""How long should the masked decay be? Several lengths off one causal phase, and off one masked phase.

Run:    python -m eval study configs/studies/decay.py --workdir studies/decay --init MODEL --data.stores STORE 1
"""

from collections.abc import Callable
from dataclasses import replace

from configs.studies import detour
from cptjax.config import Run, mlm_twin
from eval.study.study import Arm, Comparison, Study

SHARES = (0.025, 0.1, 0.2, 0.3, 0.5)  # of the causal phase's tokens, as in arXiv:2605.12438


def decayed(share: float) -> Callable[[Run], Run]:
    """The run with a decay of this share of its first phase."""

    def change(run: Run) -> Run:
        first, decay = run.phases
        return replace(run, phases=(first, replace(decay, tokens=round(first.tokens * share))))

    return change


def arms(shares: tuple[float, ...]) -> tuple[Arm, ...]:
    """The detour and its twin with decays of these shares."""
    return tuple(
        Arm(f"{name}_{1000 * share:03.0f}", lambda run, share=share, arm=arm: decayed(share)(arm(run)))
        for share in shares
        for name, arm in (("detour", lambda run: run), ("twin", mlm_twin))
    )


def comparisons(shares: tuple[float, ...]) -> tuple[Comparison, ...]:
    """The detour beside the twin, for each share."""
    return tuple(
        Comparison(
            title=f"A decay of {share:.1%}",
            arms=(f"detour_{1000 * share:03.0f}",),
            against=f"twin_{1000 * share:03.0f}",
        )
        for share in shares
    )


def get_study() -> Study:
    """Decays of five lengths."""
    return replace(
        detour.get_study(),
        name="decay",
        question="How long should the masked decay be?",
        arms=arms(SHARES),
        comparisons=comparisons(SHARES),
        likeness=None,
    )
