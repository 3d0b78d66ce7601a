"""The bytes of a file, unpacked where it is packed, in memory that has a bound whatever the file holds.

Packed is what begins as gzip or zstd does, whatever its name.
"""

import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import zstandard

CHUNK_BYTES = 2**20
SLICE_BYTES = 512  # packed bytes unpacked at once: zstd makes up to 16 MiB of them
DOCUMENT_BYTES = 2**27  # of one document, line or cell: no text is longer, and it takes ten times that in memory
UNPACKED_BYTES = 2**28  # what any file may unpack to; a larger one to GROWTH times its size
GROWTH = 500  # text packs three to ten times, logs that repeat themselves perhaps a hundred times

# What files that are gone, cut or damaged make the libraries raise.
FAILURES = (
    OSError,
    EOFError,
    ImportError,
    RuntimeError,
    ValueError,
    LookupError,
    MemoryError,
    OverflowError,
    zlib.error,
    zstandard.ZstdError,
)


class GrowthError(ValueError):
    """A file unpacks to far more than text does."""


class LengthError(ValueError):
    """A line or a document is longer than DOCUMENT_BYTES."""


def _unpacker(head: bytes, size: int) -> Callable[[], Any] | None:
    if head.startswith(b"\x1f\x8b"):
        return lambda: zlib.decompressobj(wbits=31)
    is_skippable = len(head) == 4 and 0x184D2A50 <= int.from_bytes(head, "little") <= 0x184D2A5F
    if head == b"\x28\xb5\x2f\xfd" or is_skippable:
        # The library's default window is too small for `--long=31`. Memory for it is asked for by the frame's header.
        window = min(2**31, max(UNPACKED_BYTES, GROWTH * size))
        return lambda: zstandard.ZstdDecompressor(max_window_size=window).decompressobj()
    return None


def chunks(path: str, packed_bytes: float = float("inf")) -> Iterator[bytes]:
    """The content of a file, CHUNK_BYTES or somewhat more at a time; of a packed one the first `packed_bytes`.

    OSError, EOFError, zlib.error or ZstdError when it cannot be read or is cut, GrowthError when it unpacks to more
    than text does.
    """
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        unpacker = _unpacker(stream.read(4), size)
        stream.seek(0)
        if unpacker:
            yield from _unpacked(stream, unpacker, packed_bytes)
        elif not size and path.lower().endswith((".gz", ".zst")):
            raise EOFError("it is empty")
        else:
            while data := stream.read(CHUNK_BYTES):
                yield data


def _unpacked(stream: Any, unpacker: Callable[[], Any], packed_bytes: float) -> Iterator[bytes]:
    # The libraries' own readers take a cut file for a finished one, or unpack without a bound.
    held: list[bytes] = []
    frame = failure = None
    size = made = 0
    try:
        while stream.tell() < packed_bytes and (data := stream.read(SLICE_BYTES)):
            data = data if frame else data.lstrip(b"\0")  # gzip files may be padded
            while data:
                frame = frame or unpacker()
                held.append(frame.decompress(data))
                size += len(held[-1])
                data = frame.unused_data.lstrip(b"\0") if frame.eof else b""
                frame = None if frame.eof else frame
            check_size(made + size, stream.tell())
            if size >= CHUNK_BYTES:
                yield b"".join(held)
                made, size = made + size, 0
                held.clear()
        if frame is not None and stream.tell() < packed_bytes:
            raise EOFError("it ends inside a frame")
    except FAILURES as error:  # what came whole before the damage is kept
        failure = error
    if size:
        yield b"".join(held)
    if failure is not None:
        raise failure


def check_size(unpacked: int, packed: int) -> None:
    """Raise GrowthError where so many bytes unpacked are more than text could be, for those it was packed in."""
    if unpacked > max(UNPACKED_BYTES, GROWTH * packed):
        raise GrowthError(f"unpacks to more than {GROWTH} times its size: if that is text, unpack it first")


def check_growth(path: str) -> None:
    """Raise GrowthError where already the beginning of a packed file unpacks to more than text does; nothing is kept.

    What else is wrong with the file is for its reader to say. OSError when it cannot be opened.
    """
    with open(path, "rb") as stream:
        if not _unpacker(stream.read(4), 0):
            return
    try:
        for _ in chunks(path, UNPACKED_BYTES / GROWTH):
            pass
    except GrowthError:
        raise
    except FAILURES:
        pass


def limit() -> str:
    """DOCUMENT_BYTES as messages say it."""
    return f"{DOCUMENT_BYTES / 2**20:g} MiB"


def lines(stream: Iterator[bytes]) -> Iterator[bytes]:
    """The lines of chunks, with the newline that ends each. LengthError when one is longer than DOCUMENT_BYTES."""
    tail: list[bytes] = []
    size = 0
    for chunk in stream:
        *ended, rest = chunk.split(b"\n")
        for line in ended:
            yield b"".join((*tail, line, b"\n"))
            tail.clear()
            size = 0
        tail.append(rest)
        size += len(rest)
        if size > DOCUMENT_BYTES:
            raise LengthError(f"is longer than {limit()}")
    if size:
        yield b"".join(tail)


def joined(stream: Iterator[bytes]) -> bytes:
    """The chunks as one. LengthError when that is more than DOCUMENT_BYTES."""
    held = bytearray()
    for chunk in stream:
        held += chunk
        if len(held) > DOCUMENT_BYTES:
            raise LengthError(f"holds more than {limit()}")
    return bytes(held)
