"""Scores and continues token ids with vLLM, on a CPU.

    python run_vllm.py '{"folder": DIR, "tokens": [...], "prompt": 8, "new": 12}'

The last line printed is {"loss", "top", "greedy", "kernels", "dtype", "seconds_per_token"}: "top"
is the most probable next token at each place of the text, "kernels" are those of the linears.
"""

import json
import sys
import time

from vllm import LLM, SamplingParams

asked = json.loads(sys.argv[1])
tokens = asked["tokens"]
model = LLM(
    asked["folder"],
    enforce_eager=True,
    max_model_len=256,
    max_num_seqs=2,
    skip_tokenizer_init=True,
    **asked.get("options", {}),
)


def kernels(worker_model) -> list[str]:
    found = set()
    for module in worker_model.modules():
        method = getattr(module, "quant_method", None)
        scheme = getattr(module, "scheme", None)
        kernel = getattr(scheme or method, "kernel", None)
        if kernel is not None:
            found.add(type(kernel).__name__)
    return sorted(found)


scored = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=1, detokenize=False)
(answer,) = model.generate([{"prompt_token_ids": tokens}], scored, use_tqdm=False)
pairs = zip(answer.prompt_logprobs[1:], tokens[1:], strict=True)
losses = [-entry[token].logprob for entry, token in pairs]
entries = answer.prompt_logprobs[1:]
top = [next(token for token, x in entry.items() if x.rank == 1) for entry in entries]

continued = SamplingParams(
    max_tokens=asked["new"], temperature=0, ignore_eos=True, detokenize=False
)
start = time.process_time()
(answer,) = model.generate(
    [{"prompt_token_ids": tokens[: asked["prompt"]]}], continued, use_tqdm=False
)
seconds = (time.process_time() - start) / asked["new"]
print(
    json.dumps(
        {
            "loss": sum(losses) / len(losses),
            "top": top,
            "greedy": list(answer.outputs[0].token_ids),
            "kernels": model.apply_model(kernels)[0],
            "dtype": str(model.llm_engine.model_config.dtype),
            "seconds_per_token": seconds,
        }
    )
)
