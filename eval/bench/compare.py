"""One training step, ours beside transformers' PyTorch ModernBERT: same device, weights, inputs and labels.

Each side lives in a process of its own, as its users run it, and steps are made in turns. A whole step counts:
forward, backward, clipping, AdamW (or, if asked, the forward pass alone); bfloat16 products on a GPU (PyTorch by
autocast), float32 on a CPU. The first step's loss and gradient norm must agree with ours, or a side is not timed.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from convert import to_hf
from cptjax.command.errors import reason
from cptjax.files import check_out
from cptjax.machine.host import cores
from cptjax.objectives import Targets, draw
from eval.bench.command import CompareBench
from eval.bench.measure import SIZES, check_names, compute_dtype, in_turns, mib_of, record
from eval.bench.step import OBJECTIVES, RATE, SEED, Case, Step, check_models, describe, speed

OURS = "cptjax"


class Peer(NamedTuple):
    """How PyTorch runs the model: transformers' name of the attention, and whether torch.compile sees all of it."""

    attention: str
    compiled: bool = False


PEERS = {
    "eager": Peer("eager"),
    "sdpa": Peer("sdpa"),
    "flex": Peer("flex_attention"),
    "compile": Peer("sdpa", compiled=True),
}
ARCHITECTURES = {"mlm": "ModernBertForMaskedLM", "clm": "ModernBertDecoderForCausalLM"}
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # relative, of the first step's loss and gradient norm
WEIGHTS, BATCH = "model", "batch.npz"  # in the folder that both sides read


def our_step(case: Case, folder: Path) -> Callable[[], dict]:
    """Our step; its weights and the batch that it will draw are written for the peers first."""
    step = Step(case)
    # transformers wants ids of this vocabulary; the token is not in the batch.
    ids = dict.fromkeys(to_hf.SPECIAL_TOKENS, case.vocabulary.special_token_ids[-1])
    architecture = ARCHITECTURES[case.objective]
    to_hf.save(case.config, step.state.params, folder / WEIGHTS, architecture=architecture, hf_config=ids)
    write_batch(case, step.batch, folder / BATCH)
    step.compile()

    def run() -> dict:
        values, stats = step(), jax.devices()[0].memory_stats()
        return values | {"peak_mib": stats["peak_bytes_in_use"] / 2**20 if stats else resident_peak()}

    return run


def write_batch(case: Case, batch: dict[str, jax.Array], path: Path) -> None:
    """The inputs and labels [B, L] that our first step draws, as transformers wants them: -100 predicts nothing."""
    key = jax.random.fold_in(jax.random.key(SEED), 0)
    row_B = jnp.arange(case.rows, dtype=jnp.int32)
    targets: Targets = draw(
        OBJECTIVES[case.objective], batch["token_BL"], batch["segment_BL"], row_B, key, case.vocabulary
    )
    label_BL = np.array(batch["token_BL"])  # a decoder of transformers shifts its labels itself
    if targets.position_BS is not None:
        label_BL = np.full_like(label_BL, -100)
        target_BS = np.where(targets.weight_BS, targets.target_BS, -100)
        np.put_along_axis(label_BL, np.asarray(targets.position_BS), target_BS, axis=1)
    np.savez(path, input_BL=np.asarray(targets.input_BL), label_BL=label_BL)


def their_step(
    peer: Peer, architecture: str, folder: Path, device: str, dtype: str, only_forward: bool
) -> Callable[[], dict]:
    """The step of transformers, PyTorch and its AdamW, on the weights and the batch of `folder`."""
    import torch
    import transformers

    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("jax sees a GPU here, but PyTorch sees none")
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(cores())
    kind = getattr(transformers, architecture)
    model = kind.from_pretrained(folder / WEIGHTS, attn_implementation=peer.attention).to(device)
    model.train()
    model.config.use_cache = False  # a decoder's, of no use in training
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    forward = torch.compile(model) if peer.compiled else model
    with np.load(folder / BATCH) as arrays:
        batch = {name: torch.from_numpy(arrays[f"{name}_BL"]).long().to(device) for name in ("input", "label")}

    def run() -> dict:
        autocast = torch.autocast(device, torch.bfloat16) if dtype == "bfloat16" else nullcontext()
        with autocast, torch.no_grad() if only_forward else nullcontext():
            loss = forward(input_ids=batch["input"], labels=batch["label"]).loss
        measured = {"loss": loss}
        if not only_forward:
            loss.backward()
            measured["grad_norm"] = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        values = {name: number.item() for name, number in measured.items()}
        if device == "cpu":
            return values | {"peak_mib": resident_peak()}
        torch.cuda.synchronize()
        return values | {"peak_mib": torch.cuda.max_memory_allocated() / 2**20}

    return run


