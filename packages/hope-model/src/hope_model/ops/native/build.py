"""C++ kernels for CPUs: compiled once by the machine's own compiler at first use, kept in the user's cache.

Without a compiler, or with HOPE_NATIVE=0, all runs in torch: the same numbers to rounding, at about half the speed.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SWITCH = "HOPE_NATIVE"
FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fPIC",
    "-shared",
)  # fmt: skip
# As they were when this Python was read: the two belong together, whatever happens to the files meanwhile.
SOURCES = {
    path.name: path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.?pp"))
}
SUFFIXES = {torch.float32: "f32", torch.float64: "f64"}


class Kernels:
    """The functions of one source file: `NAME_f32(arguments, first, last)`, over a range of sequences, and `_f64`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def number(self, name: str, *values: int) -> int:
        """What a function of whole numbers says."""
        function = getattr(self._library, name)
        function.restype, function.argtypes = ctypes.c_int64, [ctypes.c_int64] * len(values)
        return int(function(*values))

    def run(self, name: str, dtype: torch.dtype, arguments: ctypes.Structure, sequences: int) -> None:
        """All sequences, shared out among as many threads as torch may use; results do not depend on their number."""
        function = getattr(self._library, f"{name}_{SUFFIXES[dtype]}")
        function.restype, function.argtypes = None, [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
        threads = min(torch.get_num_threads(), sequences)
        address = ctypes.addressof(arguments)
        if threads <= 1:
            function(address, 0, sequences)
            return
        cuts = [n * sequences // threads for n in range(threads + 1)]
        jobs: list[Future[None]] = []
        try:
            for cut in pairwise(cuts):
                jobs.append(_pool(threads).submit(function, address, *cut))
        finally:  # interrupted or not, nobody may write any more when tensors are freed
            wait(jobs)
        for job in jobs:
            job.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="hope-native")


if hasattr(os, "register_at_fork"):  # a forked child has none of its parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def structure(name: str, sizes: str, numbers: str, tensors: str) -> type[ctypes.Structure]:
    """A C struct: whole numbers, then numbers, then pointers; C++ declares the same names in the same order."""
    fields = [
        (field, kind)
        for names, kind in ((sizes, ctypes.c_int64), (numbers, ctypes.c_double), (tensors, ctypes.c_void_p))
        for field in names.split()
    ]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


def fill(kind: type[ctypes.Structure], values: Mapping[str, Any]) -> ctypes.Structure:
    """The struct with `values`; a tensor gives its address (it must outlive the call), None the null pointer."""
    return kind(**{name: x.data_ptr() if isinstance(x, Tensor) else x for name, x in values.items()})


def usable(*tensors: Tensor) -> bool:
    """Whether kernels take these: real tensors of one kind on a CPU, outside torch.compile."""
    first = tensors[0]
    if first.device.type != "cpu" or first.dtype not in SUFFIXES or torch.compiler.is_compiling():
        return False
    if 0 in first.shape:
        return False
    real = (Tensor, torch.nn.Parameter)  # others stand for tensors that have no memory
    return all(type(x) in real and x.device == first.device and x.dtype == first.dtype for x in tensors)


def kernels(name: str) -> Kernels | None:
    """The compiled functions of NAME.cpp; None without a compiler, which is said once, or where they are not wanted."""
    return None if os.environ.get(SWITCH) == "0" else compiled(name)


@contextmanager
def without_kernels() -> Iterator[None]:
    """In torch, as on an accelerator."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "0"
    try:
        yield
    finally:
        del os.environ[SWITCH]
        if before is not None:
            os.environ[SWITCH] = before


@cache
def compiled(name: str) -> Kernels | None:
    """The functions of NAME.cpp, wanted or not; None where nothing compiles them."""
    try:
        library = _library(name)
        try:
            return Kernels(ctypes.CDLL(str(library)))
        except OSError:  # a file that a crash spoilt
            library.unlink()
            return Kernels(ctypes.CDLL(str(_library(name))))
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        warnings.warn(
            f"hope-model runs without its C++ kernels, at about half the speed on a CPU: {error}. "
            f"Install a C++ compiler (g++ or clang++), or set {SWITCH}=0 to do without.",
            RuntimeWarning,
            stacklevel=3,
        )
        return None


def _library(name: str) -> Path:
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    if compiler is None:
        message = "no C++ compiler is on PATH"
        raise OSError(message)
    sources = {file: text for file, text in SOURCES.items() if file == f"{name}.cpp" or file.endswith(".hpp")}
    key = hashlib.sha256("\0".join((*sources.values(), *FLAGS, _target(compiler))).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hope-model"
    library = folder / f"{name}-{key}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:  # a whole file or none, whoever else compiles
        for file, text in sources.items():
            (Path(scratch) / file).write_text(text, encoding="utf-8")
        made = Path(scratch) / library.name
        command = [compiler, *FLAGS, str(Path(scratch) / f"{name}.cpp"), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            message = f"{compiler} failed: {(done.stderr.strip().splitlines() or ['no message'])[0]}"
            raise OSError(message)
        with suppress(FileExistsError):  # the first stays: another machine may have it in memory
            os.link(made, library)
    return library


def _target(compiler: str) -> str:
    """What the compiler makes of this machine: its own version and every instruction set it would use."""
    command = [compiler, "-march=native", "-E", "-dM", "-x", "c++", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + platform.machine()
