"""Quantization methods: `LayerProblem -> QuantizedLinear`, one file per method."""

from q2n.method import Method
from q2n.methods.exl3 import EXL3
from q2n.methods.gptq import GPTQ
from q2n.methods.ldlq import LDLQ
from q2n.methods.leanquant import LeanQuant
from q2n.methods.owq import OWQ
from q2n.methods.pbllm import PBLLM
from q2n.methods.ptq161 import PTQ161
from q2n.methods.rtn import RTN

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (RTN, GPTQ, LDLQ, PBLLM, LeanQuant, OWQ, EXL3, PTQ161)
}
"""Every method by its name on the command line."""