def resident_peak() -> float | None:
    """Most resident memory of this process so far, in MiB, the start of it included."""
    return mib_of("/proc/self/status", "VmHWM")  # ru_maxrss would begin with that of the process that started this


def _serve(pipe, make: Callable[[], Callable[[], dict]]) -> None:
    """Answer every message with what a step says and its seconds, or with the reason why there is none."""
    step = None
    while pipe.recv():
        try:
            step = step or make()
            began = time.perf_counter()
            answer = step()
            answer["seconds"] = time.perf_counter() - began
        except Exception as error:  # of any kind: it is the parent's to tell
            answer = {"reason": reason(error)}
        pipe.send(answer)


class Side:
    """One side in a process of its own, which makes its step when it is first asked."""

    def __init__(self, make: Callable[[], Callable[[], dict]]):
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, make), daemon=True)
        self._process.start()
        theirs.close()  # or the end of the process would never be heard of
        self.last: dict[str, Any] = {}  # answer

    def __call__(self) -> float:
        """Have it make a step; its seconds. Raises ChildProcessError with the reason when there is none."""
        try:
            self._pipe.send("step")
            self.last = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise ChildProcessError(f"its process ended with code {self._process.exitcode}") from None
        if "reason" in self.last:
            raise ChildProcessError(self.last["reason"])
        return self.last["seconds"]

    def end(self) -> None:
        """End the process, which frees its memory."""
        self._process.terminate()
        self._process.join()


def disagreement(theirs: dict[str, Any], ours: dict[str, Any], tolerance: float) -> tuple[dict[str, float], str | None]:
    """Relative distances of a first step's numbers from ours, and what is wrong with them, if anything is."""
    distances = {f"{name}_error": abs(theirs[name] / ours[name] - 1) for name in theirs}
    if all(distance <= tolerance for distance in distances.values()):
        return distances, None
    said = ", ".join(f"{name} {theirs[name]:.6g} where {OURS} has {ours[name]:.6g}" for name in theirs)
    return distances, f"wrong: {said}"


