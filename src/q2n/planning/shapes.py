"""The shapes of a model, and what its passes hold: all that a forecast reads of it.

Letters: T tokens, L tokens of a window, m columns (inputs) and o rows (outputs) of a matrix, E
experts.

What a pass holds grows with the windows of a batch and, for a window, as `a L + b L^2`: hidden
states, and the scores of an attention without a kernel of its own. Two dry runs tell a and b.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig

from q2n.models.blocks import BlockwiseModel
from q2n.models.eager_attention import let_weights_go
from q2n.models.experts import OneByOne, Stage, experts_in, readers
from q2n.models.targets import Target
from q2n.planning.dry_run import SeenBlock, SeenSite, dry_run

Number = int | float
"""A count of bytes or operations, whole or not."""
SHORT, LONG = 32, 64
"""Lengths of the dry runs."""


@dataclass(frozen=True)
class Growth:
    """Bytes or operations that grow with the length of a window."""

    linear: Number
    square: Number = 0.0

    @classmethod
    def through(cls, at_short: Number, at_long: Number) -> "Growth":
        """The one that has these values at the two lengths."""
        square = max(0.0, (at_long / LONG - at_short / SHORT) / (LONG - SHORT))
        return cls(at_long / LONG - square * LONG, square)

    def at(self, tokens: Number, length: int) -> Number:
        """Of so many tokens in windows of this length."""
        return tokens * (self.linear + self.square * length)


@dataclass(frozen=True)
class Matrix:
    """A weight to quantize, or one of each expert."""

    name: str
    """In the block."""
    rows: int
    columns: int
    copies: int = 1
    """Experts that have one; 1 of a plain linear."""
    outputs: int = 1
    """Tensors that their outputs go into: one where those of all experts are added up."""

    @property
    def weights(self) -> int:
        return self.copies * self.rows * self.columns


@dataclass(frozen=True)
class SiteShape:
    """An input, and the matrices that read it."""

    width: int
    matrices: tuple[Matrix, ...]
    held: Growth
    """Bytes that a pass holds which pauses here."""
    copies: int = 1
    """Experts, each with its own statistics, which read parts of the tokens."""
    share: Number = 1.0
    """Of the tokens, how many reach each copy."""

    def outputs(self, hidden: int) -> int:
        """Rows of a matrix that may write to the residual stream, for it gives hidden states; 0 of
        other sites."""
        alone = len(self.matrices) == self.copies == 1
        return hidden if alone and self.matrices[0].rows == hidden else 0


@dataclass(frozen=True)
class BlockShape:
    """One decoder block."""

    bytes: int
    weights: int
    active: Number
    """Weights that a token meets."""
    per_pair: int
    """Operations that attention takes for each pair of tokens."""
    sites: tuple[SiteShape, ...]
    """With something to quantize."""
    most: Growth
    """Bytes that a pass holds at most."""

    @property
    def quantized(self) -> int:
        """Weights to quantize."""
        return sum(matrix.weights for site in self.sites for matrix in site.matrices)

    @property
    def output_moments(self) -> int:
        """Entries of the second moments of all outputs: o^2 of each."""
        return sum(x.outputs * x.rows**2 for site in self.sites for x in site.matrices)

    @property
    def output_products(self) -> Number:
        """Entries of the products that a token adds to them."""
        return sum(
            site.copies * site.share * x.rows**2 for site in self.sites for x in site.matrices
        )


@dataclass(frozen=True)
class ModelShapes:
    """A model."""

    blocks: tuple[BlockShape, ...]
    outside_bytes: int
    """What is in memory all the time: embeddings, the last norm."""
    head_bytes: int
    """An output head of its own, which is in memory where logits are computed."""
    hidden: int
    """Numbers of a hidden state."""
    words: int
    """Of the vocabulary."""
    itemsize: int
    """Bytes of a number in the model's dtype."""

    @property
    def bytes(self) -> int:
        """Of all weights."""
        return self.outside_bytes + self.head_bytes + sum(block.bytes for block in self.blocks)


