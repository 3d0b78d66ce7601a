"""What a run says about itself: FLOPs, MFU, events.jsonl, TensorBoard, a plot."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple


class Device(NamedTuple):
    """Of one device: peak dense bf16 FLOP/s, memory in GiB, board power in watts (None: its maker does not say)."""

    peak_flops: float
    memory_gib: float
    watts: float | None


# By jax's device_kind, letter by letter: a name that only begins like one of these is another board, or a part of one.
# NVIDIA's data sheets of each board, without sparsity; GH200's watts are of the CPU too, so they are left out.
# TPUs: Google Cloud's page of each generation; the newer names are those that jax 0.10 knows beside the older ones.
DEVICES = {
    "NVIDIA A100-PCIE-40GB": Device(312e12, 40, 250),
    "NVIDIA A100-SXM4-40GB": Device(312e12, 40, 400),
    "NVIDIA A100 80GB PCIe": Device(312e12, 80, 300),
    "NVIDIA A100-SXM4-80GB": Device(312e12, 80, 400),
    "NVIDIA H100 80GB HBM3": Device(989e12, 80, 700),
    "NVIDIA H100 PCIe": Device(756e12, 80, 350),
    "NVIDIA H100 NVL": Device(835e12, 94, 400),
    "NVIDIA H200": Device(989e12, 141e9 / 2**30, 700),
    "NVIDIA H200 NVL": Device(835e12, 141e9 / 2**30, 600),
    "NVIDIA GH200 480GB": Device(989e12, 96, None),
    "TPU v4": Device(275e12, 32, None),
    "TPU v5 lite": Device(197e12, 16, None),
    "TPU v5e": Device(197e12, 16, None),
    "TPU v5": Device(459e12, 95, None),
    "TPU v5p": Device(459e12, 95, None),
    "TPU v6 lite": Device(918e12, 32, None),
    "TPU v6e": Device(918e12, 32, None),
    "TPU7x": Device(2307e12 / 2, 96, None),  # a chip is two devices
}
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy")


def flops_per_token(
    *, hidden_size: int, intermediate_size: int, vocab_size: int, keys: Sequence[float], predicted: float
) -> dict[str, float]:
    """Model FLOPs of one training step per token, forward and backward (3 x forward, 2 per multiply-add), by part.

    `keys` is the mean number of keys a query reads, per layer; `predicted` the share of tokens that pass
    the head. Recomputation is not counted: 6 L (4 d^2 + 3 d f) + 6 p (d^2 + d V) + 12 d sum(keys).
    """
    d, f = hidden_size, intermediate_size
    return {
        "weights": 6.0 * len(keys) * (4 * d * d + 3 * d * f),
        "attention": 12.0 * d * sum(keys),
        "head": 6.0 * predicted * (d * d + d * vocab_size),
    }


def device_facts(device_kind: str) -> Device | None:
    """What is known of a device, None when it is not in the table: nothing is guessed."""
    return DEVICES.get(device_kind)


def peak_flops(device_kind: str) -> float | None:
    """Peak FLOP/s of a device, None when it is not in the table: an MFU is never guessed."""
    facts = device_facts(device_kind)
    return facts and facts.peak_flops


def versions() -> dict[str, str]:
    """Versions of the packages that decide numbers."""
    return {name: metadata.version(name) for name in PACKAGES}


def git_commit() -> str | None:
    """Commit of the code, with `+changes` when the tree differs from it; None outside a repository."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(("git", *arguments), cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


class EventLog:
    """events.jsonl and TensorBoard, written by the first process only.

    Opening it at a step drops what an earlier, killed attempt logged after that step: an update event
    carries the step it made, an evaluation the steps made before it.
    """

    def __init__(self, folder: Path, step: int, active: bool):
        self._file = self._board = None
        if not active:
            return
        from tensorboardX import SummaryWriter

        path = folder / "events.jsonl"
        kept = [
            json.dumps(event) + "\n"
            for event in read_events(path)
            if event["step"] < step or ("held_out" in event and 0 < event["step"] == step)
        ]
        partial = path.with_name(".events.jsonl.partial")
        partial.write_text("".join(kept))
        partial.rename(path)
        self._file = path.open("a", buffering=1)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def write(self, event: Mapping[str, Any]) -> None:
        """Append one event; it needs `step` and `phase`."""
        if self._file is None or self._board is None:
            return
        self._file.write(json.dumps(event) + "\n")
        for name, value in event.items():
            if isinstance(value, float):
                self._board.add_scalar(name, value, event["step"])

    def close(self) -> None:
        """Flush everything to disk."""
        for log in (self._file, self._board):
            if log is not None:
                log.close()


def read_events(path: Path) -> list[dict[str, Any]]:
    """All whole events of a log; a line cut short by a kill is left out."""
    events = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            break  # only the last line can be cut
    return events


def plot(events: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss, held-out loss and accuracy, and learning rate over the optimiser steps, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 9), layout="constrained")
    loss_axes, accuracy_axes, rate_axes = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 1))
    phases = list(dict.fromkeys(event["phase"] for event in events if "loss" in event))
    for phase in phases:
        steps = [event for event in events if event["phase"] == phase and "loss" in event]
        x = [event["step"] for event in steps]
        loss_axes.plot(x, [event["loss"] for event in steps], linewidth=0.8, label=f"training, {phase}")
        rate_axes.plot(x, [event["learning_rate"] for event in steps], label=phase)
    evaluations = [event for event in events if "held_out" in event]
    for objective in dict.fromkeys(name for event in evaluations for name in event["held_out"]):
        x = [event["step"] for event in evaluations]
        for axes, what in ((loss_axes, "loss"), (accuracy_axes, "accuracy")):
            values = [event["held_out"][objective][what] for event in evaluations]
            axes.plot(x, values, marker="o", markersize=3, label=f"held out, {objective}")
    for axes, label in ((loss_axes, "loss (nats)"), (accuracy_axes, "accuracy"), (rate_axes, "learning rate")):
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    rate_axes.set_xlabel("optimiser step")
    partial = path.with_name(f".{path.stem}.partial.png")
    figure.savefig(partial, dpi=120)
    partial.rename(path)
