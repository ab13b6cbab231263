"""How long do a model of 70 billion weights and one of 671 take on 1, 8 and 64 GPUs?

Prints the table and the list of docs/scaling.md, from shapes (no checkpoint is needed) and stated
rates. Nothing is measured.

    python benchmarks/scaling.py
"""

import sys
from dataclasses import replace

from transformers import DeepseekV3Config, LlamaConfig, PretrainedConfig

from q2n.config.reading import read_settings
from q2n.models.config_source import ConfigSource
from q2n.planning.forecast import Forecast, forecast
from q2n.planning.rates import Rates
from q2n.planning.settings import describe_run

LLAMA_70B = LlamaConfig(
    vocab_size=128256,
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    max_position_embeddings=131072,
    dtype="bfloat16",
)
"""LLaMA-3.3-70B."""

DEEPSEEK_V3 = DeepseekV3Config(
    vocab_size=129280,
    hidden_size=7168,
    intermediate_size=18432,
    moe_intermediate_size=2048,
    num_hidden_layers=61,
    num_attention_heads=128,
    num_key_value_heads=128,
    n_shared_experts=1,
    n_routed_experts=256,
    num_experts_per_tok=8,
    first_k_dense_replace=3,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_rope_head_dim=64,
    qk_nope_head_dim=128,
    v_head_dim=128,
    n_group=8,
    topk_group=4,
    dtype="bfloat16",
)
"""DeepSeek-V3, 671 billion weights, of which a token meets 37."""

MODELS: dict[str, PretrainedConfig] = {"LLaMA-3.3-70B": LLAMA_70B, "DeepSeek-V3": DEEPSEEK_V3}
SETTINGS = {
    "GPTQ": {"method": "gptq", "bits": 4, "group_size": 128, "symmetric": True},
    "GPTQ, good": {
        "method": "gptq",
        "bits": 4,
        "group_size": 128,
        "symmetric": True,
        "quality": "good",
    },
}
"""Symmetric: vLLM reads packed experts in no other way."""
RANKS = (1, 8, 64)

NVLINK, NETWORK = 450e9 * 0.8, 50e9 * 0.8
"""Bytes a second between two devices of a host, and of two hosts."""


def rates(ranks: int) -> Rates:
    """H100 SXM: data sheet times efficiency."""
    return Rates(
        product=989e12 * 0.5,  # bfloat16, dense
        float32=67e12 * 0.6,  # without tensor cores, as q2n computes statistics and methods
        memory=3.35e12 * 0.8,
        link=64e9 * 0.8,  # PCIe 5, 16 lanes
        between=NVLINK if ranks <= 8 else NETWORK,
        disk=6e9,  # an NVMe disk, or as much of a shared file system
        device_bytes=80e9,
        host_bytes=2e12,
        libraries_bytes=4e9,
    )


def forecasts() -> dict[tuple[str, str, int], Forecast]:
    """By model, settings and devices."""
    found = {}
    for model, config in MODELS.items():
        source = ConfigSource(config, model, "auto")
        for name, settings in SETTINGS.items():
            read = read_settings({"model": model, "output": "out", **settings})
            run = describe_run(read, source, on_device=True)
            for ranks in RANKS:
                load = replace(run.load, ranks=ranks)
                found[model, name, ranks] = forecast(run.shapes, load, rates(ranks))
    return found


def table(found: dict[tuple[str, str, int], Forecast]) -> str:
    """Markdown."""
    stages = ("load", "measure", "solve", "write")
    head = ["model", "settings", "GPUs", *stages, "in all", "bound by", "of a GPU", "host", "disk"]
    rows = [head, ["---"] * len(head)]
    for (model, name, ranks), each in found.items():
        longest = max(each.stages, key=lambda stage: stage.seconds)
        rows.append(
            [
                model,
                name,
                str(ranks),
                *(minutes(each.stage(stage).seconds) for stage in stages),
                minutes(each.seconds),
                f"{longest.name}: {longest.bound_by}",
                f"{each.device_bytes / 1e9:.0f} GB",
                f"{each.host_bytes / 1e9:.0f} GB",
                f"{each.disk_bytes / 1e9:.0f} GB",
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def notes(found: dict[tuple[str, str, int], Forecast]) -> str:
    """What does not fit, as a list."""
    lines = [
        f"- {model}, {name}, {ranks} GPU{'s' if ranks > 1 else ''}: {note}."
        for (model, name, ranks), each in found.items()
        for note in each.notes
    ]
    return "\n".join(lines) + "\n"


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    predicted = forecasts()
    sys.stdout.write(f"{table(predicted)}\n{notes(predicted)}")
