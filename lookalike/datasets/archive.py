"""Reading a tar.gz archive that may have been made to do harm."""

import io
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, Self

from lookalike.base.errors import LookalikeError
from lookalike.datasets.download import BLOCK

# What an archive may hold; Caltech-101 has 9,144 images in 102 folders, 132 MB packed.
FILE_MOST = 100_000_000  # bytes


UNPACKED_MOST = 1 << 29  # bytes


HEADERS_MOST = 50_000  # entries, and names too long for theirs


def tar_files(archive: IO[bytes], name: str) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Yield path and bytes of every regular file in a tar.gz stream.

    Refuses the whole archive, with LookalikeError, at the first member that is a link or a device, or whose path is
    absolute, climbs with `..` or is not UTF-8; and where it holds more than FILE_MOST bytes in a file, UNPACKED_MOST in
    all, or HEADERS_MOST entries. Nothing is written by this function, and memory holds one file at a time.
    """
    headers = 0

    class Entry(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
            nonlocal headers
            entry = super().frombuf(buf, encoding, errors)  # raises at the end
            headers += 1
            if headers > HEADERS_MOST:
                raise LookalikeError(f"{name}: more than {HEADERS_MOST:,} entries; refusing the archive")
            check_size(entry)  # before it is read: a long name is an entry too
            return entry

    def check_size(entry: tarfile.TarInfo) -> None:
        if entry.size > FILE_MOST:
            raise LookalikeError(
                f"{name}: {entry.name!r} has {entry.size:,} bytes, more than {FILE_MOST:,}; refusing the archive"
            )

    try:
        # A pipe's mode: read once, nothing is looked for.
        with tarfile.open(fileobj=_Gunzip(archive, name), mode="r|", bufsize=BLOCK, tarinfo=Entry) as tar:
            while member := tar.next():
                tar.members.clear()  # type: ignore[attr-defined]  # which would grow with the archive
                path = safe_path(member.name, name)
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise LookalikeError(f"{name}: {member.name!r} is a link or a device; refusing the archive")
                check_size(member)  # which another header may have said
                content = tar.extractfile(member)
                yield path, content.read() if content else b""
    except LookalikeError:
        raise
    except Exception as error:  # a reader may raise anything on hostile bytes, RecursionError for one
        raise LookalikeError(f"{name}: not a readable tar.gz archive ({type(error).__name__}: {error})") from None


class _Gunzip(io.RawIOBase):
    """What a gzip stream unpacks to, a piece at a time, up to UNPACKED_MOST bytes."""

    def __init__(self, packed: IO[bytes], name: str) -> None:
        super().__init__()
        self._packed, self._name, self._unpacked = packed, name, 0
        self._unpacker = zlib.decompressobj(wbits=31)  # a gzip header, one member, a checksum

    def read(self, size: int = BLOCK, /) -> bytes:
        content = b""
        while not content and not self._unpacker.eof:
            piece = self._unpacker.unconsumed_tail or self._packed.read(BLOCK)
            content = self._unpacker.decompress(piece, size)
            if not (piece or content or self._unpacker.eof):
                raise EOFError("it is cut off")
        self._unpacked += len(content)
        if self._unpacked > UNPACKED_MOST:
            raise LookalikeError(f"{self._name}: unpacks to more than {UNPACKED_MOST:,} bytes; refusing the archive")
        return content


def safe_path(path: str, archive: str) -> PurePosixPath:
    r"""Return an archive member's path, or raise LookalikeError if it could leave the folder it is unpacked to.

    >>> safe_path("a/./b.jpg", "x.tar")
    PurePosixPath('a/b.jpg')
    """
    pure = PurePosixPath(path)
    try:
        path.encode()
    except UnicodeEncodeError:  # bytes of another encoding, which Python carries as lone surrogates
        raise LookalikeError(f"{archive}: the name {path!a} is not UTF-8; refusing the archive") from None
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path:
        raise LookalikeError(f"{archive}: member {path!r} would leave the folder; refusing the archive")
    return pure
