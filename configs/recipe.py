"""The recipe of arXiv:2605.12438 (ModernBERT-bio, ModernCamemBERT-bio), shared by the seed models.

A CLM phase with causal attention at a constant rate, then a masked decay of a tenth of its length with
the 1-sqrt schedule; the optimiser's moments are kept, the schedule clock restarts.
"""

from cptjax.config import Phase, Run
from cptjax.data.batches import Data
from cptjax.objectives import CLM, mlm
from cptjax.schedules import Schedule
from cptjax.shape import Remat

PEAK = 2e-4  # learning rate of both phases
WARMUP_TOKENS = 100_000_000
DECAY_SHARE = 0.1  # tokens of the decay, per token of the CLM phase
DECAY_MASK_RATE = 0.15

# Token stores to prepare, and their shares of the tokens.
FRENCH_STORES = (
    ("stores/fr/articles", 0.70),  # HAL, ISTEX, FineWiki-bio
    ("stores/fr/synthetic", 0.20),  # questions and textbooks on CIM-10, CCAM, ATC
    ("stores/fr/emea", 0.06),
    ("stores/fr/e3c", 0.04),
)
ENGLISH_STORES = (
    ("stores/en/pubmed", 0.60),  # Biomed-Enriched, educational articles of PMC
    ("stores/en/instructions", 0.20),
    ("stores/en/mimic", 0.20),  # MIMIC-III notes; credentialed access
)


def clm_detour(name: str, init: str, stores: tuple[tuple[str, float], ...], clm_tokens: int, *, remat: Remat) -> Run:
    """CLM on `clm_tokens`, then the masked decay: batches of 384 rows of 8,192 tokens."""
    constant = Schedule(PEAK, WARMUP_TOKENS)
    cool_down = Schedule(PEAK, shape="one_minus_sqrt", final_ratio=0.1)
    decay_tokens = round(clm_tokens * DECAY_SHARE)
    return Run(
        name=name,
        init=init,
        data=Data(stores, sequence_length=8192, global_batch_size=384, seed=42),
        phases=(
            Phase("clm", CLM, clm_tokens, constant),
            Phase("decay", mlm(DECAY_MASK_RATE), decay_tokens, cool_down),
        ),
        seed=17,
        device_batch_size=4,
        remat=remat,
    )
