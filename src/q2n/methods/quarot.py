"""QuaRot (Ashkboos et al. 2024): weights, activations and cache in few bits, after a rotation.

A few channels of a language model's activations are a hundred times the others, and a grid fitted
to a token wastes itself on them. A rotation of the residual stream, of each head and of the
gated product spreads them over all channels and leaves the function as it is
(transforms/decoder.py has the rotations and why they cancel). Weights become more Gaussian as well.

This file is the part that meets single layers: the weights of the rotated model are rounded, row by
row, on signed codes with a searched range, by GPTQ without act-order or to nearest. While they
are, the online rotations are active and activations are not rounded. What is wanted of the model
around the layers is `surroundings`.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from q2n.errors import InputError
from q2n.grids.per_token import TokenGrid
from q2n.grids.signed import SignedGrid
from q2n.layers.quantized import StorageSpec
from q2n.layers.uniform import UniformLinear
from q2n.linalg.statistics import RequiredStatistics
from q2n.method import LayerProblem, Method
from q2n.methods.gptq import GPTQ
from q2n.methods.rtn import RTN
from q2n.methods.uniform import UniformMethod
from q2n.transforms.model_changes import ModelChanges

OFF = 16
"""A width that means: not rounded."""


class _Signed(UniformMethod):
    """A method on the signed grid."""

    @property
    def grid(self) -> SignedGrid:
        return SignedGrid(bits=self.bits, clip="mse" if self.search == "range" else "none")


class _SignedRTN(_Signed, RTN):
    pass


class _SignedGPTQ(_Signed, GPTQ):
    pass


@dataclass(frozen=True, kw_only=True)
class QuaRot(Method):
    """Hadamard rotations, then 4-bit weights, activations and, if asked for, cache."""

    name: ClassVar[str] = "quarot"
    bits_offered: ClassVar[str] = UniformMethod.bits_offered

    bits: int = 4
    """2, 3, 4 or 8."""
    weights: Literal["gptq", "rtn"] = "gptq"
    """How weights are rounded."""
    clip: bool = True
    """Search each row's range for the least |error|^2.4."""
    damping: float = 0.01
    """Added to the Gram matrix's diagonal, as a share of its mean."""
    rotation: Literal["hadamard", "random", "none"] = "hadamard"
    """Of the residual stream: Hadamard with random signs, or any orthogonal matrix; none leaves out
    all rotations, for comparison."""
    activation_bits: int = 4
    """Bits of the inputs of the quantized linears, 2 to 8; 16: not rounded."""
    activation_symmetric: bool = True
    """Zero in the middle of each token's range."""
    activation_group_size: int = -1
    """Channels of a token that share a scale; -1: all."""
    activation_clip: float = 0.9
    """Share of a token's range that is kept."""
    kv_bits: int = OFF
    """Bits of keys and values, 2 to 8, with a zero point; 16: not rounded."""
    kv_group_size: int = -1
    """Channels of a head that share a scale; -1: all."""
    kv_clip: float = 0.95
    """Share of the range of keys and values that is kept."""

    def __post_init__(self) -> None:
        _ = self._inner, self.surroundings  # refuse what they refuse

    @property
    def title(self) -> str:
        widths = f"W{self.bits}A{self.activation_bits}KV{self.kv_bits}"
        return f"{self.name} {widths} ({self.weights} weights, rotation {self.rotation})"

    @property
    def required_statistics(self) -> RequiredStatistics:
        return self._inner.required_statistics

    @property
    def storage(self) -> StorageSpec:
        return replace(self._inner.storage, runtime=self.surroundings != ModelChanges())

    @property
    def surroundings(self) -> ModelChanges:
        activations = _token_grid(
            "activation",
            self.activation_bits,
            symmetric=self.activation_symmetric,
            group_size=self.activation_group_size,
            clip=self.activation_clip,
        )
        cache = _token_grid(
            "kv",
            self.kv_bits,
            symmetric=False,
            group_size=self.kv_group_size,
            clip=self.kv_clip,
        )
        return ModelChanges(rotation=self.rotation, activations=activations, cache=cache)

    def quantize(self, problem: LayerProblem) -> UniformLinear:
        return self._inner.quantize(problem)

    def quantize_compensated(
        self, problem: LayerProblem
    ) -> tuple[UniformLinear, Float[Tensor, "out in"]]:
        """As `quantize`, with the weight that was rounded: to nearest, that is the layer's own."""
        if isinstance(self._inner, GPTQ):
            return self._inner.quantize_compensated(problem)
        return self.quantize(problem), problem.weight

    @property
    def _inner(self) -> RTN | GPTQ:
        search: Literal["none", "range"] = "range" if self.clip else "none"
        if self.weights == "rtn":
            return _SignedRTN(bits=self.bits, search=search, symmetric=True)
        return _SignedGPTQ(
            bits=self.bits,
            search=search,
            symmetric=True,
            act_order=False,
            damping=self.damping,
        )


def _token_grid(
    what: str, bits: int, *, symmetric: bool, group_size: int, clip: float
) -> TokenGrid | None:
    """The grid that the options `what`_.. describe; None if they turn it off."""
    try:
        grid = TokenGrid(
            bits=TokenGrid.bits if bits == OFF else bits,
            symmetric=symmetric,
            group_size=group_size,
            clip=clip,
        )
    except InputError as cause:
        raise InputError(f"{what}_bits, {what}_group_size or {what}_clip: {cause}") from cause
    return None if bits == OFF else grid
