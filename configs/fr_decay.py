"""The decay of the French base model alone, of any length, off any step of its CLM phase: for a sweep of decays.

Run:    python -m cptjax train configs/fr_decay.py --workdir runs/fr_decay --branch-from runs/fr_base --step 3179
Cost:   not yet run      Expect: not yet run
"""

from dataclasses import replace

from configs import fr_base
from cptjax.config import Run


def get_config() -> Run:
    """The last phase of `fr_base`, on the rows that it would have read then."""
    run = fr_base.get_config()
    clm = run.stretches[0]
    return replace(run, name="fr_decay", phases=run.phases[1:], data=replace(run.data, first_batch=clm.last))
