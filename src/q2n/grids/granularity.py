"""How many weights of a row share one scale. A granularity is a type, not a string."""

from dataclasses import dataclass

from q2n.errors import InputError


@dataclass(frozen=True)
class PerChannel:
    """One scale per row: weight [out, in] -> scales [out, 1]."""

    def group_size(self, columns: int, name: str) -> int:
        """The whole row."""
        return columns


@dataclass(frozen=True)
class PerGroup:
    """One scale for `size` neighbouring columns of a row: weight [out, in] -> scales
    [out, in / size], or [out, ceil(in / size)] if `ragged`."""

    size: int
    ragged: bool | None = None
    """Whether a shorter last group is allowed; None: the method has no such option."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"a group has at least 1 column, got a group size of {self.size}")

    def group_size(self, columns: int, name: str) -> int:
        """`size`, or the row if that is shorter and ragged groups are allowed.

        Raises:
            InputError: `size` does not divide the layer's columns.
        """
        if columns % self.size and not self.ragged:
            fitting = [str(d) for d in range(8, columns) if columns % d == 0]
            advice = "" if self.ragged is None else ", or --ragged-groups"
            raise InputError(
                f"{name}: groups of {self.size} do not divide its {columns} columns; "
                f"group sizes that do: {', '.join(fitting) or 'none'}; "
                f"or -1 for one scale per row{advice}"
            )
        return min(self.size, columns)


Granularity = PerChannel | PerGroup


def granularity_of(group_size: int, *, ragged: bool | None = None) -> Granularity:
    """The granularity that an option `group_size` means; -1: one scale per row."""
    return PerChannel() if group_size == -1 else PerGroup(group_size, ragged)
