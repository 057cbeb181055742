"""A reader for tar.gz archives that may be hostile."""

import io
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, Self

from lookalike.base.errors import LookalikeError
from lookalike.datasets.download import BLOCK

# Limits of an archive. Caltech-101 has 9,144 images in 102 folders, 132 MB packed.
FILE_MOST = 100_000_000  # bytes of a file
UNPACKED_MOST = 1 << 29  # bytes of the unpacked archive
HEADERS_MOST = 50_000  # headers: one per entry, and one more for a long name


def tar_files(archive: IO[bytes], name: str) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Yield path and bytes of every regular file in a tar.gz stream; memory holds one file at a time.

    archive  the packed stream.
    name     the archive's name in error messages.

    Raises LookalikeError at the first member that is a link or a device, or whose path is absolute, contains `..` or is
    not UTF-8, and if a file has more than FILE_MOST bytes, the unpacked archive more than UNPACKED_MOST bytes, or the
    archive more than HEADERS_MOST headers.
    """
    headers = 0

    class Entry(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
            nonlocal headers
            entry = super().frombuf(buf, encoding, errors)  # raises at the end of the archive
            headers += 1
            if headers > HEADERS_MOST:
                raise LookalikeError(f"{name}: more than {HEADERS_MOST:,} entries; refusing the archive")
            check_size(entry)  # before its content is read: a long name is content too
            return entry

    def check_size(entry: tarfile.TarInfo) -> None:
        if entry.size > FILE_MOST:
            raise LookalikeError(
                f"{name}: {entry.name!r} has {entry.size:,} bytes, more than {FILE_MOST:,}; refusing the archive"
            )

    try:
        # "r|" reads the stream once, without seeking.
        with tarfile.open(fileobj=_Gunzip(archive, name), mode="r|", bufsize=BLOCK, tarinfo=Entry) as tar:
            while member := tar.next():
                tar.members.clear()  # type: ignore[attr-defined]  # the list would grow with the archive
                path = safe_path(member.name, name)
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise LookalikeError(f"{name}: {member.name!r} is a link or a device; refusing the archive")
                check_size(member)  # again: an extended header may have changed the size
                content = tar.extractfile(member)
                yield path, content.read() if content else b""
    except LookalikeError:
        raise
    except Exception as error:  # a reader may raise anything on hostile bytes, even RecursionError
        raise LookalikeError(f"{name}: not a readable tar.gz archive ({type(error).__name__}: {error})") from None


class _Gunzip(io.RawIOBase):
    """Stream that unpacks a gzip stream piece by piece, up to UNPACKED_MOST bytes."""

    def __init__(self, packed: IO[bytes], name: str) -> None:
        super().__init__()
        self._packed, self._name, self._unpacked = packed, name, 0
        self._unpacker = zlib.decompressobj(wbits=31)  # 31: expects a gzip header and checks the checksum

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
    r"""Return an archive member's path. Raises LookalikeError if it is not UTF-8 or could leave the target folder.

    >>> safe_path("a/./b.jpg", "x.tar")
    PurePosixPath('a/b.jpg')
    """
    pure = PurePosixPath(path)
    try:
        path.encode()
    except UnicodeEncodeError:  # bytes of another encoding, which Python represents as lone surrogates
        raise LookalikeError(f"{archive}: the name {path!a} is not UTF-8; refusing the archive") from None
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path:
        raise LookalikeError(f"{archive}: member {path!r} would leave the folder; refusing the archive")
    return pure
