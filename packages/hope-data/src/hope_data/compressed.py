"""Plain, gzip and zstd files read alike, and a file that is cut off never passes for a shorter one."""

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from hope_data.errors import InputError
from hope_data.files import open_regular

# A zstd block of four bytes may hold 128 KiB: small steps bound what a bomb takes in memory.
_STEP = 512
# A longer line is no document; it would only fill the memory.
LONGEST_LINE = 64 << 20
# Text compresses 3 to 20 times. A bomb is looked for once this much has come out.
_MOST_TIMES, _HARMLESS = 300, 64 << 20
# Even an empty line takes memory and time: bytes that it counts for.
_PER_LINE = 16


class _Zstd(io.RawIOBase):
    """Frames of zstd as one stream; the library's own reader takes the end of a cut file for the end of the text."""

    def __init__(self, file: BinaryIO):
        self._file = file
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


def _unpacked(file: BinaryIO, suffix: str) -> BinaryIO:
    if suffix.lower() not in (".gz", ".zst"):
        return file
    if not file.read(1):  # even of no text at all, a packed file has a header
        raise EOFError("it is empty")
    file.seek(0)
    if suffix.lower() == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=file), 1 << 17)  # type: ignore[arg-type, unused-ignore]
    return io.BufferedReader(_Zstd(file), 1 << 17)


def check_growth(where: str, unpacked: int, packed: int) -> None:
    """Raise InputError if far more has been unpacked than text of so many packed bytes can hold."""
    if unpacked > max(_HARMLESS, _MOST_TIMES * packed):
        raise InputError(
            f"{where}: unpacks to over {_MOST_TIMES} times its size (a decompression bomb?); unpack it yourself if "
            "you trust it"
        )


def lines(path: Path, longest: int = LONGEST_LINE) -> Iterator[tuple[int, bytes]]:
    """Numbered raw lines of a file, decompressed as its suffix .gz or .zst says.

    Args:
        path: of the file.
        longest: bytes of a line; files with longer ones than others may have are our own, and no bombs.

    Raises:
        InputError: missing, cut off or damaged, a line longer than `longest` bytes, or far more text than so
            small a file can hold; names the file and the line.
    """
    number = size = 0
    try:
        with open_regular(path) as packed, _unpacked(packed, path.suffix) as file:
            while line := file.readline(longest + 1):
                number, size = number + 1, size + len(line) + _PER_LINE
                if len(line) > longest:
                    raise InputError(
                        f"{path}, line {number}: longer than {longest >> 20} MiB; cut it into several documents"
                    )
                if size > _HARMLESS and longest <= LONGEST_LINE and file is not packed:
                    check_growth(f"{path}, line {number}", size, packed.tell())
                yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise InputError(
            f"{path}, line {number + 1}: compressed file is cut off or damaged ({error})"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
