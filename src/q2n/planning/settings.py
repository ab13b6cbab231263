"""From the settings of a run to what a forecast reads of them; only config.json is opened."""

from dataclasses import dataclass, replace
from pathlib import Path

from q2n.checks import check_layers, check_ranks
from q2n.config.opening import evaluated_length, loop_options
from q2n.config.owners import Plan, build_plan
from q2n.config.settings import RunSettings, Settings
from q2n.data.texts import require_positions
from q2n.method import Method
from q2n.models.blocks import BlockwiseModel
from q2n.models.config_source import ConfigSource
from q2n.models.devices import parse_device
from q2n.models.model_source import ModelSource
from q2n.models.rotated_source import changed_source
from q2n.models.targets import LayerFilter
from q2n.pipeline.bit_costs import tried_of
from q2n.planning.forecast import Forecast, forecast
from q2n.planning.load import Load
from q2n.planning.rates import Rates, measured_rates
from q2n.planning.shapes import ModelShapes, shapes_of
from q2n.planning.stored import layer_sizes


@dataclass(frozen=True)
class Described:
    """A run as its settings and its model's configuration describe it."""

    shapes: ModelShapes
    load: Load
    source: ModelSource
    title: str
    """Model, method, text and format in one line."""

    def forecast(self, rates: Rates) -> Forecast:
        """What it needs on a machine with these rates."""
        return replace(forecast(self.shapes, self.load, rates), title=self.title)


def planned(settings: Settings, rates: Path | None = None, ranks: int = 1) -> Forecast:
    """What a run with these settings needs.

    Args:
        rates: JSON file of stated rates; those that it lacks, and without a file all, are measured.
        ranks: devices among which the run is divided.

    Raises:
        InputError: no such model, settings that do not fit it, or no such rates.
    """
    device = parse_device(settings.run.device)
    run = describe_run(settings, on_device=device.type != "cpu", ranks=ranks)

    def measured() -> Rates:
        return measured_rates(device, run.source.dtype)

    return run.forecast(measured() if rates is None else Rates.from_file(rates, measured))


def describe_run(
    settings: Settings, source: ModelSource | None = None, *, on_device: bool, ranks: int = 1
) -> Described:
    """A run of these settings.

    Args:
        source: the model, in the place of the one that the settings name.
        on_device: whether it runs on a device with a memory of its own.

    Raises:
        InputError: as `planned`.
    """
    config, plan = settings.run, build_plan(settings)
    check_ranks(ranks, plan, config)
    layers = LayerFilter(config.ignore, config.only)
    if source is None:
        source = ConfigSource.open(
            config.model,
            config.dtype,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
        )
    changed = changed_source(source, plan.changes, config.seed, layers)
    blocks = BlockwiseModel(changed, "cpu", layers)
    check_layers(blocks, plan, config.runtime)
    plan.format.container.check(changed, plan.storage)
    if plan.reads_text:
        require_positions(config.length, blocks.longest)
    load = _load(config, plan, blocks, on_device, ranks)
    return Described(shapes_of(blocks), load, changed, _title(config, plan, source))


def _title(config: RunSettings, plan: Plan, source: ModelSource) -> str:
    text = f", {config.windows} windows of {config.length} tokens" if plan.reads_text else ""
    return f"{source.label}: {plan.title}{text}, written as {plan.format.name}"


def _sized(plan: Plan) -> Method:
    """A method whose layers take what those of the run do, on the average."""
    return plan.method if plan.allocated is None else plan.allocated.typical(plan.allocate)


def _load(
    config: RunSettings,
    plan: Plan,
    blocks: BlockwiseModel,
    on_device: bool,
    ranks: int,
) -> Load:
    load = Load(
        windows=config.windows if plan.streams else 0,
        length=config.length,
        evaluated=config.ppl_windows if config.ppl else 0,
        evaluated_length=evaluated_length(config),
        divergence=config.kl,
        options=loop_options(config),
        required=plan.method.required_statistics,
        work=plan.method.work,
        rewrite=None if plan.rewrite is None else plan.rewrite.work,
        rewrite_passes=0 if plan.rewrite is None else plan.rewrite.passes,
        streams=plan.streams,
        block_refit=plan.block_refit.steps if plan.block_refit is not None else 0,
        range_fit=plan.method.range_fit,
        factor_fit=plan.method.factor_fit,
        model_refit=plan.model_refit.steps if plan.model_refit is not None else 0,
        rotation_steps=plan.changes.rotate_steps * plan.changes.rotate_windows
        if plan.rotation_learning is not None
        else 0,
        gradients=plan.method.reads_gradients,
        sizes=layer_sizes(_sized(plan), plan.format.codec, blocks.source.dtype),
        kept_bytes=plan.format.container.kept(blocks.source, blocks.targets()).bits / 8,
        on_device=on_device,
        ranks=ranks,
    )
    return replace(load, trials=_trials(load, config, plan))


def _trials(load: Load, config: RunSettings, plan: Plan) -> Load | None:
    """Of a run that finds the widths of layers: all trials at one width."""
    if plan.allocate is None or plan.allocated is None:
        return None
    tried = tried_of(plan.allocated.trials)
    method = next(iter(tried.values()))
    return replace(
        load,
        windows=config.windows,
        required=method.required_statistics,
        work=method.work,
        gradients=False,
        rewrite=None,
        rewrite_passes=0,
        streams=1,
        widths=len(tried),
    )
