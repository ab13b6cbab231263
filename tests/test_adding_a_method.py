"""The example of docs/adding-a-method.md does what the page says."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from q2n.errors import InputError
from q2n.linalg.statistics import InputStatistics, RequiredStatistics
from q2n.method import LayerProblem
from q2n.methods.rtn import RTN
from q2n.wrappers.nullspace import NullSpace

PAGE = Path(__file__).parents[1] / "docs" / "adding-a-method.md"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The page's first block of Python, as a module."""
    block = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    path = tmp_path_factory.mktemp("page") / "output_clip.py"
    path.write_text(block[1], encoding="utf-8")
    spec = importlib.util.spec_from_file_location("output_clip", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["output_clip"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def problem() -> LayerProblem:
    torch.manual_seed(0)
    inputs = torch.randn(64, 24) * torch.logspace(-1, 1, 24)
    statistics = InputStatistics(24, RequiredStatistics.GRAM)
    statistics.update(inputs)
    return LayerProblem(name="layer", weight=torch.randn(16, 24), statistics=statistics)


def test_the_example_is_never_worse_than_rounding(example, problem) -> None:
    importance = problem.statistics.gram.diagonal()
    clipped = example.OutputClip(bits=3).quantize(problem)
    rounded = RTN(bits=3).quantize(problem)
    errors = [(problem.weight - q.dequantize()).square() @ importance for q in (clipped, rounded)]
    assert (errors[0] <= errors[1]).all()
    assert clipped.record["clipped_rows"] == int((errors[0] < errors[1]).sum()) > 0


def test_the_example_takes_the_null_space_step(example, problem) -> None:
    plain = example.OutputClip(bits=3)
    stepped = NullSpace(inner=plain).quantize(problem)
    assert torch.equal(stepped.codes, plain.quantize(problem).codes)
    assert stepped.record["alpha_std"] > 0


def test_the_example_refuses_bad_options(example) -> None:
    with pytest.raises(InputError, match="narrowest"):
        example.OutputClip(narrowest=0.0)
    with pytest.raises(InputError, match="bits"):
        example.OutputClip(bits=5)
