"""Where does the gain of the detour arise? Layers are frozen in the causal phase, or in the decay.

arXiv:2605.12438 freezes the low 8 of 22 layers, the next 7, and the low ones in the decay; the high ones are the
control that it lacks.

Run:    python -m eval study configs/studies/freeze.py --workdir studies/freeze --init MODEL --data.stores STORE 1
"""

from collections.abc import Callable
from dataclasses import replace

from configs.studies import detour
from cptjax.config import Run
from eval.study.study import Arm, Comparison, Study

LAYERS = 22  # of the model
THIRDS = (8, 15)  # first of the middle layers, and of the high ones, of 22


def frozen(phase: int, first: int, last: int) -> Callable[[Run], Run]:
    """The run with the layers from `first` to before `last` frozen in a phase."""
    names = tuple(f"layers/{layer}/" for layer in range(first, last))

    def change(run: Run) -> Run:
        phases = [replace(each, frozen=names) if at == phase else each for at, each in enumerate(run.phases)]
        return replace(run, phases=tuple(phases))

    return change


def arms(layers: int) -> tuple[Arm, ...]:
    """The detour with thirds of so many layers frozen."""
    middle, high = (round(layers * first / 22) for first in THIRDS)
    return (
        Arm("low_frozen", frozen(0, 0, middle)),
        Arm("middle_frozen", frozen(0, middle, high)),
        Arm("high_frozen", frozen(0, high, layers)),
        Arm("low_frozen_in_decay", frozen(1, 0, middle)),
    )


def get_study() -> Study:
    """The detour, its twin, and the detour with layers frozen."""
    study, more = detour.get_study(), arms(LAYERS)
    names = ("detour", *(arm.name for arm in more))
    return replace(
        study,
        name="freeze",
        question="In which layers does the gain of the causal detour arise?",
        arms=(*study.arms, *more),
        comparisons=(Comparison(title="What freezing leaves of the gain", arms=names, against="twin", gain="detour"),),
    )