def bench(case: Case, peers: Sequence[str], rounds: int) -> dict[str, dict[str, Any]]:
    """What a step of each side costs, or the reason why it is not timed, with the sides that then had memory.

    Raises ChildProcessError where our side does not even have weights: there is nothing to compare then.
    """
    platform, dtype = jax.default_backend(), compute_dtype()
    device = "cuda" if platform == "gpu" else platform
    results: dict[str, dict[str, Any]] = {}
    sides: dict[str, Side] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        makes = {OURS: partial(our_step, case, folder)}
        setting = (ARCHITECTURES[case.objective], folder, device, dtype, case.forward)
        makes |= {peer: partial(their_step, PEERS[peer], *setting) for peer in peers}
        try:
            for name, make in makes.items():
                side = Side(make)
                try:
                    side()
                except ChildProcessError as error:
                    if not (folder / BATCH).exists():
                        raise
                    results[name] = {"reason": str(error)}
                else:
                    results[name] = {what: side.last[what] for what in ("loss", "grad_norm") if what in side.last}
                    if OURS in sides:  # what failed itself judges nobody
                        distances, wrong = disagreement(results[name], results[OURS], TOLERANCE[dtype])
                        results[name] |= distances if wrong is None else {**distances, "reason": wrong}
                if "reason" in results[name]:
                    results[name]["beside"] = list(sides)
                    side.end()
                else:
                    sides[name] = side
            for name, took in in_turns(sides, rounds).items():
                results[name] |= took
                if "reason" not in took:
                    results[name] |= {**speed(case, took["median"]), "peak_mib": sides[name].last["peak_mib"]}
        finally:
            for side in sides.values():
                side.end()
    for row in results.values():
        row["ratio"] = (
            results[OURS]["median"] / row["median"] if "median" in row and "median" in results[OURS] else None
        )
    return results


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    shape = f"{row['rows']} x {row['tokens']}"
    start = f"{row['size']:7}{row['objective']:11}{shape:14}{row['side']:9}"
    if "reason" in row:
        return start + row["reason"]
    mfu, ratio, peak = (
        "" if row[name] is None else format(row[name], form)
        for name, form in (("mfu", ".1%"), ("ratio", ".2f"), ("peak_mib", ".0f"))
    )
    error = "".join(f"{row[name]:9.0e}" for name in ("loss_error", "grad_norm_error") if name in row)
    seconds = f"{row['median']:10.3f} ±{row['spread']:4.0%}"
    return f"{start}{seconds}{row['tokens_per_s']:10.0f}{ratio:>7}{mfu:>7}{peak:>10}{row['loss']:9.4f}{error}"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Tokens per second and peak memory by length, a column of axes for each size and objective, as a PNG."""
    from matplotlib.figure import Figure

    lengths = sorted({row["tokens"] for row in rows})
    columns = list(dict.fromkeys((row["size"], row["objective"]) for row in rows))
    figure = Figure(figsize=(4.5 * len(columns), 7), layout="constrained")
    grid = figure.subplots(2, len(columns), sharex=True, squeeze=False)
    for column, (size, objective) in enumerate(columns):
        for axes, what, label in (
            (grid[0, column], "tokens_per_s", "tokens per second"),
            (grid[1, column], "peak_mib", "peak memory, MiB"),
        ):
            for side in dict.fromkeys(row["side"] for row in rows):
                points = [
                    (row["tokens"], row[what])
                    for row in rows
                    if (row["size"], row["objective"], row["side"]) == (size, objective, side) and row.get(what)
                ]
                axes.plot(*zip(*points, strict=True) if points else ([], []), marker="o", markersize=4, label=side)
            axes.set(ylabel=label, xscale="log", yscale="log", xlabel="tokens of a row")
            axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
            axes.set_xticks([], minor=True)
            axes.grid(alpha=0.3)
        grid[0, column].set_title(f"{size}, {objective}")
        grid[0, column].legend(fontsize="small")
    figure.savefig(path, dpi=120)


def run(asked: CompareBench) -> None:
    """Print the table and, if asked, write the JSON and the plot."""
    check_models(asked)
    check_names("peer", asked.peers, PEERS)
    check_out(asked.plot_file)
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # this process and ours leave room for the others
    what = "forward pass" if asked.forward else "training step"
    print(f"{what} on {jax.devices()[0].device_kind}, {compute_dtype()}, torch {metadata.version('torch')}")
    heading = f"{'size':7}{'objective':11}{'rows x tokens':14}{'side':9}{'seconds':>16}{'tokens/s':>10}{'ratio':>7}"
    print(f"{heading}{'MFU':>7}{'peak MiB':>10}{'loss':>9}{'its err':>9}{'grad err':>9}")
    rows = []
    for size, objective, tokens in ((s, o, x) for s in asked.sizes for o in asked.objectives for x in asked.lengths):
        # transformers' decoder counts the token itself among the keys of its window: ours must read as many.
        config = replace(SIZES[size], causal_window_counts_self=objective == "clm")
        case = Case(config, objective, asked.rows, tokens, asked.forward)
        for side, row in bench(case, asked.peers, asked.rounds).items():
            row = {"side": side, **describe(size, case), "torch": metadata.version("torch"), **row}
            rows.append(row)
            print(line(row), flush=True)
        record(asked.out, asked.rounds, rows)
        if asked.plot_file is not None:
            plot(rows, asked.plot_file)
