"""A forecast beside what a run takes, and the numbers that must hold in any."""

from dataclasses import replace
from functools import cache
from math import prod

import pytest
from tiny import save_tiny, tiny_model, tiny_text
from torch import nn

import q2n
from q2n.config.reading import read_settings
from q2n.linalg.required_statistics import RequiredStatistics, bytes_of_sums
from q2n.method import Work
from q2n.models.config_source import ConfigSource
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.store import RunStore
from q2n.planning.rates import Rates
from q2n.planning.settings import Described, describe_run

RATES = Rates(
    product=1e12,
    float32=1e11,
    memory=1e11,
    link=1e10,
    between=1e10,
    disk=1e9,
    device_bytes=1e10,
    host_bytes=1e10,
    libraries_bytes=1e8,
)
TEXT = {"windows": 4, "length": 32}


@cache
def described(
    architecture="llama", *, on_device=False, ranks=1, model=None, **settings
) -> Described:
    config = tiny_model(architecture, layers=4).config if model is None else model.config
    config.max_position_embeddings = max(4096, settings.get("length", 0))
    source = ConfigSource(config, architecture, settings.get("dtype", "auto"))
    read = read_settings({"model": architecture, "output": "x", **TEXT, **settings})
    return describe_run(read, source, on_device=on_device, ranks=ranks)


METHODS = [
    {"method": "rtn", "bits": 4},
    {"method": "gptq", "bits": 3, "group_size": 32, "nullspace": True},
    {"method": "leanquant", "bits": 3, "format": "native"},
    {"method": "quip", "bits": 2, "format": "native"},
    {"method": "gptq", "bits": 4, "dtype": "bfloat16", "refit": "model", "refit_steps": 1},
    {"method": "ptq161", "format": "native", "fit_epochs": 1},
    {"method": "gptq", "bits": 3, "output_feedback": True},
]


MIXTURE = {"method": "rtn", "bits": 4, "group_size": 32, "symmetric": True}
DISK = [*(("llama", settings) for settings in METHODS), ("mixtral", MIXTURE)]


@pytest.mark.parametrize(("architecture", "settings"), DISK)
def test_disk_is_that_of_a_run(tmp_path, monkeypatch, architecture, settings):
    """All tensors of the checkpoint, and of the finished blocks beside it."""
    save_tiny(tmp_path / "model", architecture, layers=4)
    (tmp_path / "text.txt").write_text(tiny_text())
    finished = []
    monkeypatch.setattr(RunStore, "remove", lambda store: finished.extend(_tensors(store)) or [])
    done = q2n.quantize(
        tmp_path / "model", tmp_path / "out", corpus=str(tmp_path / "text.txt"), **TEXT, **settings
    )
    found = described(architecture, **settings).forecast(RATES)
    assert found.checkpoint_bytes == pytest.approx(done.bytes_after, rel=0.02)
    assert found.disk_bytes - 2 * found.checkpoint_bytes == pytest.approx(sum(finished), rel=0.1)


def _tensors(store: RunStore) -> list[int]:
    """Bytes of the tensors of all finished blocks, and of the refitted ones."""
    from safetensors.torch import load_file

    files = store.folder.glob("*.safetensors")
    return [
        x.nbytes for file in files for name, x in load_file(file).items() if "norm_w" not in name
    ]


def test_seconds_fall_with_rates():
    run = described(bits=3)
    slow = run.forecast(RATES)
    fast = run.forecast(replace(RATES, product=2 * RATES.product, float32=2 * RATES.float32))
    assert fast.stage("solve").seconds == slow.stage("solve").seconds / 2
    assert fast.stage("write").seconds == slow.stage("write").seconds
    assert slow.stage("write").bound_by == "disk"


def test_windows_cost_memory_unless_on_disk():
    few, many = (described(windows=n).forecast(RATES).host_bytes for n in (4, 4000))
    assert many > few + 3000 * 32 * 64 * 4
    on_disk = [described(windows=n, activations="disk").forecast(RATES) for n in (4, 4000)]
    assert on_disk[0].stage("measure").host_bytes == on_disk[1].stage("measure").host_bytes
    assert on_disk[1].disk_bytes > 4000 * 32 * 64 * 4


