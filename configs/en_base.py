"""English base: ModernBERT-base to ModernBERT-bio-base, 50B + 5B tokens.

Run:    python -m cptjax train configs/en_base.py --workdir runs/en_base
Twin:   add --mlm-twin for the matched masked baseline
Cost:   not yet run      Expect: not yet run
"""

from configs.recipe import ENGLISH_STORES, clm_detour
from cptjax.config import Run


def get_config() -> Run:
    """The run of arXiv:2605.12438 for this model."""
    return clm_detour("en_base", "answerdotai/ModernBERT-base", ENGLISH_STORES, 50_000_000_000, remat="none")
