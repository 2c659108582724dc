"""Where the time of a loop goes: every moment belongs to the lap that ends next, so laps add up to all of it.

On a GPU the host runs ahead, and its clocks lie: laps end where the GPU has done what was queued until then. Their
lengths are read in `take`, to be called where the host has waited for the GPU anyway.
"""

from __future__ import annotations

from megatron_most.runtime.device import Device


class Clock:
    """Runs from when it is made."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._laps = [("", device.mark())]

    def lap(self, name: str) -> None:
        """What was done since the last lap is `name`'s; a name may come often."""
        self._laps.append((name, self._device.mark()))

    def take(self) -> dict[str, float]:
        """Seconds by name since the last `take`, up to the last lap."""
        laps, self._laps = self._laps, self._laps[-1:]
        seconds: dict[str, float] = {}
        for (_, first), (name, last) in zip(laps[:-1], laps[1:], strict=True):
            seconds[name] = seconds.get(name, 0.0) + self._device.seconds_between(first, last)
        return seconds
