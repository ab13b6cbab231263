"""A room imports only from the rooms above it, no file from a file that imports it, and
transformers is known from `transforms` on."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "q2n"

# From top to bottom; the rooms of one line stand side by side and may import each other.
ROOMS = [
    {"version", "errors", "logging", "hub", "option_types", "patterns", "block_types"},
    {"disk"},
    {"linalg"},
    {"data"},
    {"layers"},
    {"distributed"},
    {"kernels"},
    {"grids"},
    {"rewrites"},
    {"method"},
    {"wrappers"},
    {"methods"},
    {"transforms"},
    {"models"},
    {"refit"},
    {"pipeline"},
    {"formats"},
    {"evaluation"},
    {"report"},
    {"config"},
    {"checks", "description"},
    {"planning"},
    {"preprocess"},
    {"run"},
    {"api"},
    {"experiments"},
    {"registration"},
    {"__init__"},  # the front of the package: what `import q2n` gives
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
TOKENIZES = "data"  # with the tokenizer of the model
WITHOUT_TRANSFORMERS = {x for x in LEVEL if LEVEL[x] <= LEVEL["methods"] and x != TOKENIZES}


def imported_modules(source: str, module: str) -> Iterator[str]:
    """Full names that the text of `module` ("q2n.grids.uniform") imports, at any depth."""
    package = module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def room_of(name: str) -> str | None:
    """The room of a full name; the package's front for `q2n.<name>`; None outside q2n."""
    parts = name.split(".")
    if parts[0] != "q2n":
        return None
    return parts[1] if len(parts) > 1 and (len(parts) > 2 or parts[1] in LEVEL) else "__init__"


def violations(source: str, module: str) -> list[str]:
    """What `module` with this text imports and must not."""
    own = room_of(f"{module}.x")
    if own not in LEVEL:
        return [f"{module}: no room {own!r} in the list"]
    found = []
    for name in imported_modules(source, module):
        room = room_of(name)
        if room is not None and LEVEL.get(room, len(ROOMS)) > LEVEL[own]:
            found.append(f"{module} imports {name}: {own!r} is above {room!r}")
        if name.split(".")[0] == "transformers" and own in WITHOUT_TRANSFORMERS:
            found.append(f"{module} imports {name}: {own!r} knows no transformers")
    return found


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_name)
def test_rooms_import_only_from_above(path: Path) -> None:
    assert violations(path.read_text(encoding="utf-8"), module_name(path)) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("q2n.linalg.spectrum", "from q2n.methods.gptq import GPTQ"),
        ("q2n.linalg.spectrum", "import q2n.pipeline.loop"),
        ("q2n.linalg.spectrum", "from q2n import grids"),
        ("q2n.linalg.spectrum", "from ..formats import packing"),
        ("q2n.grids.uniform", "def f():\n    from q2n.models import source"),
        ("q2n.methods.gptq", "from q2n import quantize"),
        ("q2n.methods.gptq", "from transformers import AutoConfig"),
        ("q2n.layers.uniform", "import transformers"),
        ("q2n.wrappers.nullspace", "from q2n.methods import gptq"),
        ("q2n.option_types", "from q2n.linalg import factor"),
        ("q2n.report.card", "from q2n import __version__"),
        ("q2n.errors", "import q2n"),
        ("q2n.__init__", "from q2n.cli.main import main"),
        ("q2n.helpers.strings", "import re"),
    ],
)
def test_a_planted_violation_is_found(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("q2n.methods.gptq", "from q2n.linalg.cholesky import damped\nfrom .problem import Method"),
        ("q2n.errors", "import q2n.logging"),
        ("q2n.report.card", "from q2n.version import __version__\nimport torch"),
        ("q2n.data.tokenizer", "from transformers import AutoTokenizer"),
        ("q2n.models.source", "from transformers import AutoConfig\nimport q2n.errors"),
        ("q2n.__init__", "from q2n.api import quantize"),
    ],
)
def test_an_import_from_above_passes(module: str, source: str) -> None:
    assert violations(source, module) == []


def files_imported(source: str, module: str, modules: set[str]) -> set[str]:
    """The modules of the package that `module` with this text imports, at any depth."""
    names = set(imported_modules(source, module))
    return {x for name in names for x in (name, name.rpartition(".")[0]) if x in modules}


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Modules of which each imports the next and the last the first; empty if there are none."""
    finished: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in finished:
            return []
        for other in sorted(imports[module]):
            if around := visit(other, [*path, module]):
                return around
        finished.add(module)
        return []

    return next((around for module in sorted(imports) if (around := visit(module, []))), [])


def test_no_files_import_each_other_in_a_circle() -> None:
    """Imports within functions and for type checkers count too."""
    sources = {
        module_name(path).removesuffix(".__init__"): (path.read_text(encoding="utf-8"), path)
        for path in PACKAGE.rglob("*.py")
    }
    imports = {
        module: files_imported(text, module_name(path), set(sources)) - {module}
        for module, (text, path) in sources.items()
    }
    assert len(imports) > 50 and imports["q2n.methods"] >= {"q2n.methods.gptq", "q2n.method"}
    assert circle(imports) == []


def test_a_planted_circle_is_found() -> None:
    sources = {
        "q2n.grids.uniform": "from q2n.grids import signed",
        "q2n.grids.signed": "def f():\n    from q2n.grids.fitted import fit",
        "q2n.grids.fitted": "if TYPE_CHECKING:\n    import q2n.grids.uniform",
        "q2n.errors": "import re",
    }
    imports = {name: files_imported(text, name, set(sources)) for name, text in sources.items()}
    assert circle(imports) == [
        "q2n.grids.fitted",
        "q2n.grids.uniform",
        "q2n.grids.signed",
        "q2n.grids.fitted",
    ]
    assert circle({**imports, "q2n.grids.signed": set()}) == []
