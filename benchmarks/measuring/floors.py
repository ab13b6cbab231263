"""The least time that a device allows: bytes over bandwidth, operations over peak rate."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """Peak rates of dense products in 1e12 operations a second, bandwidths in 1e9 bytes."""

    half: float
    float32: float
    memory: float
    link: float
    """To the host's memory, one way."""


DEVICES = {
    "H100 PCIe": Device(756, 51, 2000, 55),
    "H100": Device(989, 67, 3350, 55),
    "H200": Device(989, 67, 4800, 55),
    "A100": Device(312, 19.5, 2039, 26),
    "L40S": Device(362, 91.6, 864, 26),
    "RTX 4090": Device(165, 82.6, 1008, 26),
    "MI300X": Device(1307, 163, 5300, 55),
}
"""By a part of the name that torch gives; the first that fits. From the vendors' data sheets."""


def find_device(name: str) -> Device | None:
    """The row of a device by the name that torch gives."""
    return next((device for part, device in DEVICES.items() if part in name), None)


@dataclass(frozen=True)
class Work:
    """What a run goes through."""

    shapes: list[tuple[int, int]]
    """Outputs and inputs of each linear."""
    sites: list[int]
    """Width of each input that is measured."""
    tokens: int
    streams: int
    """Two where the full-precision model runs beside the quantized one."""


def floors(work: Work, device: Device) -> dict[str, float]:
    """The least seconds of each stage that is bound by anything simple:

    load      the blocks' bytes over the link
    forward   2 operations a weight and token, once per stream, in half precision
    gram      half of 2 operations an entry and token, in half precision
    solve     the feedback of a column sweep: out * in^2 operations in float32
    store     a byte a weight over the link
    """
    weights, streams = _sum(out * width for out, width in work.shapes), work.streams
    return {
        "load": 2 * weights / (device.link * 1e9),
        "forward": 2 * weights * work.tokens * streams / (device.half * 1e12),
        "gram": _sum(width**2 for width in work.sites) * work.tokens / (device.half * 1e12),
        "solve": _sum(out * width**2 for out, width in work.shapes) / (device.float32 * 1e12),
        "store": weights / (device.link * 1e9),
    }


def _sum(numbers: Iterable[int]) -> float:
    return float(sum(numbers))
