"""Archives that try to escape."""

import gzip
import io
import tarfile

import numpy as np
import pytest

from lookalike.base.errors import LookalikeError
from lookalike.datasets.archive import safe_path, tar_files

CONTENT = np.random.default_rng(0).bytes(3_000_000)


def tar(*members: tuple[str, bytes, bytes]) -> io.BytesIO:
    """A tar.gz of (name, type, content)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content), "/etc/passwd"
            archive.addfile(info, io.BytesIO(content))
    file.seek(0)
    return file


def test_plain_files_come_out_of_a_tar() -> None:
    archive = tar(("a", tarfile.DIRTYPE, b""), ("a/1.jpg", tarfile.REGTYPE, b"one"), ("./b.jpg", tarfile.REGTYPE, b""))
    assert [(str(path), content) for path, content in tar_files(archive, "x")] == [("a/1.jpg", b"one"), ("b.jpg", b"")]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("/etc/x", tarfile.REGTYPE),
        ("a/../../x", tarfile.REGTYPE),
        ("..", tarfile.DIRTYPE),
        ("a\\..\\x", tarfile.REGTYPE),
        ("link", tarfile.SYMTYPE),
        ("link", tarfile.LNKTYPE),
        ("device", tarfile.CHRTYPE),
        ("device", tarfile.BLKTYPE),
        ("pipe", tarfile.FIFOTYPE),
    ],
)
def test_what_could_escape_is_refused(name: str, kind: bytes) -> None:
    with pytest.raises(LookalikeError, match="refusing the archive"):
        list(tar_files(tar(("good.jpg", tarfile.REGTYPE, b"x"), (name, kind, b"")), "x"))


def test_a_broken_tar_is_said() -> None:
    whole_archive = tar(("a.jpg", tarfile.REGTYPE, CONTENT[:100_000])).getvalue()
    for content in (b"no tar", gzip.compress(b"no tar"), whole_archive[:50_000]):
        with pytest.raises(LookalikeError, match=r"not a readable tar\.gz archive"):
            list(tar_files(io.BytesIO(content), "x"))


def test_safe_path_keeps_ordinary_names() -> None:
    assert str(safe_path("a/b..c/ü d.jpg", "x")) == "a/b..c/ü d.jpg"
