"""What no formula knows."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Assumptions:
    """The share of the peak that is reached, and what an hour and a kWh cost."""

    mfu: float = 0.4  # share of the peak that is reached
    price: float = 2.0  # of a device for an hour; a round number, nobody's offer
    watts: float | None = None  # of a device; without it its board power, where its maker states one
    pue: float = 1.2  # energy of the whole site per energy of the devices
    carbon: float = 0.473  # kg CO2e per kWh; the world's mean of 2024 (Ember, Global Electricity Review 2025)
