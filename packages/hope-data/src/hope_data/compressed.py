"""Plain, gzip and zstd files read alike, and a file that is cut off never passes for a shorter one."""

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

import zstandard

from hope_data.errors import InputError

# A zstd block of four bytes may hold 128 KiB: small steps bound what a bomb takes in memory.
_STEP = 512
# A longer line is no document; it would only fill the memory.
LONGEST_LINE = 64 << 20
# Text compresses 3 to 20 times. A bomb is looked for once this much has come out.
_MOST_TIMES, _HARMLESS = 300, 256 << 20


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
        return io.BufferedReader(gzip.open(path, "rb"), 1 << 17)
    return io.BufferedReader(_Zstd(path), 1 << 17) if path.suffix == ".zst" else path.open("rb")


def lines(path: Path, longest: int = LONGEST_LINE) -> Iterator[tuple[int, bytes]]:
    """Numbered raw lines of a file, decompressed as its suffix .gz or .zst says.

    Raises:
        InputError: missing, cut off or damaged, a line longer than `longest` bytes, or far more text than so
            small a file can hold; names the file and the line.
    """
    number = size = 0
    try:
        enough = max(_HARMLESS, _MOST_TIMES * path.stat().st_size)
        with _open(path) as file:
            while line := file.readline(longest + 1):
                number, size = number + 1, size + len(line)
                if len(line) > longest:
                    raise InputError(
                        f"{path}, line {number}: longer than {longest >> 20} MiB; cut it into several documents"
                    )
                if size > enough:
                    raise InputError(
                        f"{path}, line {number}: unpacks to over {_MOST_TIMES} times its size (a decompression "
                        "bomb?); unpack it yourself if you trust it"
                    )
                yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise InputError(
            f"{path}, line {number + 1}: compressed file is cut off or damaged ({error})"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
