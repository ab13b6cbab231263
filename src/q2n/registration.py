"""`import q2n` teaches transformers the native layout, without importing transformers.

transformers and torch take seconds to import, and not everybody who imports q2n needs them. So
the layout is registered right after transformers imports its own registries, or at once if it
has done so already.
"""

import sys
from collections.abc import Iterable
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

REGISTRIES = "transformers.quantizers.auto"
LOADER = "q2n.formats.native_loader"


def register() -> None:
    """Register now, or when transformers' registries are imported."""
    if REGISTRIES in sys.modules:
        import_module(LOADER)
    else:
        sys.meta_path.insert(0, _AfterRegistries())


class _AfterRegistries(MetaPathFinder):
    """Finds one module, as the others would, and registers once it is executed."""

    def find_spec(
        self, fullname: str, path: Iterable[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != REGISTRIES:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            import_module(LOADER)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
