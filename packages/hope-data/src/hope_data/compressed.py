"""Plain, gzip and zstd files read alike, and a file that is cut off never passes for a shorter one."""

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

import zstandard

from hope_data.errors import InputError

# A zstd block of four bytes may hold 128 KiB: small steps bound what a bomb takes in memory.
_STEP = 4096


class _Zstd(io.RawIOBase):
    """Frames of zstd as one stream; the library's own reader takes the end of a cut file for the end of the text."""

    def __init__(self, path: Path):
        self._file = path.open("rb")
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._begun = False
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._ready:
            data = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._begun = zstandard.ZstdDecompressor().decompressobj(), False
            if not (data := data or self._file.read(_STEP)):
                if self._begun:
                    raise EOFError("a zstd frame ends too early")
                return 0
            self._begun = True
            self._ready = memoryview(self._frame.decompress(data))
        n = min(len(buffer), len(self._ready))
        buffer[:n] = self._ready[:n]
        self._ready = self._ready[n:]
        return n

    def close(self) -> None:
        self._file.close()
        super().close()


def _open(path: Path) -> io.BufferedIOBase:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    return io.BufferedReader(_Zstd(path), 1 << 17) if path.suffix == ".zst" else path.open("rb")


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered raw lines of a file, decompressed as its suffix .gz or .zst says.

    Raises:
        InputError: missing, cut off or damaged; names the file and the line.
    """
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise InputError(
            f"{path}, line {number + 1}: compressed file is cut off or damaged ({error})"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
