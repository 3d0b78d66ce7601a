"""What is known of devices: peaks, memory and boards; and the FLOPs that a step asks of them."""

from collections.abc import Sequence
from typing import NamedTuple

GIB = 2**30  # bytes


class Device(NamedTuple):
    """What a device has: peak dense bf16 FLOP/s, memory in GiB, board power in watts (None: its maker does not say)."""

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
    "NVIDIA H200": Device(989e12, 141e9 / GIB, 700),
    "NVIDIA H200 NVL": Device(835e12, 141e9 / GIB, 600),
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


def flops_per_token(
    *, hidden_size: int, intermediate_size: int, gated: bool, vocab_size: int, keys: Sequence[float], predicted: float
) -> dict[str, float]:
    """Model FLOPs of one training step per token, forward and backward (3 x forward, 2 per multiply-add), by part.

    `keys` is the mean number of keys a query reads, per layer; `predicted` the share of tokens that pass
    the head. Recomputation is not counted: 6 L (4 d^2 + 3 d f) + 6 p (d^2 + d V) + 12 d sum(keys), and 2 d f
    instead of 3 where the feed-forward is not gated.
    """
    d, f = hidden_size, intermediate_size
    return {
        "weights": 6.0 * len(keys) * (4 * d * d + (2 + gated) * d * f),
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
