"""Who owns the options, and the objects that settings describe."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from q2n.block_types import BLOCK_TYPES
from q2n.config.options import CHANGES, REWRITE_OWNERS
from q2n.config.runtimes import check_runtime, formats_loaded
from q2n.config.settings import RunSettings, Settings
from q2n.config.widths import by_width, read_widths
from q2n.errors import InputError
from q2n.formats import FORMATS
from q2n.formats.choice import choose_format, first_format
from q2n.formats.format import Format
from q2n.grids.granularity import granularity_of
from q2n.grids.per_token import TokenGrid
from q2n.grids.uniform import UniformGrid
from q2n.layers.quantized import StorageSpec
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.method import Method, Wrapper
from q2n.methods import METHODS
from q2n.methods.allocated import Allocated
from q2n.option_types import WideBits, Width
from q2n.refit.block import BlockRefit
from q2n.refit.model import ModelRefit
from q2n.refit.rotation import RotationLearning
from q2n.rewrites import REWRITES
from q2n.rewrites.rewrite import Rewrite
from q2n.transforms.model_changes import ModelChanges
from q2n.wrappers.correction import InputErrorCorrection
from q2n.wrappers.incoherence import Incoherence
from q2n.wrappers.nullspace import NullSpace
from q2n.wrappers.output_scales import OutputScales

WRAPPERS: dict[str, type[Wrapper]] = {
    "correction": InputErrorCorrection,
    "nullspace": NullSpace,
    "output scales": OutputScales,
    "incoherence": Incoherence,
}
"""Every wrapper, the innermost first: the order in which they go around a method."""

BY_SWITCH = {
    "output scales": ("target", "output_scales"),
    "incoherence": ("projection", "incoherence"),
}
"""Wrapper -> the field that its switch fills, and the switch. Such a field is no option."""


def build_method(settings: Settings) -> Method:
    """The method with the wrappers that take part, the random basis around all of them or around
    the method alone.

    Raises:
        InputError: options that contradict each other.
    """
    method = METHODS[settings.method](**settings.options[settings.method])
    taking_part = [owner for owner in WRAPPERS if owner in settings.options]
    if settings.run.incoherence_around == "method":
        taking_part.sort(key=lambda owner: owner != "incoherence")
    for owner in taking_part:
        options = dict(settings.options[owner])
        if owner in BY_SWITCH:
            name, switch = BY_SWITCH[owner]
            options[name] = getattr(settings.run, switch)
        method = WRAPPERS[owner](inner=method, **options)
    return method


def build_rewrite(settings: Settings) -> Rewrite | None:
    """The rewrite, if there is one."""
    name = settings.run.rewrite
    return REWRITES[name](**settings.options[REWRITE_OWNERS[name]]) if name != "off" else None


def search_grid(method: str, options: Mapping[str, Any]) -> UniformGrid:
    """Round to nearest with the bits and groups of a method: what a search tries.

    Raises:
        InputError: the method has no such bits.
    """
    bits, size = options.get("bits"), options.get("group_size", -1)
    if options.get("grid") in BLOCK_TYPES:
        bits, size = BLOCK_TYPES[options["grid"]].bits, BLOCK_TYPES[options["grid"]].block
    if bits is None or bits not in get_args(WideBits):
        widths = ", ".join(map(str, get_args(WideBits)))
        raise InputError(
            f"--rewrite awq searches with round to nearest in the method's bits, {widths}, and "
            f"{method} has {'none' if bits is None else bits}; leave it off, or take another "
            "method"
        )
    symmetric = options.get("symmetric", False)
    granularity = granularity_of(size, ragged=True)
    return UniformGrid(bits=bits, symmetric=symmetric, granularity=granularity)


def storage(method: Method, changes: ModelChanges) -> StorageSpec:
    """What a format must hold: the method's layers and, maybe, parts that run beside them; rounded
    inputs, which more readers know, are no such part."""
    return replace(method.storage, runtime=changes.beside)


def build_format(settings: Settings, storage: StorageSpec, inputs: TokenGrid | None) -> Format:
    """The format of the checkpoint: the one that is set, or the first that fits.

    Args:
        inputs: the grid to which quantized linears round their inputs.

    Raises:
        InputError: it does not hold the representation, or the runtime does not run it so.
    """
    run = settings.run
    name = run.format or first_format(run.method, storage, formats_offered(run))
    if run.runtime is not None:
        check_runtime(run.runtime, name, settings.flat())
    return choose_format(
        name,
        run.method,
        storage,
        outside=run.gguf_outside,
        outside_bits=run.outside_bits,
        activations=inputs,
    )


def formats_offered(run: RunSettings) -> tuple[str, ...]:
    """Formats among which to choose where none is set, the usual one first."""
    return tuple(FORMATS) if run.runtime is None else formats_loaded(run.runtime)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What settings describe, built."""

    allocate: float | None
    """Stored bits of a weight, where the width of each layer is to be found."""
    method: Method
    """With its wrappers."""
    changes: ModelChanges
    """Of the model around the layers."""
    storage: StorageSpec
    """What a format must hold."""
    format: Format
    """In which it is written."""
    rewrite: Rewrite | None
    """What changes weights before the method."""
    grid: UniformGrid | None
    """By which it searches, if it does."""
    block_refit: BlockRefit | None
    model_refit: ModelRefit | None
    rotation_learning: RotationLearning | None
    """Before the first block."""
    alone_for: str | None
    """The flag of what several ranks cannot do together: gradient steps, a rewrite."""
    title: str
    """All of it in one line, for a model card."""

    @property
    def allocated(self) -> Allocated | None:
        """The method, where its layers differ in width."""
        return self.method if isinstance(self.method, Allocated) else None

    @property
    def widths(self) -> Mapping[str, Width]:
        """Of each layer, by full name; empty where all have one, or while they are not known."""
        return {} if self.allocated is None else self.allocated.widths

    @property
    def fits_blocks(self) -> bool:
        """Whether gradient steps are taken on each block."""
        return self.block_refit is not None or self.method.fits_blocks

    @property
    def reads_text(self) -> bool:
        """Whether calibration text is needed."""
        learns = self.model_refit is not None or self.rotation_learning is not None
        return self.streams > 0 or learns or self.allocate is not None

    @property
    def streams(self) -> int:
        """Models that run side by side through each block: 2 where the full-precision one runs
        beside the quantized prefix, 0 where no text does."""
        required = self.method.required_statistics
        if RequiredStatistics.CROSS in required or self.fits_blocks:
            return 2
        once = self.rewrite is not None or self.model_refit is not None
        return 1 if required or once else 0


