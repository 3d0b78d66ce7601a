"""How far bfloat16 takes a gradient from that in float32, for want of bits: ours, with either stream of hidden states,
beside PyTorch's mixed precision (autocast) of transformers' model, on the same weights, inputs and labels.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from convert import to_hf
from cptjax.families import encoder
from cptjax.model import init_params
from cptjax.shape import Precision
from cptjax.step import chunk_positions, loss_and_counts
from eval.bench.command import RoundingBench
from eval.bench.compare import ARCHITECTURES, BATCH, WEIGHTS, write_batch
from eval.bench.measure import SIZES, record
from eval.bench.step import OBJECTIVES, SEED, Case, batch_of, check_models

OURS = {
    "cptjax": Precision(),
    "cptjax, residual bfloat16": Precision(residual="bfloat16"),
}
AUTOCAST = "torch autocast"


def bench(case: Case) -> dict[str, float]:
    """By side, the norm of its bfloat16 gradient's distance from its own float32 one, by the norm of the latter."""
    params = jax.jit(init_params, static_argnums=0)(encoder(case.config), jax.random.key(SEED))
    batch = batch_of(case)
    exact = our_gradient(case, Precision(compute="float32"), params, batch)
    errors = {}
    for name, precision in OURS.items():
        errors[name] = float(_distance(our_gradient(case, precision, params, batch), exact))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ids = dict.fromkeys(to_hf.SPECIAL_TOKENS, case.vocabulary.special_token_ids[-1])
        to_hf.save(case.config, params, folder / WEIGHTS, architecture=ARCHITECTURES[case.objective], hf_config=ids)
        write_batch(case, batch, folder / BATCH)
        errors[AUTOCAST] = _autocast_error(ARCHITECTURES[case.objective], folder)
    return errors


@jax.jit
def _distance(gradient: Any, exact: Any) -> jax.Array:
    return optax.tree.norm(optax.tree.sub(gradient, exact)) / optax.tree.norm(exact)


def our_gradient(case: Case, precision: Precision, params: Any, batch: dict[str, jax.Array]) -> Any:
    """The gradient of the mean loss of the first step."""
    loss = partial(
        loss_and_counts,
        model=encoder(case.config, precision),
        objective=OBJECTIVES[case.objective],
        vocabulary=case.vocabulary,
        chunk=chunk_positions(case.rows, case.config.vocab_size),
    )
    key = jax.random.fold_in(jax.random.key(SEED), 0)
    row_B = jnp.arange(case.rows, dtype=jnp.int32)

    @jax.jit
    def gradient(*given: Any) -> Any:
        grads, counts = jax.grad(loss, has_aux=True)(*given)
        return jax.tree.map(lambda g: g / counts["targets"], grads)

    with precision.products():
        return gradient(params, batch["token_BL"], batch["segment_BL"], row_B, key)


def _autocast_error(architecture: str, folder: Path) -> float:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    kind = getattr(transformers, architecture)
    model = kind.from_pretrained(folder / WEIGHTS, attn_implementation="sdpa").train()
    model.config.use_cache = False  # a decoder's, of no use in training
    with np.load(folder / BATCH) as arrays:
        inputs, labels = (torch.from_numpy(arrays[name]).long() for name in ("input_BL", "label_BL"))

    def gradient(mixed: bool) -> Any:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = model(input_ids=inputs, labels=labels).loss
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    exact, rounded = gradient(False), gradient(True)
    return float((rounded - exact).norm() / exact.norm())


def run(asked: RoundingBench) -> None:
    """Print the table and, if asked, write the JSON."""
    check_models(asked)
    print(f"{'size':7}{'objective':11}{'rows x tokens':15}{'side':27}{'gradient error':>14}")
    records = []
    for size, objective, (rows, tokens) in (
        (s, o, x) for s in asked.sizes for o in asked.objectives for x in asked.shapes
    ):
        case = Case(SIZES[size], objective, rows, tokens)
        for side, error in bench(case).items():
            shape = {"objective": objective, "rows": rows, "tokens": tokens}
            records.append({"side": side, "size": size, **shape, "gradient_error": error})
            print(f"{size:7}{objective:11}{f'{rows} x {tokens}':15}{side:27}{error:14.2e}", flush=True)
        record(asked.out, 1, records)
