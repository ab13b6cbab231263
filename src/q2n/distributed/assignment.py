"""Which rank solves which layer: one pure function of what the layers cost.

A site is an input that several targets read. Whoever solves one of them needs the site's statistics
and what is derived from them (factors, spectra: m^3 for a width of m), whoever solves several needs
it once. Each target costs rows * m^2 beside that.

    1. whole sites, the dearest first, each to the rank with the least to do
    2. as long as that lowers the greater of the two loads by a tenth (a site of two ranks has its
       sums sent to both, and what is derived from them computed twice): the rank with the most to
       do gives the one with the least a target, or a whole site

Every rank computes the same from the same numbers, so nobody has to be told.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

GAIN = 0.1
"""Least share of a load that makes it worth giving something away."""

Owners = list[list[int]]
"""The rank of each target, by site."""


@dataclass(frozen=True)
class SiteCost:
    """What the layers of one site cost, in any unit."""

    shared: float
    """Once for each rank that solves one of them."""
    targets: tuple[float, ...]
    """Each target by itself."""

    @classmethod
    def of(cls, width: int, rows: Sequence[int]) -> "SiteCost":
        """That of targets with so many rows which read an input of this width."""
        return cls(1.0 * width**3, tuple(1.0 * count * width**2 for count in rows))

    def load(self, targets: Sequence[int]) -> float:
        """What some of its targets cost a rank."""
        return self.shared + sum(self.targets[x] for x in targets) if targets else 0.0


def assign(sites: Sequence[SiteCost], ranks: int) -> Owners:
    """The rank of each target, by site."""
    owners: Owners = [[0] * len(site.targets) for site in sites]
    loads = [0.0] * ranks
    whole = [site.load(range(len(site.targets))) for site in sites]
    for position in sorted(range(len(sites)), key=lambda x: -whole[x]):
        rank = loads.index(min(loads))
        owners[position] = [rank] * len(sites[position].targets)
        loads[rank] += whole[position]
    while (moved := _better(sites, owners, loads)) is not None:
        owners, loads = moved
    return owners


def _better(
    sites: Sequence[SiteCost], owners: Owners, loads: list[float]
) -> tuple[Owners, list[float]] | None:
    """Owners and loads after the best move from the busiest rank to the idlest."""
    busy, idle = loads.index(max(loads)), loads.index(min(loads))
    best, found = loads[busy] * (1 - GAIN), None
    for position, targets in _moves(owners, busy):
        site, before = sites[position], owners[position]
        after = [idle if x in targets else owner for x, owner in enumerate(before)]
        changed = list(loads)
        for rank in (busy, idle):
            changed[rank] += site.load(_of(after, rank)) - site.load(_of(before, rank))
        if max(changed[busy], changed[idle]) < best:
            best = max(changed[busy], changed[idle])
            found = [*owners[:position], after, *owners[position + 1 :]], changed
    return found


def _moves(owners: Owners, rank: int) -> Iterator[tuple[int, list[int]]]:
    """Site and targets of everything that a rank can give away."""
    for position, site in enumerate(owners):
        mine = _of(site, rank)
        yield from ((position, [target]) for target in mine)
        if len(mine) > 1:
            yield position, mine


def _of(owners: Sequence[int], rank: int) -> list[int]:
    return [target for target, owner in enumerate(owners) if owner == rank]
