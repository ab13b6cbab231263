"""Native checkpoints in vLLM.

vLLM calls `register` in each of its processes, by the entry point `vllm.general_plugins` of
pyproject.toml, and then knows `"quant_method": "q2n"` of config.json. Nothing else imports this
folder: what is in it needs vLLM.
"""


def register() -> None:
    """Make the native layout known to vLLM; once or more often."""
    from vllm.model_executor.layers.quantization import register_quantization_config

    from q2n.formats.native_entry import NativeEntry
    from q2n.formats.vllm.config import NativeConfig

    register_quantization_config(NativeEntry.quant_method)(NativeConfig)
