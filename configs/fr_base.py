"""French base: ModernCamemBERT-base to ModernCamemBERT-bio-base, 10B + 1B tokens.

Run:    python -m cptjax train configs/fr_base.py --workdir runs/fr_base
Twin:   add --mlm-twin for the matched masked baseline
Cost:   not yet run      Expect: not yet run
"""

from configs.recipe import FRENCH_STORES, clm_detour
from cptjax.config import Run


def get_config() -> Run:
    """The run of arXiv:2605.12438 for this model."""
    return clm_detour("fr_base", "almanach/moderncamembert-base", FRENCH_STORES, 10_000_000_000, remat="none")
