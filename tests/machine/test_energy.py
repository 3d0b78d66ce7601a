"""Energy is that of the boards in use, or said not to be measured and why."""

import sys
import types

import pytest

from cptjax.machine import energy
from cptjax.machine.energy import EnergyMeter


class NotSupported(Exception):
    """As pynvml names it."""


def gpu(ordinal: int):
    return types.SimpleNamespace(platform="gpu", local_hardware_id=ordinal)


@pytest.fixture
def host(monkeypatch):
    """Four boards, in NVML's order 41 65 a1 c1; the process sees two of them, a1 as its device 0 and 41 as its 1."""
    boards = {b"0000:41:00.0": 1_000, b"0000:65:00.0": 2_000, b"0000:a1:00.0": 3_000, b"0000:c1:00.0": 4_000}
    seen = [b"0000:a1:00.0", b"0000:41:00.0"]

    def parted(board):
        if board == b"0000:41:00.0":
            raise NotSupported
        return [0, 0]

    nvml = types.SimpleNamespace(
        NVMLError_NotSupported=NotSupported,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByPciBusId=lambda address: address,
        nvmlDeviceGetMigMode=parted,
        nvmlDeviceGetTotalEnergyConsumption=boards.__getitem__,
    )
    cuda = types.SimpleNamespace(
        cuInit=lambda flags: 0,
        cuDeviceGet=lambda number, ordinal: setattr(number._obj, "value", ordinal) or 0,
        cuDeviceGetPCIBusId=lambda text, length, number: setattr(text, "value", seen[number.value]) or 0,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(energy.ctypes, "CDLL", lambda name: cuda)
    return types.SimpleNamespace(boards=boards, nvml=nvml, cuda=cuda)


def test_only_the_boards_in_use_are_counted(host):
    # Broken by: handles by index, all of nvmlDeviceGetCount or the first ones: another process's joules come in.
    meter = EnergyMeter([gpu(0), gpu(1)])
    assert meter.method == "NVML counters of the 2 devices in use"
    for address, millijoules in {b"0000:41:00.0": 500, b"0000:65:00.0": 7_000, b"0000:a1:00.0": 20}.items():
        host.boards[address] += millijoules
    assert meter.joules() == pytest.approx(0.52)
    one = EnergyMeter([gpu(0)])
    host.boards[b"0000:41:00.0"] += 500
    assert one.joules() == 0 and meter.joules() == pytest.approx(1.02)


def test_what_cannot_be_told_apart_is_not_measured(host, monkeypatch):
    # Broken by: nvmlDeviceGetMigMode not asked: the whole board's energy for a seventh of it.
    host.nvml.nvmlDeviceGetMigMode = lambda board: [1, 1]
    meter = EnergyMeter([gpu(0)])
    assert meter.joules() is None and meter.method == "not measured: a part of a board has no counter of its own"
    host.cuda.cuDeviceGetPCIBusId = lambda *_: 1
    assert "the CUDA driver does not say which board" in EnergyMeter([gpu(0)]).method
    monkeypatch.setattr(energy, "pci_address", lambda device: b"")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert EnergyMeter([gpu(0)]).method == "not measured: pip install nvidia-ml-py"
    assert EnergyMeter([types.SimpleNamespace(platform="cpu")]).method == "not measured"


def test_a_counter_that_is_lost_ends_the_measurement(host):
    # Broken by: joules without its try.
    meter = EnergyMeter([gpu(0)])
    del host.boards[b"0000:a1:00.0"]
    assert meter.joules() is None and meter.method.startswith("not measured") and meter.joules() is None
