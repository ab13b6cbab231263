"""The example of every page in docs/howto/ does what the page says."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny import save_tiny, tiny_text
from torch import nn

import q2n
from q2n.errors import InputError
from q2n.formats.format import Format
from q2n.formats.hf_folder import HFFolder
from q2n.formats.load import load_model
from q2n.formats.table import FORMATS
from q2n.kernels import dispatch
from q2n.layers import REPRESENTATIONS
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.method import LayerProblem
from q2n.methods.gptq import GPTQ
from q2n.methods.leanquant import LeanQuant
from q2n.methods.rtn import RTN
from q2n.models.targets import TARGETS, targets_in
from q2n.rewrites.rewrite import Reading
from q2n.wrappers.nullspace import NullSpace

PAGES = Path(__file__).parents[2] / "docs" / "howto"


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The first block of Python of the page that the test is parametrised with, as a module."""

    def load(page: str) -> ModuleType:
        text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
        block = re.search(r"```python\n(.*?)```", text, re.DOTALL)
        assert block is not None
        path = tmp_path_factory.mktemp("page") / f"howto_{page}.py"
        path.write_text(block[1], encoding="utf-8")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def problem() -> LayerProblem:
    torch.manual_seed(0)
    inputs = torch.randn(64, 24) * torch.logspace(-1, 1, 24)
    statistics = InputStatistics(24, RequiredStatistics.GRAM)
    statistics.update(inputs)
    return LayerProblem(name="layer", weight=torch.randn(16, 24), statistics=statistics)


def test_every_page_has_a_test_here():
    pages = {path.stem for path in PAGES.glob("*.md")}
    tested = set(re.findall(r'example\("(\w+)"\)', Path(__file__).read_text(encoding="utf-8")))
    assert pages == tested


def test_the_method_is_never_worse_than_rounding(example, problem):
    method = example("method").OutputClip
    importance = problem.statistics.gram.diagonal()
    clipped, rounded = method(bits=3).quantize(problem), RTN(bits=3).quantize(problem)
    errors = [(problem.weight - q.dequantize()).square() @ importance for q in (clipped, rounded)]
    assert (errors[0] <= errors[1]).all()
    assert clipped.record["clipped_rows"] == int((errors[0] < errors[1]).sum()) > 0
    stepped = NullSpace(inner=method(bits=3)).quantize(problem)
    assert torch.equal(stepped.codes, clipped.codes) and stepped.record["alpha_std"] > 0


def test_the_method_refuses_bad_options(example):
    method = example("method").OutputClip
    with pytest.raises(InputError, match="narrowest"):
        method(narrowest=0.0)
    with pytest.raises(InputError, match="bits"):
        method(bits=5)


@pytest.mark.parametrize("inner", [GPTQ(bits=2), LeanQuant(bits=2)], ids=["uniform", "codebook"])
def test_the_wrapper_restores_row_norms(example, problem, inner):
    layer = example("wrapper").RowNorms(inner=inner).quantize(problem)
    torch.testing.assert_close(layer.dequantize().norm(dim=1), problem.weight.norm(dim=1))
    assert torch.equal(layer.codes, inner.quantize(problem).codes)


def test_the_rewrite_evens_out_the_channels(example):
    torch.manual_seed(0)
    tokens = torch.randn(50, 24) * torch.logspace(-1, 1, 24)
    tokens[:, 3] = 0
    inputs = InputStatistics(24, RequiredStatistics.SIZES)
    inputs.update(tokens)
    scale = (
        example("rewrite")
        .EvenInputs()
        .scale(Reading(name="layer", weights=[torch.randn(8, 24)], inputs=inputs))
    )
    even = (tokens / scale).abs().mean(0)[torch.arange(24) != 3]
    torch.testing.assert_close(even, even.mean().expand(23))
    assert scale[3] == 1


def test_the_representation_rounds_scales_counts_and_returns(example, problem, monkeypatch):
    kind = example("representation").PowersOfTwoLinear
    monkeypatch.setitem(REPRESENTATIONS, kind.kind, kind)
    layer = kind.nearest(problem.weight, 3, torch.float16)
    dense = layer.dequantize()
    ratio = (dense / problem.weight)[problem.weight.abs() > layer.scale[:, None] / 2**7]
    assert ratio.min() > 2**-0.51 and ratio.max() < 2**0.51  # half a step in the logarithm
    alpha = torch.linspace(0.5, 2, 16)
    scaled = layer.scale_rows(alpha).dequantize()
    torch.testing.assert_close(scaled, alpha[:, None] * dense, rtol=2**-10, atol=0)
    assert layer.stored_bits == 16 * 24 * (3 + 1) + 16 * 16
    again = kind.from_tensors(layer.tensors(), layer.metadata())
    assert torch.equal(again.dequantize(), dense)


def test_the_format_writes_and_reads_a_model(example, tmp_path, monkeypatch):
    page = example("format")
    entry = Format("native", page.Int8(), HFFolder(page.Int8Entry()))
    save_tiny(tmp_path / "model")
    (tmp_path / "text.txt").write_text(tiny_text())
    settings = {"corpus": str(tmp_path / "text.txt"), "windows": 2, "length": 16, "bits": 3}
    q2n.quantize(tmp_path / "model", tmp_path / "dense", **settings, format="dequantized")
    monkeypatch.setitem(FORMATS, "native", entry)  # in the place of a name that options know
    q2n.quantize(tmp_path / "model", tmp_path / "int8", **settings, format="native")
    expected = load_model(tmp_path / "dense").state_dict()
    state = load_model(tmp_path / "int8").state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    with pytest.raises(InputError, match="cannot hold what leanquant stores"):
        q2n.quantize(
            tmp_path / "model", tmp_path / "no", method="leanquant", **settings, format="native"
        )


def test_the_kernel_equals_the_reference(example):
    implementation = example("kernel").weighted_error_by_group
    torch.manual_seed(0)
    values, omega = torch.randn(5, 3, 8), torch.rand(3, 8)
    scale, zero = torch.rand(5, 3) + 0.1, torch.randint(0, 4, (5, 3)).float()
    expected = dispatch.weighted_error.reference(values, omega, scale, zero, 3)
    # sums of 8 positive float32 terms in another order
    torch.testing.assert_close(implementation(values, omega, scale, zero, 3), expected, rtol=1e-6,
                               atol=0)  # fmt: skip
    assert dispatch.weighted_error.implementation(torch.device("cpu")) is not implementation


def test_the_target_is_found_and_set(example, monkeypatch):
    page = example("architecture")
    monkeypatch.setitem(TARGETS, page.GroupedLinear, page.GroupedTarget)
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(8, 8), page.GroupedLinear(2, 12, 8))
    targets = targets_in(block)
    assert {name: target.shape for name, target in targets.items()} == {"0": (8, 8), "1": (12, 8)}
    x = torch.randn(3, 8)
    torch.testing.assert_close(block[1](x), x @ targets["1"].weight().T)
    new = torch.randn(12, 8)
    with torch.no_grad():
        targets["1"].set(new)
    torch.testing.assert_close(block[1](x), x @ new.T)