def build_plan(settings: Settings) -> Plan:
    """Build what the settings describe.

    Raises:
        InputError: options that contradict each other.
    """
    refit, steps = settings.run.refit, settings.run.refit_steps
    method = _whole_method(settings)
    if method.factor_fit is not None and refit in ("block", "both"):
        raise InputError(
            f"method {settings.method} fits what each block stores by itself: use --refit model or "
            f"off, not {refit}"
        )
    changes = ModelChanges(**settings.options[CHANGES])
    rewrite, stored = build_rewrite(settings), storage(method, changes)
    before = "" if rewrite is None else rewrite.title
    grid = None
    if rewrite is not None and rewrite.searches:
        grid = search_grid(settings.method, settings.options[settings.method])
    parts = [before, method.title, changes.title, "" if refit == "off" else f"then refit ({refit})"]
    return Plan(
        allocate=settings.run.allocate,
        method=method,
        changes=changes,
        storage=stored,
        format=build_format(settings, stored, changes.activations),
        rewrite=rewrite,
        grid=grid,
        block_refit=BlockRefit(steps=steps) if refit in ("block", "both") else None,
        alone_for=_alone_for(settings, method, changes),
        model_refit=ModelRefit(steps=steps) if refit in ("model", "both") else None,
        rotation_learning=_rotation_learning(changes),
        title=", ".join(part for part in parts if part),
    )


def _whole_method(settings: Settings) -> Method:
    """The method with its wrappers, for layers of one width or of several."""
    run = settings.run
    if run.allocate is None and run.allocation is None:
        return build_method(settings)
    candidates = {width: build_method(x) for width, x in by_width(settings).items()}
    first, rewrite = next(iter(candidates.values())), build_rewrite(settings)
    least = min((x for x in candidates if isinstance(x, int)), default=0)
    if run.allocate is not None and run.allocate < least:
        raise InputError(f"allocate is {run.allocate:g}, and the smallest width is {least} bits")
    searches = rewrite is not None and rewrite.searches
    if first.fits_blocks or searches:
        what = f"--rewrite {run.rewrite}" if searches else f"--method {run.method} as it is set"
        raise InputError(f"{what} takes one width for all layers: leave --allocate out")
    widths = {} if run.allocation is None else read_widths(run.allocation, candidates)
    return Allocated(candidates=candidates, widths=widths)


def _alone_for(settings: Settings, method: Method, changes: ModelChanges) -> str | None:
    if changes.rotate == "learned":
        return "--rotate learned"
    if settings.run.allocate is not None:
        return "--allocate"
    if settings.run.rewrite != "off":
        return f"--rewrite {settings.run.rewrite}"
    if settings.run.refit in ("block", "both"):
        return f"--refit {settings.run.refit}"
    if method.range_fit is not None:
        return "--clip learned"
    return f"--method {settings.method}" if method.factor_fit is not None else None


def _rotation_learning(changes: ModelChanges) -> RotationLearning | None:
    if changes.rotate != "learned":
        return None
    return RotationLearning(
        steps=changes.rotate_steps,
        windows=changes.rotate_windows,
        rate=changes.rotate_rate,
        loss=changes.rotate_loss,
        weights=changes.learned_weights,
    )
