"""Scores and continues token ids with OpenVINO, through its PyTorch frontend.

    python run_openvino.py '{"folder": DIR, "tokens": [...], "prompt": 8, "new": 12}'

The last line printed is {"loss", "greedy", "packed", "seconds_per_token"}; "packed" counts the
4-bit constants of the converted model. There is no cache: each token takes the whole text so far.
"""

import json
import sys
import time

import numpy as np
import openvino as ov
import torch
from transformers import AutoModelForCausalLM

asked = json.loads(sys.argv[1])
tokens = asked["tokens"]
# In float32 whatever the file has: the converter traces the linears as such.
model = AutoModelForCausalLM.from_pretrained(asked["folder"], dtype=torch.float32).eval()
model._forward_pre_hooks.clear()  # the one that unpacks the weights at the first call


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        # With a mask transformers does not look for texts packed into one row (torch.diff).
        mask = torch.ones_like(input_ids)
        return self.model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits


example = torch.tensor([tokens[:8]])
converted = ov.convert_model(Logits(model), example_input=example)
packed = sum(
    op.get_type_name() == "Constant" and op.get_element_type() in (ov.Type.u4, ov.Type.i4)
    for op in converted.get_ops()
)
exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
compiled = ov.compile_model(converted, "CPU", exact)


def logits(ids):
    return np.asarray(compiled(np.array([ids], dtype=np.int64))[0][0], dtype=np.float64)


scored = logits(tokens[:-1])
loss = (np.logaddexp.reduce(scored, axis=1) - scored[np.arange(len(scored)), tokens[1:]]).mean()
ids = tokens[: asked["prompt"]]
start = time.process_time()
for _ in range(asked["new"]):
    ids = [*ids, int(logits(ids)[-1].argmax())]
seconds = (time.process_time() - start) / asked["new"]
answer = {"loss": float(loss), "greedy": ids[asked["prompt"] :], "packed": packed}
print(json.dumps({**answer, "seconds_per_token": seconds}))
