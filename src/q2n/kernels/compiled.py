"""Compilation of a kernel by numba, with a cache that can never end a run.

Compilation takes seconds, so numba can keep machine code in files (`njit(cache=True)`). On its own
it raises an error where no folder is writable (a read-only installation without a home, as in
containers), and on files of older sources, whose classes may have other names. It also looks at
the file of a kernel alone when it decides whether machine code is up to date. Here:

- machine code lies in a folder named after the contents of all files of this room. So another
  version of the sources is never read, and a kernel may call functions of another file;
- the folder is made in the first place that can be written: `NUMBA_CACHE_DIR` if that is set,
  `__pycache__` beside the sources, the user's cache folder. Without one nothing is kept, and each
  process compiles anew;
- a file that cannot be read, or holds code for other types, counts as missing.

Compiled code must use no constants or functions from outside this room, numpy and numba.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import types
from numba.core.caching import CompileResultCacheImpl, FunctionCache, InTreeCacheLocator
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature

from q2n.kernels.numba_threads import follow_torch

_ROOM = Path(__file__).parent


def compiled(**flags: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: compile a function for CPUs as `numba.njit(**flags)` does, cached where possible.

    The function runs without Python's global lock, divides by zero as numpy does, and if it is
    `parallel` takes as many threads as torch (numba_threads.py)."""

    def compile_function(function: Callable[..., Any]) -> Any:
        kernel = numba.njit(nogil=True, error_model="numpy", **flags)(function)
        if cache_folder() is not None:
            kernel._cache = _KernelCache(function)  # what `cache=True` sets to a FunctionCache
        return _on_torch_threads(kernel) if flags.get("parallel") else kernel

    return compile_function


def _on_torch_threads(kernel: Callable[..., None]) -> Callable[..., None]:
    def call(*arguments: Any) -> None:
        follow_torch()
        kernel(*arguments)

    return call


def compiled_callback(function: Callable[[Any], Any]) -> Callable[[], int]:
    """Decorator: compile a function of one integer for calls from C, cached where possible.

    Returns a function that gives its address; the first call compiles. Called with an address, it
    needs no conversion of arguments, and any thread may run it (torch_threads.py)."""

    @cache
    def address() -> int:
        options = {"nopython": True, "nogil": True, "error_model": "numpy"}
        callback: Any = CFunc(function, ((types.intp,), types.void), {}, options)
        if cache_folder() is not None:
            callback._cache = _KernelCache(function)  # what `cache=True` sets to a FunctionCache
        callback.compile()
        found = callback.address
        assert found is not None
        return found

    return address


@cache
def cache_folder() -> Path | None:
    """Where machine code of these sources is kept; None where nothing is writable."""
    name = f"q2n-{_sources_digest()[:16]}"
    return next((place / name for place in _places() if _is_writable(place / name)), None)


def _places() -> Iterator[Path]:
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(chosen).absolute()
    yield _ROOM / "__pycache__"
    user = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if user.is_absolute():  # a user without an entry in the password file has no "~"
        yield user / "q2n"


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


@cache
def _sources_digest() -> str:
    digest = hashlib.sha256()
    for file in sorted(_ROOM.glob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


class _Locator(InTreeCacheLocator):
    """Tells numba where the code of a function lies, and which sources it belongs to."""

    def get_cache_path(self) -> str:
        return str(cache_folder())

    def get_source_stamp(self) -> str:
        return _sources_digest()


class _CacheImplementation(CompileResultCacheImpl):
    _locator_classes = [_Locator]


class _KernelCache(FunctionCache):
    """numba's cache of one function; reading and writing never raise."""

    _impl_class = _CacheImplementation

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            result = super().load_overload(sig, target_context)
        except Exception:  # a damaged pickle can raise anything
            with suppress(OSError):
                self.flush()
            return None
        # Two processes that write at once may give the code for two signatures the same file.
        if result is not None and result.signature.args != normalize_signature(sig)[0]:
            return None
        return result

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(Exception):  # a full disk, or a file damaged by others: it stays in memory
            super().save_overload(sig, data)
