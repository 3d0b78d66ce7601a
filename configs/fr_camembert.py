"""French RoBERTa: CamemBERTv2 through the detour, in rows of 1,024 tokens.

arXiv:2605.12438 reports +1.48 over eight French tasks for CamemBERTv2 and gives no numbers of that run: the tokens, the
rows and the batch are our choice, all else is the paper's recipe. Dropout is as the model's config has it.

Run:    python -m cptjax train configs/fr_camembert.py --workdir runs/fr_camembert
Twin:   add --mlm-twin for the matched masked baseline
Cost:   not yet run      Expect: not yet run
"""

from dataclasses import replace

from configs.recipe import FRENCH_STORES, clm_detour
from cptjax.config import Run

TOKENS = 10_000_000_000  # of the CLM phase: as for the ModernBERT of this size
ROWS = 3072  # of 1,024 tokens: the tokens of the paper's batch


def get_config() -> Run:
    """The recipe of arXiv:2605.12438 on this model."""
    run = clm_detour("fr_camembert", "almanach/camembertv2-base", FRENCH_STORES, TOKENS, remat="none")
    return replace(
        run,
        data=replace(run.data, sequence_length=1024, global_batch_size=ROWS),
        device_batch_size=32,
    )
