"""Compressed streams as plain ones: bounded memory, bounded growth, and damage that is named."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from chatbench.errors import UsageError

BUFFER_BYTES = 1 << 17
_FREE_BYTES = 64 << 20
_XZ_MEMORY = 256 << 20


class DamagedInput(Exception):
    """Raised by `read`, `read1`, `peek` and `readline` of a blob's handle when the bytes end in
    damage: `reason` is what failures are counted by, such as "damaged gzip", `detail` says more.

    Everything before the damage has been read by then, at least by whoever reads with `read1` or
    line by line. Reading again raises it again.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class Budget:
    """How far a compressed stream may grow: `free` bytes, or `expansion` times what is `consumed`.

    Streams inside it grow on the account of the outermost one, so that nesting does not multiply;
    an archive's members also share the account of the archive, `whole`.
    """

    def __init__(
        self, expansion: int, consumed: int = 0,
        root: Budget | None = None, whole: Budget | None = None, free: int = _FREE_BYTES,
    ) -> None:  # fmt: skip
        self.expansion, self.consumed, self.produced, self.free = expansion, consumed, 0, free
        self.root, self.whole = root or self, whole

    def spend(self, size: int) -> None:
        """Raises DamagedInput "compression bomb" once the limit is passed."""
        self.produced += size
        allowed = max(self.free, self.expansion * self.root.consumed)
        if self.produced > allowed:
            raise DamagedInput(
                "compression bomb",
                f"{self.root.consumed} bytes grew to more than {allowed} bytes;"
                " raise max_expansion if they are meant to",
            )
        if self.whole is not None:
            self.whole.spend(size)


class Engine(Protocol):
    """What bz2 and lzma decompressors are: at most `max_length` bytes come out of one call."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class Kind(NamedTuple):
    """A compression, with the magic bytes of its later members. `step` bytes go in at once; `pads`
    when zero bytes may stand between and behind its members."""

    name: str
    magic: tuple[bytes, ...]
    make: Callable[[], Engine]
    errors: tuple[type[Exception], ...]
    step: int = 1 << 16
    pads: bool = False


class _Gunzip:
    """zlib's decompressor in the shape of the others."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


class _Unzstd:
    """One zstd frame; what one step makes is kept until it is asked for."""

    def __init__(self) -> None:
        self._frame: Any = zstandard_module().ZstdDecompressor().decompressobj()
        self._made = b""
        self._given = 0

    @property
    def eof(self) -> bool:
        return bool(self._frame.eof) and self.needs_input

    @property
    def needs_input(self) -> bool:
        return self._given >= len(self._made)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._frame.unused_data)

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        if data:
            self._made, self._given = self._frame.decompress(data), 0
        piece = self._made[self._given : self._given + max_length]
        self._given += len(piece)
        return piece


def zstandard_module() -> Any:
    """Raises UsageError when the package is absent."""
    try:
        import zstandard
    except ImportError:
        raise UsageError(
            "reading zstd files needs zstandard", hint='pip install "chatbench[data]"'
        ) from None
    return zstandard


def _zstd_errors() -> tuple[type[Exception], ...]:
    return (zstandard_module().ZstdError,)


_GZIP = Kind("gzip", (b"\x1f\x8b\x08",), _Gunzip, (zlib.error,), pads=True)
_BZIP2 = Kind("bzip2", (b"BZh",), bz2.BZ2Decompressor, (OSError, ValueError))
_XZ = Kind(
    "xz", (b"\xfd7zXZ\0",), lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY),
    (lzma.LZMAError,), pads=True,
)  # fmt: skip
_ZSTD_MAGIC = (b"\x28\xb5\x2f\xfd", *(bytes((0x50 + n,)) + b"\x2a\x4d\x18" for n in range(16)))
_BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")


