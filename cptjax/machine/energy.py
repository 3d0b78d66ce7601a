"""The energy of the NVIDIA devices that this process uses, by NVML's own counters.

NVML counts the boards of the host in an order of its own and knows nothing of CUDA_VISIBLE_DEVICES or
CUDA_DEVICE_ORDER. The CUDA driver of this process knows which board each of its devices is: it is asked for
the address on the PCI bus, and NVML for the board there.
"""

import ctypes
from collections.abc import Sequence
from typing import Any


class EnergyMeter:
    """Joules used by `devices`, jax's own of this process, since the meter was made; `method` says how, or why not.

    A board is counted whole, with whatever else runs on it; of a part of one (MIG) nothing is told.
    """

    def __init__(self, devices: Sequence[Any]):
        self._boards: list[Any] = []
        self.method = "not measured"
        if any(device.platform != "gpu" for device in devices):
            return
        try:
            addresses = {pci_address(device) for device in devices}
            import pynvml  # pyright: ignore[reportMissingImports]

            self._nvml = pynvml
            pynvml.nvmlInit()
            self._boards = [self._board(address) for address in addresses]
            self._start = self._counters()
        except ImportError:
            self.method = "not measured: pip install nvidia-ml-py"
        except Exception as error:  # of NVML's own kinds, of ctypes' or of the operating system's
            self._stop(error)
        else:
            self.method = f"NVML counters of the {len(self._boards)} devices in use"

    def _board(self, address: bytes) -> Any:
        board = self._nvml.nvmlDeviceGetHandleByPciBusId(address)
        try:
            parted, _ = self._nvml.nvmlDeviceGetMigMode(board)
        except self._nvml.NVMLError_NotSupported:  # of boards that cannot be parted
            parted = False
        if parted:
            raise ValueError("a part of a board has no counter of its own")
        return board

    def _counters(self) -> list[int]:
        return [self._nvml.nvmlDeviceGetTotalEnergyConsumption(board) for board in self._boards]

    def _stop(self, error: Exception) -> None:
        self._boards, self.method = [], f"not measured: {error}"

    def joules(self) -> float | None:
        """Energy so far, None when it cannot be measured."""
        if not self._boards:
            return None
        try:
            return sum(now - then for now, then in zip(self._counters(), self._start, strict=True)) / 1000.0
        except Exception as error:  # a board that fell off the bus
            self._stop(error)
            return None


def pci_address(device: Any) -> bytes:
    """Where a CUDA device of this process lies on the PCI bus, such as 0000:65:00.0. Raises OSError."""
    cuda = ctypes.CDLL("libcuda.so.1")
    number, address = ctypes.c_int(), ctypes.create_string_buffer(32)
    if (
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(number), device.local_hardware_id)
        or cuda.cuDeviceGetPCIBusId(address, len(address), number)
    ):
        raise OSError(f"the CUDA driver does not say which board {device} is")
    return address.value
