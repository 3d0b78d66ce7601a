"""French large: ModernCamemBERT-large to ModernCamemBERT-bio-large, 25B + 2.5B tokens.

Run:    python -m cptjax train configs/fr_large.py --workdir runs/fr_large
Twin:   add --mlm-twin for the matched masked baseline
Cost:   not yet run      Expect: not yet run
"""

from configs.recipe import FRENCH_STORES, clm_detour
from cptjax.config import Run


def get_config() -> Run:
    """The run of arXiv:2605.12438 for this model."""
    return clm_detour("fr_large", "almanach/moderncamembert-large", FRENCH_STORES, 25_000_000_000, remat="block")
