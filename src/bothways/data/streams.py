"""Files, here or at any URL that fsspec knows -> their bytes, decompressed, and lines, none of them too long."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from bothways.errors import ConfigError, DataError

Place = Path | str
"""Where a file is: a path, or, as a str with "://" in it, a URL."""
COMPRESSED = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
"""Suffix behind the one of the format -> how its bytes are packed."""
NO_LIMIT = 2**62
BUFFER = 1 << 20
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What decompressors raise over bytes that are not theirs; pyarrow's errors for zstd are OSErrors."""


class DamagedError(DataError):
    """A file of which no more can be read."""


@dataclass(frozen=True)
class LongLine:
    """Stands for a line with more bytes than are allowed, which was passed over."""

    bytes: int
    quotes: int
    """How many `"` it has: in CSV an odd number opens or closes a field."""


def is_url(place: Place) -> bool:
    """Whether fsspec opens it."""
    return isinstance(place, str) and "://" in place


def name_of(place: Place) -> str:
    """The last part of a path or URL, which errors and ids name."""
    if not is_url(place):
        return Path(place).name
    scheme, _, rest = str(place).partition("://")
    return (rest.partition("?")[0] if scheme in ("http", "https") else rest).rstrip("/").rpartition("/")[2]


def split_suffix(place: Place) -> tuple[str, str]:
    """The suffix of the format and that of the compression, "" if it is not compressed."""
    path = Path(name_of(place))
    return (Path(path.stem).suffix, path.suffix) if path.suffix in COMPRESSED else (path.suffix, "")


def file_system(url: str) -> tuple[Any, str]:
    """What opens a URL (fsspec.AbstractFileSystem), and its path there. Raises ConfigError if nothing does."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as problem:
        raise ConfigError(f"{url}: a package for it is missing. {str(problem).strip()}") from None
    except ValueError as problem:
        raise ConfigError(f"{url}: {str(problem).strip()}. Use a path, or a URL that fsspec knows.") from None
    return system, path


def is_file(place: Place) -> bool:
    """Whether there is a file."""
    if not is_url(place):
        return Path(place).is_file()
    system, path = file_system(str(place))
    return bool(system.isfile(path))


def open_raw(place: Place) -> Any:
    """The file as it is stored, to read its bytes. Raises DataError if it is not there."""
    try:
        if is_url(place):
            system, path = file_system(str(place))
            return system.open(path, "rb")
        return Path(place).open("rb")
    except FileNotFoundError:
        raise DataError(f"{place}: no such file.") from None
    except OSError as problem:
        raise DataError(f"{place}: it cannot be opened ({problem}).") from None


def state_of(place: Place) -> str:
    """What tells one state of a file from another without reading it: size and time, or what the store says."""
    if is_url(place):
        system, path = file_system(str(place))
        return str(system.ukey(path))
    about = Path(place).stat()
    return f"{about.st_size}:{about.st_mtime_ns}"


def content_of(place: Place) -> str:
    """SHA-256 of the file's bytes as they are stored."""
    return _content_of(place, state_of(place))


@lru_cache(maxsize=4096)
def _content_of(place: Place, state: str) -> str:
    """The state is of the key alone: a file that changed is read again."""
    with open_raw(place) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def damage_named(name: str, where: str, compression: str) -> Iterator[None]:
    """What goes wrong while bytes are read becomes a DamagedError that says how far one came."""
    try:
        yield
    except _DAMAGE as problem:
        kind = COMPRESSED.get(compression)
        what = f"not a whole {kind} file" if kind else "it cannot be read further"
        raise DamagedError(f"{name} {where}: {what} ({problem}). Make it again.") from None


class Lines:
    """The lines of a file, decompressed, one by one; `goto` reads on elsewhere. `byte` and `line` lie before the next.

    A byte order mark at the start is dropped. Raises DataError if there is no file, DamagedError where it breaks off.
    """

    def __init__(self, place: Place, max_bytes: int = NO_LIMIT, digest: Any = None) -> None:
        """`max_bytes` is the length of the longest line; `digest` (as of hashlib) is told all bytes as stored."""
        self.place, self.max_bytes, self.digest = place, max_bytes, digest
        self.name, self.compression = name_of(place), split_suffix(place)[1]
        self._open()

    def _open(self) -> None:
        self.raw = open_raw(self.place) if self.digest is None else _Told(open_raw(self.place), self.digest)
        self.file: Any = _decompressed(self.raw, self.compression)
        self.byte = self.line = 0

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> bytes | LongLine:
        try:
            raw: bytes = self.file.readline(self.max_bytes + 1)
        except _DAMAGE:
            with damage_named(self.name, f"after line {self.line}", self.compression):
                raise
        if not raw:
            raise StopIteration
        self.line += 1
        self.byte += len(raw)
        if len(raw) > self.max_bytes:
            return self._passed_over(raw)
        return raw.removeprefix(b"\xef\xbb\xbf") if self.line == 1 else raw

    def _passed_over(self, raw: bytes) -> LongLine:
        length, quotes = len(raw), raw.count(b'"')
        with damage_named(self.name, f"in line {self.line}", self.compression):
            while raw and not raw.endswith(b"\n"):
                raw = self.file.readline(BUFFER)
                length += len(raw)
                quotes += raw.count(b'"')
        self.byte += length - min(length, self.max_bytes + 1)
        return LongLine(length, quotes)

    def goto(self, byte: int, line: int) -> None:
        """Read on from a byte of the decompressed file, which begins the line after number `line`.

        What is not compressed is not read for it; of what is, all up to there, from where one stands if that is before.
        """
        if byte < self.byte:
            self.close()
            self._open()
        if not self.compression and self.digest is None:
            self.file.seek(byte)
        else:
            with damage_named(self.name, f"after line {self.line}", self.compression):
                while self.byte < byte:
                    passed = len(self.file.read(min(BUFFER, byte - self.byte)))
                    if not passed:
                        raise EOFError("it is shorter than it was")
                    self.byte += passed
        self.byte, self.line = byte, line

    def drain(self) -> None:
        """Read what the decompressor left, so that `digest` has seen the whole file."""
        with damage_named(self.name, f"after line {self.line}", ""):
            while self.raw.read(BUFFER):
                pass

    def close(self) -> None:
        """Close the file."""
        self.file.close()
        self.raw.close()


class _Told(io.RawIOBase):
    """A file whose bytes are told to a digest as they are read."""

    def __init__(self, file: Any, digest: Any) -> None:
        self.file, self.digest = file, digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self.file.read(len(buffer))
        buffer[: len(found)] = found
        self.digest.update(found)
        return len(found)

    def close(self) -> None:
        self.file.close()
        super().close()


def _decompressed(raw: Any, compression: str) -> Any:
    """The stream behind a stream, buffered."""
    if compression == ".gz":
        return gzip.GzipFile(fileobj=raw, mode="rb")
    if compression == ".bz2":
        return bz2.BZ2File(raw)
    if compression == ".xz":
        return lzma.LZMAFile(raw)
    if compression == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"), 1 << 16)
    return raw if hasattr(raw, "peek") or not isinstance(raw, io.RawIOBase) else io.BufferedReader(raw, 1 << 16)
