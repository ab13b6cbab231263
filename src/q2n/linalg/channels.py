"""What is known of the channels of one tensor after calibration text has streamed by.

Plain sums and maxima, as in statistics.py: they do not depend on how tokens were batched. For a
tensor x of shape [tokens, m]: the mean and the largest |x| of each channel and, if asked for, the
Gram matrix `G = sum x^T x`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.errors import NumericalError
from q2n.linalg.statistics import InputStatistics, RequiredStatistics


class ChannelStatistics:
    """Running sums over the tokens of a tensor of m channels."""

    def __init__(self, width: int, *, gram: bool, device: torch.device | str = "cpu") -> None:
        self.width = width
        required = RequiredStatistics.GRAM if gram else RequiredStatistics.NONE
        self._moments = InputStatistics(width, required, device)
        self._magnitude = torch.zeros(width, device=device)
        self._largest = torch.zeros(width, device=device)

    def update(self, x: Float[Tensor, "*batch in"]) -> None:
        """Add the tokens of `x`."""
        self._moments.update(x)
        magnitude = x.detach().reshape(-1, x.shape[-1]).float().abs()
        self._magnitude += magnitude.sum(0)
        self._largest = torch.maximum(self._largest, magnitude.amax(0))

    @property
    def tokens(self) -> int:
        """How many there were."""
        return self._moments.tokens

    @property
    def mean_magnitude(self) -> Float[Tensor, " in"]:
        """Mean of |x| over the tokens."""
        return self._magnitude / self.tokens

    @property
    def largest_magnitude(self) -> Float[Tensor, " in"]:
        """Largest |x| of the tokens."""
        return self._largest

    @property
    def gram(self) -> Float[Tensor, "in in"]:
        """`G = sum x^T x`.

        Raises:
            InputError: gathered without it.
        """
        return self._moments.gram

    def require_finite(self, name: str) -> None:
        """Raise unless tokens were seen and the sums are finite.

        Raises:
            NumericalError: naming the layer `name`, which reads the tensor.
        """
        self._moments.require_finite(name)
        if not torch.isfinite(self._magnitude.sum()):
            raise NumericalError(
                f"{name}: its input holds NaN or infinite values; use --dtype float32, or leave "
                "the layer out with --ignore"
            )
