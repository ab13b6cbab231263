"""Layers as bytes: the same layers again."""

import torch

from q2n.layers.quantized import QuantizedLinear
from q2n.linalg.statistics import InputStatistics
from q2n.method import LayerProblem
from q2n.methods.rtn import RTN
from q2n.pipeline.layer_bytes import from_bytes, to_bytes
from q2n.wrappers.incoherence import Incoherence


def layer(seed: int, method) -> QuantizedLinear:
    generator = torch.Generator().manual_seed(seed)
    weight, x = (torch.randn(size, 16, generator=generator) for size in (12, 40))
    statistics = InputStatistics(16)
    statistics.update(x)
    return method.quantize(LayerProblem(name=str(seed), weight=weight, statistics=statistics))


def test_layers_come_back_bit_for_bit():
    layers = {
        "a.q": layer(1, RTN(bits=3)).with_record(damping=0.1),
        "a.k": layer(2, Incoherence(inner=RTN(bits=4))),
        "b": layer(3, RTN(bits=2, group_size=8)),
    }
    again = from_bytes(to_bytes(layers))
    assert list(again) == list(layers)
    for name, one in layers.items():
        assert type(again[name]) is type(one) and again[name].record == one.record
        assert torch.equal(again[name].dequantize(), one.dequantize())
