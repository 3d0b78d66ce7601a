"""One full training step, ours beside transformers' PyTorch ModernBertForMaskedLM with AdamW.

Both train the same shape on the same tokens in float32 on the same cores, each in a process of its own as
its users run it, in turns within one run, so that a noisy machine disturbs both; the figure that counts is
the ratio of the medians.
"""

import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cptjax import host, telemetry
from cptjax.model import ModelConfig, ModernBert, Precision, init_params
from cptjax.objectives import Vocabulary, cross_entropy, mlm
from cptjax.optim import AdamW, make_optimizer
from cptjax.step import CHUNK_TOKENS, chunk_positions, init_state, loss_and_counts, train_step

MASK_RATE = 0.15  # of the decay, the recipe's own masked phase (arXiv:2605.12438)
RATE = 1e-4  # learning rate
MASK = 50284  # ModernBERT's [MASK]
VOCABULARY = Vocabulary(50280, MASK, (50281, 50282, 50283))


def bench(rows: int, tokens: int, rounds: int, config: ModelConfig) -> dict:
    """Seconds per step of both, `rounds` times in turns after a warm-up of two; and their ratio."""
    token_BL = np.random.default_rng(0).integers(0, VOCABULARY.size, (rows, tokens), dtype=np.int32)
    seconds = {name: [] for name in STEPS}
    spawn = multiprocessing.get_context("spawn")
    pipes, workers = {}, []
    for name in STEPS:
        pipes[name], theirs = spawn.Pipe()
        workers.append(spawn.Process(target=_serve, args=(theirs, name, token_BL, config), daemon=True))
        workers[-1].start()
        theirs.close()  # or the end of a worker would never be heard of
    for round_ in range(-2, rounds):
        for name, pipe in pipes.items():
            pipe.send("step")
            try:
                took = pipe.recv()
            except EOFError:
                raise ChildProcessError(f"the process that runs {name} died; its own words are above") from None
            if round_ >= 0:
                seconds[name].append(took)
    for worker in workers:
        worker.terminate()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "rows": rows,
        "tokens": tokens,
        "seconds": seconds,
        "median": medians,
        "ratio": medians["cptjax"] / medians["transformers"],
    }


def _serve(pipe, name: str, token_BL: np.ndarray, config: ModelConfig) -> None:
    """Make one step for every message and answer with its seconds."""
    step = STEPS[name](token_BL, config)
    while pipe.recv():
        began = time.perf_counter()
        step()
        pipe.send(time.perf_counter() - began)


def our_step(token_BL: np.ndarray, config: ModelConfig) -> Callable[[], None]:
    """A closure that makes one update with the trainer's own step and waits for it."""
    host.keep_freed_memory()  # as `cptjax train` does on a CPU
    model = ModernBert(config, Precision(compute="float32"))
    tx = make_optimizer(AdamW(), RATE)
    state = jax.jit(lambda: init_state(init_params(model, jax.random.key(0)), tx))()
    update = jax.jit(
        partial(
            train_step,
            loss_fn=partial(
                loss_and_counts,
                model=model,
                objective=mlm(MASK_RATE),
                vocabulary=VOCABULARY,
                chunk=chunk_positions(token_BL.shape[0], config.vocab_size),
            ),
            tx=tx,
            rate_fn=lambda step: jnp.float32(RATE),
            trains=jax.tree.map(lambda x: jnp.float32(1.0), state.params),
            seed=0,
            micro_batches=1,
        ),
        donate_argnums=0,
    )
    batch = {"token_BL": jnp.asarray(token_BL), "segment_BL": jnp.ones(token_BL.shape, jnp.int32)}

    def step() -> None:
        nonlocal state
        state, metrics = update(state, batch)
        jax.block_until_ready((state, metrics))

    return step


def their_step(token_BL: np.ndarray, config: ModelConfig) -> Callable[[], None]:
    """The same with transformers, PyTorch and torch.optim.AdamW; masking drawn anew each step."""
    import torch
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    shape = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    model = ModernBertForMaskedLM(ModernBertConfig(**{name: getattr(config, name) for name in shape}))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    token = torch.from_numpy(token_BL).long()
    attention = torch.ones_like(token)

    def step() -> None:
        chosen = torch.rand(token.shape) < MASK_RATE
        inputs = torch.where(chosen, MASK, token)
        labels = torch.where(chosen, token, -100)
        model(input_ids=inputs, attention_mask=attention, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


STEPS = {"cptjax": our_step, "transformers": their_step}


def loss_memory(tokens: int, vocab_size: int, width: int) -> float:
    """Peak temporary memory, in MiB, of the CLM loss with its gradients, as XLA compiles it here."""
    shapes = ((1, tokens, width), (vocab_size, width), (vocab_size,))
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    target = jax.ShapeDtypeStruct((1, tokens), jnp.int32)
    weight = jax.ShapeDtypeStruct((1, tokens), jnp.float32)
    gradient = jax.jit(jax.value_and_grad(partial(cross_entropy, chunk=CHUNK_TOKENS), argnums=(0, 1, 2)))
    memory: Any = gradient.lower(*arrays, target, weight).compile().memory_analysis()
    return memory.temp_size_in_bytes / 2**20


def main(shapes: list[tuple[int, int]], rounds: int, out: Path | None) -> None:
    """Print the table and, if asked, write the JSON."""
    report = {
        "device": jax.devices()[0].device_kind,
        "versions": {**telemetry.versions()},
        "commit": telemetry.git_commit(),
        "loss_memory_mib": {"8192 x 50368 x 768": loss_memory(8192, 50368, 768)},
        "steps": [],
    }
    print(f"CLM loss, 8192 x 50368 x 768, with gradients: {report['loss_memory_mib']['8192 x 50368 x 768']:.0f} MiB")
    print(f"{'rows x tokens':16}{'cptjax s':>10}{'transformers s':>16}{'ratio':>8}")
    for rows, tokens in shapes:
        result = bench(rows, tokens, rounds, ModelConfig())
        report["steps"].append(result)
        median = result["median"]
        print(
            f"{f'{rows} x {tokens}':16}{median['cptjax']:10.2f}{median['transformers']:16.2f}{result['ratio']:8.2f}",
            flush=True,
        )
    if out is not None:
        out.write_text(json.dumps(report, indent=2) + "\n")