def shapes_of(model: BlockwiseModel) -> ModelShapes:
    """The shapes of a model; no weight is read.

    Raises:
        InputError: the model does not run without numbers.
    """
    runs = [_dry_run(model, length) for length in (SHORT, LONG)]
    source = model.source
    config, itemsize = source.config.get_text_config(), source.dtype.itemsize
    skeleton, stored = source.skeleton(), set(source.names())
    sizes = {
        name: x.numel() * source.dtype_of(name).itemsize
        for name, x in skeleton.named_parameters()
        if name in stored
    }
    blocks = tuple(
        _block(model, index, config, sizes, [run[index] for run in runs])
        for index in range(len(model))
    )
    head_bytes = sizes.get(_head_name(skeleton), 0)
    inside = sum(block.bytes for block in blocks)
    return ModelShapes(
        blocks=blocks,
        outside_bytes=sum(sizes.values()) - inside - head_bytes,
        head_bytes=head_bytes,
        hidden=config.hidden_size,
        words=config.vocab_size,
        itemsize=itemsize,
    )


def _dry_run(model: BlockwiseModel, length: int) -> list[SeenBlock]:
    skeleton = model.source.skeleton()
    list_name = model.block_name(0).rpartition(".")[0]
    blocks = skeleton.get_submodule(list_name)
    assert isinstance(blocks, nn.ModuleList)
    let_weights_go(skeleton)
    return dry_run(skeleton, blocks, 1, length)


def _head_name(model: nn.Module) -> str:
    """The weight of the output head; it is no parameter of its own if it is tied."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return next((f"{name}.weight" for name, x in model.named_modules() if x is head), "")


def _block(
    model: BlockwiseModel,
    index: int,
    config: PretrainedConfig,
    sizes: dict[str, int],
    seen: Sequence[SeenBlock],
) -> BlockShape:
    block, prefix = model.blocks[index], f"{model.block_name(index)}."
    experts = dict(experts_in(block))
    short, long = seen
    sites: list[SiteShape] = []
    for first, second in zip(short.sites, long.sites, strict=True):
        sites += _sites(
            model, index, config, experts, first, Growth.through(first.held, second.held)
        )
    weights = sum(x.numel() for x in block.parameters())
    stacks = sum(x.numel() for module in experts.values() for x in module.parameters())
    return BlockShape(
        bytes=sum(size for name, size in sizes.items() if name.startswith(prefix)),
        weights=weights,
        active=weights - stacks + stacks * _share(config, experts),
        per_pair=long.per_pair,
        sites=tuple(sites),
        most=Growth.through(short.most, long.most),
    )


def _sites(
    model: BlockwiseModel,
    index: int,
    config: PretrainedConfig,
    experts: dict[str, OneByOne],
    seen: SeenSite,
    held: Growth,
) -> list[SiteShape]:
    """The site of the linears, and those of each expert's matrices, less what stays as it is."""
    block = model.blocks[index]
    quantized = model.targets_of(index, block)[0]
    linears = tuple(
        Matrix(name, *quantized[name].shape) for name in seen.readers if name in quantized
    )
    found = [SiteShape(seen.width, linears, held)] if linears else []
    for name in seen.readers:
        if name in experts:
            found += _expert_sites(name, experts[name], quantized, _share(config, experts), held)
    return found


def _expert_sites(
    name: str,
    experts: OneByOne,
    quantized: Mapping[str, Target],
    share: Number,
    held: Growth,
) -> list[SiteShape]:
    """What reads the input of each expert, and what reads what comes of that."""
    sites = []
    for down in (False, True):
        of = [readers(experts, name, e, Stage(0, down)) for e in range(experts.num_experts)]
        kept = [[x for x in names if x in quantized] for names in of]
        kept = [names for names in kept if names]
        if kept:
            outputs = 1 if down else len(kept)  # those of `down` are added up
            matrices = tuple(Matrix(x, *quantized[x].shape, len(kept), outputs) for x in kept[0])
            sites.append(SiteShape(matrices[0].columns, matrices, held, len(kept), share))
    return sites


def _share(config: PretrainedConfig, experts: dict[str, OneByOne]) -> Number:
    """Of the experts of a block, how many a token meets."""
    counts = [module.num_experts for module in experts.values()]
    if not counts:
        return 1.0
    return min(1.0, getattr(config, "num_experts_per_tok", counts[0]) / counts[0])
