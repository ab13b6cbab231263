"""What a user must know of quantized blocks besides numbers, in sentences."""

from collections.abc import Iterable, Sequence

from q2n.report.block_record import BlockRecord

RARE = 0.1
"""Of an even share of the tokens: what an expert below it saw is worth a note."""


def notes_of(blocks: Iterable[BlockRecord]) -> list[str]:
    """What a user must know of quantized blocks, in sentences."""
    blocks = list(blocks)
    return [
        *_never_called(blocks),
        *_not_scaled(blocks),
        *_rare_experts(blocks),
        *_without_input(blocks),
        *_fell_back(blocks),
        *_taken_back(blocks),
    ]


def _never_called(blocks: Sequence[BlockRecord]) -> list[str]:
    names = [name for block in blocks for name in block.never_called]
    if not names:
        return []
    return [
        f"{len(names)} linears stay in full precision, for no calibration token reached "
        f"them: {_first_few(names)}"
    ]


def _not_scaled(blocks: Sequence[BlockRecord]) -> list[str]:
    names = [name for block in blocks for name in block.not_scaled]
    if not names:
        return []
    return [
        f"The rewrite scales no input of {len(names)} linears, for nothing before them can take a "
        f"scale: {_first_few(names)}"
    ]


def _rare_experts(blocks: Sequence[BlockRecord]) -> list[str]:
    """Experts that fewer tokens reached than a tenth of the mean over their mixture."""
    mixtures: dict[str, dict[str, int]] = {}
    for block in blocks:
        for name, layer in block.layers.items():
            if layer.routed_tokens is not None:
                expert = name.rpartition(".")[0]
                mixture = mixtures.setdefault(expert.rpartition(".")[0], {})
                mixture[expert] = max(layer.routed_tokens, mixture.get(expert, 0))
    rare = {
        expert: tokens
        for mixture in mixtures.values()
        for expert, tokens in mixture.items()
        if tokens < RARE * sum(mixture.values()) / len(mixture)
    }
    if not rare:
        return []
    least = _first_few([f"{name} {rare[name]}" for name in sorted(rare, key=rare.__getitem__)])
    return [
        f"{len(rare)} experts saw less than a tenth of an even share of the calibration tokens, "
        "and their statistics lean on those of all tokens (expert_shrinkage), fewest first: "
        f"{least}"
    ]


def _without_input(blocks: Sequence[BlockRecord]) -> list[str]:
    layers = {name: layer for block in blocks for name, layer in block.layers.items()}
    idle = [name for name, layer in layers.items() if layer.dead_columns == layer.shape[1]]
    counts = [layer.dead_columns for name, layer in layers.items() if name not in idle]
    notes = []
    if idle:
        notes.append(
            f"{len(idle)} linears got nothing but zeros as input on the calibration text, and "
            f"are rounded without feedback or correction: {_first_few(idle)}"
        )
    if any(counts):
        notes.append(
            f"{sum(counts)} input columns in {sum(map(bool, counts))} layers got no input on the "
            "calibration text; their weights are rounded without feedback"
        )
    return notes


def _fell_back(blocks: Sequence[BlockRecord]) -> list[str]:
    others: dict[str, list[str]] = {}
    for block in blocks:
        for name, layer in block.layers.items():
            if "fell_back_on" in layer.notes:
                others.setdefault(layer.notes["fell_back_on"], []).append(name)
    return [
        f"{len(names)} linears are stored in {kind}, for their width is not a multiple of the 256 "
        f"columns of a block of the type asked for: {_first_few(names)}"
        for kind, names in others.items()
    ]


def _taken_back(blocks: Sequence[BlockRecord]) -> list[str]:
    names = [block.block for block in blocks if block.taken_back]
    notes = []
    if names:
        notes.append(
            f"Gradient steps on {len(names)} blocks made their loss on the calibration text worse "
            f"and were given up: {_first_few(names)}"
        )
    if any(block.model_taken_back for block in blocks):
        notes.append(
            "Gradient steps on the whole model made its loss on the calibration text worse and "
            "were given up"
        )
    return notes


def _first_few(names: Sequence[str]) -> str:
    return f"{', '.join(names[:5])}{', ..' if len(names) > 5 else ''}"
