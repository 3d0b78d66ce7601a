"""Is the causal detour worth it? The detour beside its masked twin, all else equal.

Run:    python -m eval study configs/studies/detour.py --workdir studies/detour --init MODEL --data.stores STORE 1
"""

from configs import workstation
from cptjax.config import mlm_twin
from eval.study.study import Arm, Comparison, Likeness, Study

DETOUR, TWIN = Arm("detour"), Arm("twin", mlm_twin)


def get_study() -> Study:
    """The detour and its twin."""
    return Study(
        name="detour",
        question="Is an encoder better after the causal detour than after masked training on the same tokens?",
        run=workstation.get_config(),
        arms=(DETOUR, TWIN),
        comparisons=(Comparison(title="The detour beside its twin", arms=("detour",), against="twin"),),
        likeness=Likeness(pairs=(("detour", "twin"),)),
    )
