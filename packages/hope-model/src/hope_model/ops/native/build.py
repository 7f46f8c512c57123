"""C++ kernels for CPUs: compiled once by the machine's own compiler at first use, kept in the user's cache.

Without a compiler, or with HOPE_NATIVE=0, all runs in torch: the same numbers to rounding, at about half the speed.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import signal
import stat
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hope_model.files import write_atomic

SWITCH = "HOPE_NATIVE"
FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fPIC",
    "-shared", "-pthread",
)  # fmt: skip
TARGET_SECONDS, COMPILE_SECONDS = 60, 600  # a compiler that takes longer hangs
# As they were when this Python was read: the two belong together, whatever happens to the files meanwhile.
SOURCES = {
    path.name: path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.?pp"))
}
SUFFIXES = {torch.float32: "f32", torch.float64: "f64"}
HALF = "bf16"  # tokens in bfloat16, all else in float32


class Kernels:
    """The functions of one source file: `NAME_f32(arguments, first, last)`, over a range of sequences, and `_f64`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._functions: dict[str, Any] = {}

    def number(self, name: str, *values: int) -> int:
        """What a function of whole numbers says."""
        function = self._function(name, ctypes.c_int64, *[ctypes.c_int64] * len(values))
        return int(function(*values))

    def run(self, name: str, arguments: ctypes.Structure, sequences: int) -> None:
        """All sequences, shared out among as many threads as torch may use; results do not depend on their number."""
        function = self._function(name, None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
        threads, address = min(torch.get_num_threads(), sequences), ctypes.addressof(arguments)
        if threads <= 1:
            function(address, 0, sequences)
            return
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        share = self._function("share", None, pointer, pointer, number, number, pointer)
        share(ctypes.cast(function, pointer), address, sequences, threads, _team(os.getpid()))

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        if name not in self._functions:
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments
            self._functions[name] = function
        return self._functions[name]


_BEGUN = os.getpid()


@cache
def _team(process: int) -> ctypes.c_void_p | None:
    """OpenMP's function that hands work to its threads; None in a forked child, which has none of them."""
    if process != _BEGUN or os.name != "posix":
        return None
    parallel = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    return None if parallel is None else ctypes.cast(parallel, ctypes.c_void_p)


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


def usable(*tensors: Tensor, tokens: Sequence[Tensor] = ()) -> bool:
    """Whether kernels take these: real tensors of one kind on a CPU, outside torch.compile.

    `tokens` may be in bfloat16; then the others must be in float32.
    """
    every = (*tensors, *tokens)
    first, kind = every[0], every[-1].dtype
    state = torch.float32 if tokens and kind == torch.bfloat16 else kind
    if first.device.type != "cpu" or state not in SUFFIXES or torch.compiler.is_compiling():
        return False
    if any(0 in x.shape for x in (first, *tokens[:1])):
        return False
    real = (Tensor, torch.nn.Parameter)  # others stand for tensors that have no memory
    if not all(type(x) in real and x.device == first.device for x in every):
        return False
    return all(x.dtype == state for x in tensors) and all(x.dtype == kind for x in tokens)


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
        return Kernels(_load(name))
    except OSError as error:
        warnings.warn(
            f"hope-model runs without its C++ kernels, at about half the speed on a CPU: {error}. "
            f"Install a C++ compiler (g++ or clang++), or set {SWITCH}=0 to do without.",
            RuntimeWarning,
            stacklevel=3,
        )
        return None


def identity() -> str:
    """Return what computes on a CPU: `torch`, or `C++` and a hash of compiler, processor and flags.

    Two runs may differ in their last bits where this differs, even if the sources are the same.
    """
    if kernels("gated_delta") is None:
        return "torch"
    return f"C++ {_digest(*FLAGS, _target(find_compiler()))[:16]}"


def _load(name: str) -> ctypes.CDLL:
    """The library from the user's cache, verified; else compiled, and kept there if there is such a folder."""
    compiler = find_compiler()
    sources = {file: text for file, text in SOURCES.items() if file == f"{name}.cpp" or file.endswith(".hpp")}
    prefix = f"{name}-{_digest(*sources.values(), *FLAGS, _target(compiler))[:16]}-"
    folder = _cache()
    for path in sorted(folder.glob(f"{prefix}*.so")) if folder else ():
        if _genuine(path):
            with suppress(OSError):  # of another machine that shares the folder
                return ctypes.CDLL(str(path))
        else:
            path.unlink()
    with tempfile.TemporaryDirectory(prefix="hope-model-") as scratch:  # nobody else may write there
        for file, text in sources.items():
            (Path(scratch) / file).write_text(text, encoding="utf-8")
        library = Path(scratch) / f"{name}.so"
        _run([compiler, *FLAGS, str(Path(scratch) / f"{name}.cpp"), "-o", str(library)], COMPILE_SECONDS)
        if folder:
            content = library.read_bytes()
            library = folder / f"{prefix}{hashlib.sha256(content).hexdigest()}.so"
            if not _genuine(library):  # else another process was faster, and has it in memory
                write_atomic(library, content)
        return ctypes.CDLL(str(library))


def _genuine(path: Path) -> bool:
    """Whether only this user can have written a library, and its content has the hash that its name ends in."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        private = stat.S_ISREG(status.st_mode) and _private(status)
        return private and path.stem.endswith(hashlib.file_digest(file, "sha256").hexdigest())


def _private(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _cache() -> Path | None:
    """The folder that keeps libraries, which this user alone may write to; None where there is none, said once."""
    try:
        given = Path(os.environ.get("XDG_CACHE_HOME", ""))
        folder = (given if given.is_absolute() else Path.home() / ".cache") / "hope-model"
        for path in (*reversed(folder.parents), folder):  # `parents=True` would leave theirs to the umask
            path.mkdir(mode=0o700, exist_ok=True)
        status = folder.stat()
        if status.st_uid != os.geteuid():
            message = f"{folder} belongs to another user"
            raise OSError(message)
        if not _private(status):
            folder.chmod(0o700)
            for library in folder.glob("*.so"):
                library.unlink()
            _say_once(
                f"{folder} could be written to by other users: hope-model's C++ kernels are compiled anew"
            )
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        _say_once(
            f"hope-model compiles its C++ kernels anew in every process: {error}. "
            "Let XDG_CACHE_HOME name a folder of your own to keep them"
        )
        return None
    return folder


@cache
def _say_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def find_compiler() -> str:
    """The machine's own C++ compiler, or the one that CXX names."""
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    if compiler is None:
        message = "no C++ compiler is on PATH"
        raise OSError(message)
    return compiler


@cache
def _target(compiler: str) -> str:
    """What the compiler makes of this machine: its own version and every instruction set it would use."""
    command = [compiler, "-march=native", "-E", "-dM", "-x", "c++", os.devnull]
    return _run(command, TARGET_SECONDS) + platform.machine()


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _run(command: list[str], seconds: float) -> str:
    """Standard output of a compiler, which is stopped with all that it started when its time is up."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        output, errors = process.communicate(timeout=seconds)
    except BaseException as error:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            message = f"{command[0]} has not finished after {seconds:g} seconds"
            raise OSError(message) from None
        raise
    if process.returncode:
        message = f"{command[0]} failed: {(errors.strip().splitlines() or ['no message'])[0]}"
        raise OSError(message)
    return output
