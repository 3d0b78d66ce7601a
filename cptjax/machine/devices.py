"""What is known of devices: peaks, memory and boards; and the FLOPs that a step asks of them."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

GIB = 2**30  # bytes
NEAREST = 5  # names that are told for one that is not known
MFU = 0.4  # share of the peak that a step is taken to reach


class Device(NamedTuple):
    """What a device has: peak dense bf16 FLOP/s, memory in GiB, board power in watts (None: its maker does not say)."""

    peak_flops: float
    memory_gib: float
    watts: float | None


# By jax's device_kind, letter by letter: a name that only begins like one of these is another board, or a part of one.
# NVIDIA's data sheets of each board, without sparsity; GH200's watts are of the CPU too, so they are left out.
# GeForce: NVIDIA's white papers of Ampere (GA102), Ada and Blackwell, with sums in float32, which halve the peak there;
# of boards that these leave out, twice the float32 figure of NVIDIA's page, as on the others. Where boards with less or
# more memory share a name, it is the first that was sold.
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
    "NVIDIA B200": Device(2250e12, 180e9 / GIB, 1000),
    "NVIDIA L4": Device(121e12, 24, 72),
    "NVIDIA L40S": Device(362e12, 48, 350),
    "NVIDIA A10": Device(125e12, 24, 150),
    "NVIDIA A10G": Device(70e12, 24, 300),
    "NVIDIA A40": Device(149.7e12, 48, 300),
    "Tesla T4": Device(8.1e12, 16, 70),  # of float32, for it has no bfloat16 and XLA makes such products in that
    "NVIDIA RTX A6000": Device(154.8e12, 48, 300),
    "NVIDIA RTX 6000 Ada Generation": Device(364.2e12, 48, 300),
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": Device(503.8e12, 96, 600),
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": Device(438.9e12, 96, 300),
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": Device(500e12, 96, 600),
    "NVIDIA GeForce RTX 3060": Device(25.5e12, 12, 170),
    "NVIDIA GeForce RTX 3060 Ti": Device(32.4e12, 8, 200),
    "NVIDIA GeForce RTX 3070": Device(40.6e12, 8, 220),
    "NVIDIA GeForce RTX 3070 Ti": Device(43.5e12, 8, 290),
    "NVIDIA GeForce RTX 3080": Device(59.5e12, 10, 320),
    "NVIDIA GeForce RTX 3080 Ti": Device(68.2e12, 12, 350),
    "NVIDIA GeForce RTX 3090": Device(71e12, 24, 350),
    "NVIDIA GeForce RTX 3090 Ti": Device(80e12, 24, 450),
    "NVIDIA GeForce RTX 4060": Device(30.2e12, 8, 115),
    "NVIDIA GeForce RTX 4060 Ti": Device(44.1e12, 8, 160),
    "NVIDIA GeForce RTX 4070": Device(58.3e12, 12, 200),
    "NVIDIA GeForce RTX 4070 SUPER": Device(71e12, 12, 220),
    "NVIDIA GeForce RTX 4070 Ti": Device(80.2e12, 12, 285),
    "NVIDIA GeForce RTX 4070 Ti SUPER": Device(88.2e12, 16, 285),
    "NVIDIA GeForce RTX 4080": Device(97.5e12, 16, 320),
    "NVIDIA GeForce RTX 4080 SUPER": Device(104.4e12, 16, 320),
    "NVIDIA GeForce RTX 4090": Device(165.2e12, 24, 450),
    "NVIDIA GeForce RTX 5060": Device(38.4e12, 8, 145),
    "NVIDIA GeForce RTX 5060 Ti": Device(47.4e12, 8, 180),
    "NVIDIA GeForce RTX 5070": Device(61.7e12, 12, 250),
    "NVIDIA GeForce RTX 5070 Ti": Device(87.9e12, 16, 300),
    "NVIDIA GeForce RTX 5080": Device(112.6e12, 16, 360),
    "NVIDIA GeForce RTX 5090": Device(209.5e12, 32, 575),
    "TPU v4": Device(275e12, 32, None),
    "TPU v5 lite": Device(197e12, 16, None),
    "TPU v5e": Device(197e12, 16, None),
    "TPU v5": Device(459e12, 95, None),
    "TPU v5p": Device(459e12, 95, None),
    "TPU v6 lite": Device(918e12, 32, None),
    "TPU v6e": Device(918e12, 32, None),
    "TPU7x": Device(2307e12 / 2, 96, None),  # a chip is two devices
}
# Compute capability of NVIDIA's boards before Hopper, by what stands in their names.
CAPABILITIES = {"T4": "7.5", "A100": "8.0", "A10G?$|A40|A6000|RTX 30": "8.6", "L4|Ada|RTX 40": "8.9"}


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


def capability_of(device_kind: str) -> str | None:
    """The compute capability of a board by its name, None of those since Hopper and where it is not known."""
    return next((version for part, version in CAPABILITIES.items() if re.search(part, device_kind)), None)


def peak_flops(device_kind: str) -> float | None:
    """Peak FLOP/s of a device, None when it is not in the table: an MFU is never guessed."""
    facts = device_facts(device_kind)
    return facts and facts.peak_flops


def nearest(device_kind: str) -> Sequence[str]:
    """Names of the table for one that is not there: the likest of those that share most of its words and numbers, by
    their letters; all where none shares any."""
    words, *known = (set(re.findall("[a-z]+|[0-9]+", name.lower())) for name in (device_kind, *DEVICES))
    shared = {name: sum(map(len, words & own)) for name, own in zip(DEVICES, known, strict=True)}
    if not (most := max(shared.values())):
        return [*DEVICES]
    alike = [name for name, letters in shared.items() if letters == most]
    return sorted(alike, key=lambda name: SequenceMatcher(None, device_kind, name).ratio(), reverse=True)[:NEAREST]
