"""English large: ModernBERT-large to ModernBERT-bio-large, 50B + 5B tokens.

Run:    python -m cptjax train configs/en_large.py --workdir runs/en_large
Twin:   add --mlm-twin for the matched masked baseline
Cost:   not yet run      Expect: not yet run
"""

from configs.recipe import ENGLISH_STORES, clm_detour
from cptjax.config import Run


def get_config() -> Run:
    """The run of arXiv:2605.12438 for this model."""
    return clm_detour("en_large", "answerdotai/ModernBERT-large", ENGLISH_STORES, 50_000_000_000, remat="block")
