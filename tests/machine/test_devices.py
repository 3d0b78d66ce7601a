"""Counts by hand, and what is known of a device."""

import pytest

from cptjax.machine.devices import device_facts, flops_per_token, peak_flops


def test_flops_by_hand():
    """One layer, d = 4, f = 6, 10 keys, vocabulary 20, half of the tokens predicted; backward = 2 x forward."""
    products = 4 * 12 + 4 * 4 + 4 * 12 + 6 * 4  # qkv, out, both halves, down: multiply-adds a token
    scores = 2 * 10 * 4  # q k and p v
    head = 0.5 * (4 * 4 + 4 * 20)
    found = flops_per_token(hidden_size=4, intermediate_size=6, gated=True, vocab_size=20, keys=[10], predicted=0.5)
    assert found == {"weights": 6 * products, "attention": 6 * scores, "head": 6 * head}


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        ("NVIDIA H100 80GB HBM3", (989e12, 80, 700)),
        ("NVIDIA H100 PCIe", (756e12, 80, 350)),
        ("NVIDIA A100-SXM4-40GB", (312e12, 40, 400)),
        ("TPU v5 lite", (197e12, 16, None)),
        ("TPU v5", (459e12, 95, None)),
    ],
)
def test_each_board_has_its_own_figures(kind, facts):
    # Broken by: a match by the beginning of the name, which gave the PCIe board 989e12 and 700 W.
    assert device_facts(kind) == facts and peak_flops(kind) == facts[0]


@pytest.mark.parametrize(
    "kind", ["cpu", "NVIDIA H100", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", "NVIDIA H200 NVL X", "TPU v4 lite"]
)
def test_unknown_devices_have_no_peak(kind):
    # Broken by: the same.
    assert device_facts(kind) is None and peak_flops(kind) is None
