"""What no formula knows."""

import math
from dataclasses import dataclass

from cptjax.machine.devices import MFU


@dataclass(frozen=True)
class Assumptions:
    """What a device is, where that is not known; the share of its peak that is reached; what an hour and a kWh cost."""

    memory: float | None = None  # GiB of a device; without it what is known of it
    peak: float | None = None  # TFLOP/s of a device, of dense bfloat16 products; without it its maker's
    mfu: float = MFU  # share of the peak that is reached
    price: float = 2.0  # of a device for an hour; a round number, nobody's offer
    watts: float | None = None  # of a device; without it its board power, where its maker states one
    pue: float = 1.2  # energy of the whole site per energy of the devices
    carbon: float = 0.473  # kg CO2e per kWh; the world's mean of 2024 (Ember, Global Electricity Review 2025)

    def check(self) -> None:
        """Raise ValueError for a number that no device has, or nobody pays."""
        for name, value in vars(self).items():
            free = value == 0 and name in ("price", "carbon")
            if value is not None and not (free or 0 < value < math.inf):
                raise ValueError(f"--{name} is {value:g}: it must be a number above 0")
        if self.mfu > 1:
            raise ValueError(f"--mfu is {self.mfu:g}: it is a share, 1 at most")
