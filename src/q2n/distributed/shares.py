"""Which calibration windows a rank takes: neighbouring ones, so that they are cut into the same
batches as on one rank wherever there is a batch for each rank."""


def share(windows: int, batch_size: int, rank: int, size: int) -> range:
    """The windows of one of `size` ranks, at most one batch more than another's; where there are
    fewer batches than ranks, at most one window more."""
    unit = batch_size if -(-windows // batch_size) >= size else 1
    units = -(-windows // unit)
    start, stop = (units * edge // size * unit for edge in (rank, rank + 1))
    return range(min(start, windows), min(stop, windows))
