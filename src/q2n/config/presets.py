"""Presets: names for explicit settings, written out for each method.

What a user sets beside a preset wins over it; a quality wins over the preset of the method.
"""

from collections.abc import Mapping
from typing import Any

Values = Mapping[str, Any]

METHOD_PRESETS: dict[str, dict[str, Any]] = {
    "quip": {
        "method": "ldlq",
        "incoherence": "kronecker",
        "incoherence_rescale": True,
        "grid": "uniform",
        "clip_sigma": 2.4,
        "clamp_first": True,
        # QuIP damps before and after its rotation, by 0.01 each. The rotation is orthogonal, so
        # that both add a multiple of the identity: one damping by 1.01^2 - 1 is the same.
        "damping": 0.0201,
    },
    "quarot": {
        "method": "gptq",
        "grid": "signed",
        "symmetric": True,
        "clip": "mse",
        "act_order": False,
        "rotate": "hadamard",
        "activation_bits": 4,
    },
    "awq": {"method": "rtn", "rewrite": "awq", "rewrite_clip": True},
    "omniquant": {"method": "rtn", "clip": "learned"},
    "spinquant": {
        "method": "gptq",
        "grid": "signed",
        "symmetric": True,
        "clip": "mse",
        "act_order": False,
        "rotate": "learned",
        "activation_bits": 4,
    },
}
"""`--method NAME` of a published method that is another one with these settings."""

FORMAT_PRESETS: dict[str, dict[str, Any]] = {"mlx": {"group_size": 64}}
"""What a format stands for where nothing else is said: one that has no scale for a whole row."""

PRESET_SUMMARIES = {
    "quip": "As published: LDLQ in a random basis. Far better with --quality good.",
    "quarot": "GPTQ on a signed grid after Hadamard rotations, activations in 4 bits.",
    "awq": "As published: round to nearest after scales and clipping; see --rewrite.",
    "omniquant": "Round to nearest in ranges learned on each block's output; needs text.",
    "spinquant": "GPTQ on a signed grid after learned rotations, activations in 4 bits.",
}

PRESET_STRATEGIES = {
    "quip": "rotation",
    "quarot": "rotation",
    "spinquant": "rotation",
    "awq": "salience",
    "omniquant": "optimization",
}
"""`Method.strategy` of the presets."""

_CLOSED_FORMS: dict[str, Any] = {
    "correct": True,
    "output_scales": "full_precision",
    "stream_share": 0.5,
}
_GOOD: dict[str, dict[str, Any]] = {
    "rtn": {**_CLOSED_FORMS, "clip": "scale_zero"},
    "gptq": {**_CLOSED_FORMS, "clip": "scale_zero", "range_trials": True},
    "ldlq": {**_CLOSED_FORMS, "grid": "trellis"},
    "quip": {
        **_CLOSED_FORMS,
        "grid": "trellis",
        "clip_sigma": None,
        "clamp_first": False,
        "incoherence_rescale": False,
    },
    "pbllm": _CLOSED_FORMS,
    "leanquant": _CLOSED_FORMS,
    "owq": {**_CLOSED_FORMS, "clip": "scale_zero"},
    "exl3": _CLOSED_FORMS,
    "quarot": _CLOSED_FORMS,
    "awq": {**_CLOSED_FORMS, "clip": "scale_zero", "rewrite_clip": False},
    "omniquant": _CLOSED_FORMS,
    "ptq161": _CLOSED_FORMS,
    "spinquant": _CLOSED_FORMS,
}
_OUTPUT_SIDE: dict[str, dict[str, Any]] = {
    method: {"output_feedback": True} for method in ("gptq", "ldlq", "quip", "quarot", "spinquant")
}
"""What `best` adds to the methods that have it."""
QUALITIES: dict[str, dict[str, dict[str, Any]]] = {
    "good": _GOOD,
    "best": {
        method: {**settings, "refit": "model", **_OUTPUT_SIDE.get(method, {})}
        for method, settings in _GOOD.items()
    },
}
"""`--quality NAME`, by method."""

ANY_METHOD = {"good": _CLOSED_FORMS, "best": {**_CLOSED_FORMS, "refit": "model"}}
"""The same for a method that has no entry there."""

_RELEASED: dict[str, Any] = {
    "index": "released",
    "gram": "mean_activation",
    "reference": "compensated",
    "skip_layers": ("*down_proj",),
}
RELEASED_NULLSPACE: dict[str, dict[str, Any]] = {
    "gptq": {**_RELEASED, "solver": "adam"},
    "pbllm": _RELEASED,
    "leanquant": _RELEASED,
    "owq": _RELEASED,
    # Its layers have names in ".module" there, which the exception for down_proj does not know.
    "quarot": {**_RELEASED, "skip_layers": ()},
}
"""`--nullspace released`, by method: what the authors' file for it sets. (`--nullspace paper` is
the defaults.) Their file for QuIP never measures the input, so that every alpha is 1; there is none
for round to nearest."""

WHEN_ALONE = {
    "nullspace": ("paper", "off"),
    "output_scales": ("full_precision", "off"),
    "incoherence": ("kronecker", "off"),
    "rotate": ("hadamard", "none"),
}
"""What True, or the flag without a word, and False mean for settings that take a word."""

ALIASES = {
    "nsamples": "windows",
    "seqlen": "length",
    "wbits": "bits",
    "groupsize": "group_size",
    "lambda": "ridge",
}
"""Other names of settings: those of the field's scripts, and the paper's."""