def kind_of(head: bytes, name: str) -> Kind | None:
    """The compression that `head`, the first bytes of the file `name`, begins with. Raises
    UsageError for zstd without its package."""
    # Two bytes may be a token of a nanoGPT file.
    if head.startswith(b"\x1f\x8b") and (head[2:3] == b"\x08" or not name.endswith(".bin")):
        return _GZIP
    if head.startswith(b"BZh") and head[4:10] in _BZIP2_BLOCKS:
        return _BZIP2
    if head.startswith(_XZ.magic):
        return _XZ
    if head.startswith(_ZSTD_MAGIC):
        # Four bytes of it can make 128 KiB, and the library makes all of a step at once.
        return Kind("zstd", _ZSTD_MAGIC, _Unzstd, _zstd_errors(), step=1 << 9)
    return None


class Stream(io.RawIOBase):
    """Bytes that come in pieces; the damage that ends them is raised again and again."""

    _fault: DamagedInput | None = None

    def readable(self) -> bool:
        return True

    @abstractmethod
    def _next(self, limit: int) -> bytes:
        """Some bytes, at most `limit`; none at the end."""

    def readinto(self, buffer: Any) -> int:
        """Fills all of the buffer unless the content ends, so that a peek shows what there is."""
        view = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(view):
            try:
                if self._fault is not None:
                    raise self._fault
                piece = self._next(len(view) - filled)
            except DamagedInput as fault:
                self._fault = fault
                if filled:
                    break
                raise
            if not piece:
                break
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
        return filled


class Decompressed(Stream):
    """The content of `source`, all members or frames of it; closing it closes the source."""

    def __init__(self, source: io.BufferedReader, kind: Kind, budget: Budget) -> None:
        self._source, self._kind, self._budget = source, kind, budget
        self._engine: Engine | None = None
        self._rest = b""
        self._members = 0

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()

    def _next(self, limit: int) -> bytes:
        while True:
            if self._engine is None and not self._begin():
                return b""
            engine = self._engine
            assert engine is not None
            data = self._take() if engine.needs_input else b""
            try:
                piece = engine.decompress(data, limit)
            except self._kind.errors as error:
                raise self._damaged(str(error)) from error
            if engine.eof:
                self._rest = engine.unused_data + self._rest
                self._engine = None
            elif not piece and not data and engine.needs_input:
                raise self._damaged("it is cut off")
            if piece:
                self._budget.spend(len(piece))
                return piece

    def _begin(self) -> bool:
        """Starts the next member; False when there is none."""
        while True:
            self._rest = self._rest or self._take()
            if not self._rest:
                return False
            if not (self._members and self._kind.pads):
                break
            self._rest = self._rest.lstrip(b"\0")
            if self._rest:
                break
        while len(self._rest) < 6 and (more := self._take_more()):
            self._rest += more
        if self._members and not self._rest.startswith(self._kind.magic):
            raise self._damaged("other bytes stand behind its end")
        self._members += 1
        self._engine = self._kind.make()
        return True

    def _take(self) -> bytes:
        data, self._rest = self._rest, b""
        if len(data) > self._kind.step:
            data, self._rest = data[: self._kind.step], data[self._kind.step :]
        return data or self._take_more()

    def _take_more(self) -> bytes:
        data = self._source.read1(self._kind.step)
        self._budget.consumed += len(data)
        return data

    def _damaged(self, detail: str) -> DamagedInput:
        return DamagedInput(f"damaged {self._kind.name}", detail)


class Guarded(Stream):
    """A member of an archive, with what its library raises turned into DamagedInput `reason`."""

    def __init__(
        self, member: Any, reason: str, errors: tuple[type[Exception], ...],
        budget: Budget | None = None, step: int = BUFFER_BYTES,
    ) -> None:  # fmt: skip
        self._member, self._reason, self._errors = member, reason, errors
        self._budget, self._step = budget, step

    def close(self) -> None:
        if not self.closed:
            self._member.close()
        super().close()

    def _next(self, limit: int) -> bytes:
        try:
            piece: bytes = self._member.read(min(self._step, limit))
        except OSError as error:
            # The bzip2 module reports bad data as an OSError without a number.
            reason = self._reason if error.errno is None else "unreadable"
            raise DamagedInput(reason, error.strerror or str(error)) from error
        except self._errors as error:
            raise DamagedInput(self._reason, str(error) or "it is cut off") from error
        if self._budget is not None:
            self._budget.spend(len(piece))
        return piece