def test_a_result_is_measured_on_windows_of_the_protocol():
    """llama.cpp's have 512 tokens, whatever calibration has."""
    text = {"length": 2048, "ppl": "wikitext2", "ppl_windows": 64}
    stages = [
        described(**{**text, **more}).forecast(RATES).stage("evaluate")
        for more in ({}, {"protocol": "llama.cpp"}, {"protocol": "llama.cpp", "length": 512})
    ]
    assert stages[1].seconds == stages[2].seconds < stages[0].seconds
    assert stages[1].host_bytes == stages[2].host_bytes < stages[0].host_bytes


def test_a_limit_of_inputs_is_kept():
    shapes = described(windows=4000)
    limit = 1e6 / 2**30
    limited = described(windows=4000, activations="cpu", activations_limit=limit)
    whole = described(windows=4000, activations="cpu").forecast(RATES)
    saved = whole.stage("measure").host_bytes - limited.forecast(RATES).stage("measure").host_bytes
    assert saved == 4000 * 32 * 64 * 4 - 1_000_000
    assert shapes.load.options == LoopOptions(seed=0)


def test_a_learned_rotation_is_counted():
    own = {"method": "rtn", "bits": 4, "activation_bits": 8, "format": "native"}
    without, few, many = (
        described(**own, **more).forecast(RATES)
        for more in (
            {"rotate": "hadamard"},
            {"rotate": "learned", "rotate_steps": 10},
            {"rotate": "learned", "rotate_steps": 30},
        )
    )
    assert "rotate" not in [stage.name for stage in without.stages]
    assert many.stage("rotate").seconds == pytest.approx(3 * few.stage("rotate").seconds)
    # the model and its weights once more
    assert few.stage("rotate").host_bytes > 1e8 + 2 * described(**own).shapes.bytes - 128 * 64 * 8
    assert few.stage("measure") == without.stage("measure")  # no text runs through the blocks
    assert few.disk_bytes == without.disk_bytes + 8 * 64**2


def test_ranks_share_windows_and_layers():
    one, four = (described(on_device=True, ranks=n, windows=64).forecast(RATES) for n in (1, 4))
    assert four.stage("measure").device_bytes < one.stage("measure").device_bytes
    assert four.stage("solve").seconds < one.stage("solve").seconds
    assert four.stage("load").seconds == one.stage("load").seconds


def test_experts_hold_a_group_of_grams():
    """All of them where they fit; else a gibibyte."""
    run = described("mixtral", bits=4, format="native")
    from q2n.planning.memory import MemoryOfStages

    memory = MemoryOfStages(run.shapes, run.load, 0.0)
    site = next(x for x in run.shapes.blocks[0].sites if x.copies > 1)
    assert memory.statistics(site) == 8 * bytes_of_sums(RequiredStatistics.GRAM, 64)
    assert memory.statistics(replace(site, width=8192, copies=256)) == 2**30
    one = memory.statistics(replace(site, width=32768, copies=256))
    assert one == bytes_of_sums(RequiredStatistics.GRAM, 32768)


@pytest.mark.parametrize(
    ("work", "operations"),
    [
        (Work(layer=1.0), 2 * (64**2 * (3 * 64 + 64 + 2 * 96) + 96**2 * 64)),
        (Work(site=1.0), 2 * (3 * 64**3 + 96**3)),
        (Work(alone=1.0), 2 * ((3 + 1 + 2) * 64**3 + 96**3)),
        (Work(weight=1.0), 64 * (3 * 64 + 64 + 2 * 96) + 96 * 64),
        (Work(rows=1.0), 2 * (64 * (3 * 64**2 + 64**2 + 2 * 96**2) + 96 * 64**2)),
        (Work(output=1.0), 2 * (5 * 64**3 + 2 * 96**3)),
    ],
)
def test_solving_takes_what_a_method_says(work, operations):
    """Of 4 blocks; k and v count as q."""
    run = described(bits=3)
    found = replace(run, load=replace(run.load, work=work)).forecast(RATES)
    assert found.stage("solve").seconds == pytest.approx(4 * operations / RATES.float32)


