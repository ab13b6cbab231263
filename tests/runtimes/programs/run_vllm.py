"""Scores and continues token ids with vLLM, on a CPU.

    python run_vllm.py '{"folder": DIR, "tokens": [...], "prompt": 8, "new": 12}'

The last line printed is {"loss", "top", "greedy", "kernels", "dtype", "seconds_per_token"}: "top"
is the most probable next token at each place of the text, "kernels" are those of the linears (None
with several ranks).
"""

import json
import sys
import time

from vllm import LLM, SamplingParams


def kernels(worker_model) -> list[str]:
    found = set()
    for module in worker_model.modules():
        method = getattr(module, "quant_method", None)
        scheme = getattr(module, "scheme", None)
        kernel = getattr(scheme or method, "kernel", None)
        for weight in getattr(method, "packed", []) or [kernel]:
            found.add(type(weight).__name__)
    return sorted(found - {"NoneType"})


def main(asked: dict) -> None:
    tokens = asked["tokens"]
    ranks = asked.get("options", {}).get("tensor_parallel_size", 1)
    model = LLM(
        asked["folder"],
        max_model_len=256,
        max_num_seqs=2,
        skip_tokenizer_init=True,
        **{"enforce_eager": True, **asked.get("options", {})},
    )
    scored = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=1, detokenize=False)
    (answer,) = model.generate([{"prompt_token_ids": tokens}], scored, use_tqdm=False)
    entries = answer.prompt_logprobs[1:]
    pairs = zip(entries, tokens[1:], strict=True)
    losses = [-entry[token].logprob for entry, token in pairs]
    top = [next(token for token, x in entry.items() if x.rank == 1) for entry in entries]

    continued = SamplingParams(
        max_tokens=asked["new"], temperature=0, ignore_eos=True, detokenize=False
    )
    start = time.process_time()
    prompt = {"prompt_token_ids": tokens[: asked["prompt"]]}
    (answer,) = model.generate([prompt], continued, use_tqdm=False)
    seconds = (time.process_time() - start) / asked["new"]
    found = {
        "loss": sum(losses) / len(losses),
        "top": top,
        "greedy": list(answer.outputs[0].token_ids),
        "kernels": None if ranks > 1 else model.apply_model(kernels)[0],
        "dtype": str(model.llm_engine.model_config.dtype),
        "seconds_per_token": seconds,
    }
    print(json.dumps(found))


if __name__ == "__main__":  # with several ranks this file is imported again, once in each
    main(json.loads(sys.argv[1]))
