"""What quantizing each block and each layer of a model costs: the figures (replaced_blocks.py makes
them)."""

from dataclasses import dataclass

from q2n.evaluation.output_change import OutputChange


@dataclass(frozen=True, kw_only=True)
class Change:
    """Outputs beside the original's on the same text: ratio of squares, mean cosine of tokens."""

    relative_error: float
    cosine: float

    @classmethod
    def of(cls, sums: OutputChange) -> "Change":
        return cls(relative_error=sums.relative_error, cosine=sums.cosine)


@dataclass(frozen=True, kw_only=True)
class Replaced:
    """The original model with one or several blocks quantized."""

    output: Change
    """Of the last quantized block."""
    divergence: float
    """Mean of KL(p_ref | p), in nats a token."""
    divergence_error: float | None
    """Its standard error, from the spread of the windows; None for a single window."""
    same_top: float
    """Share of the tokens for which both models find the same token the most probable."""


@dataclass(frozen=True, kw_only=True)
class BlockCost:
    """What quantizing a block costs."""

    block: str
    layers: dict[str, Change]
    """Of its linears that differ and that a token reached, by full name."""
    alone: Replaced
    """Only this block is quantized."""
    up_to_here: Replaced
    """This one and all before it are."""


@dataclass(frozen=True, kw_only=True)
class BlockCosts:
    """Every block of a quantized model beside the original's; every field is a JSON value."""

    reference: str
    blocks: tuple[BlockCost, ...]
    label: str
    """The text."""
    protocol: str
    """How it was cut and what of it counts."""
    sha256: str
    """Of the token windows."""
    windows: int
    length: int
    """Tokens in a window."""
    seconds: float
    notes: tuple[str, ...] = ()
    """What a user must know of them, in sentences without a full stop."""

    def worst_layers(self, most: int) -> dict[str, Change]:
        """The layers with the largest relative errors, the largest first."""
        layers = {name: change for block in self.blocks for name, change in block.layers.items()}
        errors = sorted(layers, key=lambda name: -layers[name].relative_error)
        return {name: layers[name] for name in errors[:most]}