@pytest.mark.parametrize("method", ["gptq", "ldlq"])
def test_feedback_between_rows_takes_time_to_solve(method):
    own = {"method": method, "bits": 3, "format": "native"}
    without, beside = (
        described(**own, output_feedback=x).forecast(RATES).stage("solve").seconds
        for x in (False, True)
    )
    assert beside > 1.2 * without


def test_folds_are_exchanged_too():
    settings = {"ranks": 2, "output_scales": True}
    one, both = (
        described(**settings, scales_held_out=held_out)
        .forecast(replace(RATES, product=1e30, float32=1e30, memory=1e30))
        .stage("measure")
        for held_out in (False, True)
    )
    assert one.bound_by == "exchange" and both.seconds == pytest.approx(2 * one.seconds)


def test_what_does_not_fit_is_named():
    run = described(windows=4000)
    assert run.forecast(RATES).notes == ()
    [note] = run.forecast(replace(RATES, host_bytes=1.2e8)).notes
    assert "0.1 GB" in note and "--activations disk" in note


def test_a_pass_multiplies_every_weight_twice():
    """Measured: 2 operations a weight and token, half of all pairs in attention."""
    run = described(method="gptq", bits=4)
    found = run.forecast(replace(RATES, float32=1e30, memory=1e30, product=1.0))
    linears = 4 * sum(map(prod, [(64, 64), (32, 64), (32, 64), (64, 64), *[(96, 64)] * 3]))
    norms = 4 * 2 * 64
    tokens = 4 * 32
    pairs = 4 * 2 * 4 * (16 + 16) * 32 / 2
    assert found.stage("measure").seconds == pytest.approx(
        tokens * (2 * (linears + norms) + pairs), rel=1e-6
    )


def test_fits_of_a_method_cost_their_steps():
    """A step for every window and epoch; the outputs to reach lie beside the streams."""
    refit = described(method="rtn", bits=4, refit="block", refit_steps=40).forecast(RATES)
    ranges = described(method="omniquant", bits=4, clip_epochs=10).forecast(RATES)
    factors = described(method="ptq161", format="native", fit_epochs=5).forecast(RATES)
    seconds = [x.stage("refit").seconds for x in (refit, ranges, factors)]
    assert seconds == pytest.approx([seconds[0], seconds[0], seconds[0] / 2])
    both = described(method="omniquant", bits=2).forecast(RATES).stage("refit")
    assert both.host_bytes - ranges.stage("refit").host_bytes == 4 * 32 * 64 * 4
    assert both.seconds == pytest.approx(4 * seconds[1])


def test_a_stream_that_no_site_reads_pauses_nowhere():
    """It holds its block and the block's input, 4 windows of 32 tokens of 64 numbers."""
    alone, beside = (
        described(method="gptq", bits=4, refit=refit).forecast(RATES).stage("measure")
        for refit in ("off", "block")
    )
    block = sum(x.nbytes for x in tiny_model(layers=4).model.layers[0].parameters())
    assert beside.host_bytes - alone.host_bytes == block + 4 * 32 * 64 * 4


def test_nothing_of_a_weight_is_read(tmp_path):
    model = tiny_model(layers=4)
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(tmp_path)
    read = read_settings({"model": str(tmp_path), "output": "x", **TEXT})
    assert describe_run(read, on_device=False).forecast(RATES).checkpoint_bytes > 0


def test_layers_of_several_widths_take_about_what_was_asked_for():
    own = {"method": "gptq", "group_size": 32, "format": "native"}
    few, more = (described(**own, allocate=bits).forecast(RATES) for bits in (2.6, 4.2))
    for bits, found in ((3, few), (4, more)):
        assert (
            found.checkpoint_bytes == described(**own, bits=bits).forecast(RATES).checkpoint_bytes
        )


