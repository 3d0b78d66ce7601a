"""Counts by hand, logs that survive a kill, energy that is measured or said not to be."""

import json

import pytest

from cptjax import telemetry
from cptjax.telemetry import EventLog, device_facts, flops_per_token, peak_flops, plot, read_events


def test_flops_by_hand():
    """One layer, d = 4, f = 6, 10 keys, vocabulary 20, half of the tokens predicted; backward = 2 x forward."""
    products = 4 * 12 + 4 * 4 + 4 * 12 + 6 * 4  # qkv, out, both halves, down: multiply-adds a token
    scores = 2 * 10 * 4  # q k and p v
    head = 0.5 * (4 * 4 + 4 * 20)
    found = flops_per_token(hidden_size=4, intermediate_size=6, vocab_size=20, keys=[10], predicted=0.5)
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


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path):
    log = EventLog(tmp_path, 0, active=True)
    for step in range(4):
        log.write({"step": step, "phase": "clm", "loss": 1.0})
    log.write({"step": 4, "phase": "clm", "held_out": {}})
    log.write({"step": 4, "phase": "clm", "loss": 1.0})
    log.close()
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"step": 5, "pha')  # cut by a kill
    EventLog(tmp_path, 4, active=True).close()
    kept = read_events(tmp_path / "events.jsonl")
    assert [event["step"] for event in kept] == [0, 1, 2, 3, 4] and "held_out" in kept[-1]
    EventLog(tmp_path, 2, active=True).close()
    assert [event["step"] for event in read_events(tmp_path / "events.jsonl")] == [0, 1]


def test_only_the_first_process_writes(tmp_path):
    log = EventLog(tmp_path, 0, active=False)
    log.write({"step": 0, "phase": "clm"})
    log.close()
    assert not list(tmp_path.iterdir())


def test_plot_of_a_short_run(tmp_path):
    events = [
        {"step": 0, "phase": "clm", "held_out": {"clm": {"loss": 3.0, "accuracy": 0.1}}},
        {"step": 0, "phase": "clm", "loss": 3.1, "learning_rate": 0.1},
        {"step": 1, "phase": "decay", "loss": 2.9, "learning_rate": 0.1},
    ]
    plot(events, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]


def test_run_facts_name_versions_and_commit():
    assert set(telemetry.versions()) == set(telemetry.PACKAGES)
    assert json.dumps(telemetry.git_commit())