def test_finding_widths_is_a_stage_of_its_own():
    """Its passes: one to measure, one to keep the inputs of blocks, three forward and back. On disk
    lie the inputs of four blocks and the last output."""
    own = {"method": "gptq", "group_size": 32, "format": "native", "dtype": "float32"}
    plain, found = (described(**own, **more) for more in ({"bits": 3}, {"allocate": 3.5}))
    assert "allocate" not in [x.name for x in plain.forecast(RATES).stages]
    slow = replace(RATES, float32=1e30, memory=1e30, disk=1e30, product=1.0)
    passes = plain.forecast(slow).stage("measure").seconds
    head = 6 * 64 * plain.shapes.words * 4 * 32
    seconds = found.forecast(slow).stage("allocate").seconds
    assert seconds == pytest.approx(5 * passes + head, rel=1e-6)
    longer = described(**own, allocate=3.5, length=4096).forecast(RATES)
    assert longer.disk_bytes == 5 * 4 * 4096 * 64 * 4
    assert longer.stage("allocate").host_bytes > longer.stage("measure").host_bytes


def test_gradients_are_a_stage_of_their_own():
    """A pass forward, one forward and back, sums of squares of the outputs. On disk lie the inputs
    of four blocks and the last output, and to the end the sums, in two bytes."""
    own = {"method": "gptq", "bits": 3, "format": "native", "dtype": "float32"}
    plain, found = (described(**own, **more) for more in ({}, {"output_feedback": True}))
    assert "gradients" not in [x.name for x in plain.forecast(RATES).stages]
    slow = replace(RATES, float32=1e30, memory=1e30, disk=1e30, product=1.0)
    passes = plain.forecast(slow).stage("measure").seconds
    tokens, words = 4 * 32, plain.shapes.words
    moments = sum(block.output_moments for block in plain.shapes.blocks)
    model = tiny_model("llama", layers=4)
    linears = [x for x in model.model.modules() if isinstance(x, nn.Linear)]
    assert moments == sum(x.out_features**2 for x in linears)
    computed = 3 * passes + 6 * 64 * words * tokens + 2 * 0.56 * tokens * moments
    assert found.forecast(slow).stage("gradients").seconds == pytest.approx(computed, rel=1e-6)
    longer = described(**own, output_feedback=True, length=4096).forecast(RATES)
    assert longer.disk_bytes == 5 * 4 * 4096 * 64 * 4 + 2 * moments
    assert longer.stage("gradients").host_bytes > plain.forecast(RATES).stage("measure").host_bytes
    alone, four = (
        described(**own, output_feedback=True, length=4096, ranks=ranks).forecast(RATES)
        for ranks in (1, 4)
    )
    assert four.disk_bytes == alone.disk_bytes == longer.disk_bytes  # the first rank's stage
    half = described(**own, output_feedback=True, gradient_tokens=2 * 32).forecast(slow)
    assert half.stage("gradients").seconds == pytest.approx(computed / 2, rel=1e-6)


def test_widths_of_a_method_without_statistics_take_text_too():
    found = described(method="rtn", group_size=32, format="native", allocate=3.5)
    assert found.load.windows == 0 and found.load.trials.windows == 4
    assert found.forecast(RATES).stage("allocate").seconds > 0


def test_experts_share_the_moments_of_the_sum_they_add_to():
    """A token adds to them once for each of the two experts of eight that it meets."""
    run = described("mixtral", method="gptq", bits=3, format="native", output_feedback=True)
    block = run.shapes.blocks[0]
    experts = [x for site in block.sites if site.copies > 1 for x in site.matrices]
    inner = next(x.rows for x in experts if not x.name.endswith("down_proj"))
    dense = sum(x.rows**2 for site in block.sites if site.copies == 1 for x in site.matrices)
    assert block.output_moments == dense + 8 * 2 * inner**2 + 64**2
    assert block.output_products == dense + 2 * (2 * inner**2 + 64**2)
