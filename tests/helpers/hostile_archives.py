"""Hostile archives in the layout of Caltech-101, a tar.gz in a zip: what climbs, links, swells, lies or is cut off."""

import bz2
import gzip
import io
import lzma
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator

Named = tuple[str, bytes]
Member = tuple[tarfile.TarInfo, bytes]
TOP = "101_ObjectCategories"
INNER = f"caltech-101/{TOP}.tar.gz"
LARGE = 4096  # MiB that a bomb unpacks to
ENTRIES = 100_000


def archives(seed: int = 0, kinds: tuple[str, ...] = ()) -> Iterator[Named]:
    """Every hostile archive, or those of some kinds."""
    for make in (climbing, special, bombs, many, strange, cut):
        if make.__name__ in kinds or not kinds:
            for name, content in make(seed):
                yield f"{make.__name__}/{name}.zip", content


def member(name: str, content: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = "", **more: object) -> Member:
    """An entry of a tar."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(content), link
    for key, value in more.items():
        setattr(info, key, value)
    return info, content


GOOD = member(f"{TOP}/ant/image_0001.jpg")


def tar(*members: Member, form: int = tarfile.GNU_FORMAT) -> bytes:
    """An uncompressed tar, whose headers may lie about the size of what follows."""
    parts = []
    for info, content in members:
        parts += [info.tobuf(form, "utf-8", "surrogateescape"), content, bytes(-len(content) % 512)]
    return b"".join(parts) + bytes(1024)


def zipped(inner: bytes, name: str = INNER, how: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of one file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as archive:
        archive.writestr(name, inner)
    return file.getvalue()


def packed(*members: Member, form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar.gz in a zip."""
    return zipped(gzip.compress(tar(*members, form=form), 1, mtime=0))


def climbing(_seed: int) -> Iterator[Named]:
    """Names that lead elsewhere, in the tar and in the zip."""
    names = ("../evil.jpg", "../../../../evil.jpg", f"{TOP}/../evil.jpg", f"{TOP}/ant/../../../evil.jpg", "/evil.jpg",
             f"/{TOP}/ant/evil.jpg", f"{TOP}/../evil.jpg", f"{TOP}/../../ant.jpg", "..", f"{TOP}\\..\\..\\evil.jpg",
             f"{TOP}/ant/..\\..\\..\\evil.jpg", "C:\\evil.jpg", "\\\\host\\evil.jpg")  # fmt: skip
    for number, name in enumerate(names):
        for form, how in ((tarfile.GNU_FORMAT, "gnu"), (tarfile.PAX_FORMAT, "pax")):
            yield f"tar-{how}-{number:02}", packed(GOOD, member(name), form=form)
    good = gzip.compress(tar(GOOD), mtime=0)
    for number, folder in enumerate(("..", "../..", "/", "/tmp", "a/../..", "a\\..\\..")):
        yield f"zip-{number}", zipped(good, f"{folder}/{TOP}.tar.gz")
    long = "../" * 2000 + "evil.jpg"
    yield "tar-long-gnu", packed(member(long), form=tarfile.GNU_FORMAT)
    yield "tar-long-pax", packed(member(long), form=tarfile.PAX_FORMAT)


def special(_seed: int) -> Iterator[Named]:
    """Links, to files inside and outside, and through a link; devices, pipes, and types that do not exist."""
    inside, outside = f"{TOP}/ant", "/etc"
    for kind, name in ((tarfile.SYMTYPE, "symlink"), (tarfile.LNKTYPE, "hardlink")):
        for target, where in ((inside, "inside"), (outside, "outside"), ("..", "above"), ("", "nowhere")):
            through = member(f"{TOP}/bee", b"", kind, target), member(f"{TOP}/bee/image_0001.jpg")
            yield f"{name}-{where}", packed(GOOD, *through)
        yield f"{name}-to-itself", packed(member(f"{TOP}/ant/a.jpg", b"", kind, f"{TOP}/ant/a.jpg"))
    for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, b"Z", b"\xff"):
        yield f"type-{kind.hex()}", packed(GOOD, member(f"{TOP}/ant/a.jpg", b"", kind, devmajor=1, devminor=5))


def swollen(head: bytes, filling: bytes = bytes(1 << 20)) -> bytes:
    """A gzip of some bytes, then of LARGE times `filling`, made without packing it more than once; it has no end."""
    packer = zlib.compressobj(9, wbits=31)
    start = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(filling) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + block * LARGE


def head(*members: Member) -> bytes:
    """A tar without its end."""
    return tar(*members)[:-1024]


def bombs(_seed: int) -> Iterator[Named]:
    """Gigabytes in kilobytes: in one file, in a name, in many files, in a hole, and packed twice."""
    image, gigabytes = f"{TOP}/ant/image_0001.jpg", {"size": LARGE << 20}

    one = swollen(head(member(image, b"", **gigabytes)))
    yield "flat-one-file", zipped(one)
    yield "nested-one-file", zipped(one, how=zipfile.ZIP_DEFLATED)
    yield "flat-no-image", zipped(swollen(head(member("README", b"", **gigabytes))))
    yield "flat-many-files", zipped(swollen(b"", head(member(image, bytes(1 << 20)))))
    yield "flat-no-tar", zipped(swollen(b""))
    for kind, name in ((tarfile.GNUTYPE_LONGNAME, "gnu-name"), (tarfile.GNUTYPE_LONGLINK, "gnu-link"),
                       (tarfile.XHDTYPE, "pax"), (tarfile.XGLTYPE, "pax-global")):  # fmt: skip
        yield f"flat-{name}", zipped(swollen(head(member("x", b"", kind, **gigabytes))))
    record = b"19 size=4294967296\n"
    yield "pax-size", zipped(swollen(head(member("x", record, tarfile.XHDTYPE), GOOD)))
    sparse = [b"22 GNU.sparse.major=1\n", b"22 GNU.sparse.minor=0\n", b"34 GNU.sparse.realsize=4294967296\n",
              b"23 GNU.sparse.name=a/b\n"]  # fmt: skip
    hole = b"1\n4294967295\n1\n" + bytes(498)
    yield "sparse-pax", packed(member("x", b"".join(sparse), tarfile.XHDTYPE), member(image, hole + bytes(512)))
    yield "sparse-old", packed(member(image, b"", tarfile.GNUTYPE_SPARSE))
    whole = tar(GOOD, member(f"{TOP}/ant/image_0002.jpg", bytes(16 << 20)))
    for how, name in ((zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "lzma")):
        yield f"zip-{name}", zipped(gzip.compress(whole, mtime=0), how=how)
    yield "tar-bzip2", zipped(bz2.compress(whole))
    yield "tar-xz", zipped(lzma.compress(whole))
    yield "nested-empty-blocks", zipped(gzip.compress(b"", mtime=0)[:10] + b"\0\0\0\xff\xff" * 4_000_000, how=8)
    yield "nested-empty-members", zipped(gzip.compress(tar(GOOD)[:-1024]) + gzip.compress(b"") * 1_000_000, how=8)
    yield "zeros-after-the-end", zipped(gzip.compress(tar(GOOD)[:-1024]) + bytes(32 << 20), how=8)
    claim = bytearray(packed(GOOD))
    struct.pack_into("<II", claim, claim.rindex(b"PK\1\2") + 20, 2**32 - 2, 2**32 - 2)
    yield "zip-that-claims-4-GB", bytes(claim)


def many(_seed: int) -> Iterator[Named]:
    """More than one reads at leisure."""
    empty = (member(f"{TOP}/ant/{number}.txt", b"") for number in range(ENTRIES))
    yield f"tar-of-{ENTRIES}", packed(*empty)
    folder = head(member("a/" * 40, b"", tarfile.DIRTYPE))
    yield "tar-of-millions", zipped(swollen(b"", folder * 1000))
    name = head(member("x", b"a" * 500, tarfile.GNUTYPE_LONGNAME))
    yield "tar-of-names-for-names", zipped(swollen(b"", name * 200 + folder))
    yield "tar-of-names-for-names-for-ever", zipped(swollen(b"", name * 1000))
    yield "tar-of-headers-for-headers", packed(*[member("x", b"9 a=bcde\n", tarfile.XHDTYPE)] * 20_000)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(ENTRIES):
            archive.writestr(f"{number}", b"")
        archive.writestr(INNER, gzip.compress(tar(GOOD), mtime=0))
    yield f"zip-of-{ENTRIES}", file.getvalue()


def strange(_seed: int) -> Iterator[Named]:
    """Names of another encoding or of none, twice, too long, or empty; a lock, a version, a size that is no number."""
    for number, name in enumerate((b"caf\xe9.jpg", b"\xff\xfe.jpg", b"\xed\xa0\x80.jpg", "\u202egpj.jpg".encode(),
                                   b"a\nb.jpg", b"a\x1b[2Jb.jpg", b"x" * 90 + b".jpg")):  # fmt: skip
        for form, how in ((tarfile.GNU_FORMAT, "gnu"), (tarfile.USTAR_FORMAT, "ustar")):
            entry = member(f"{TOP}/ant/" + name.decode("utf-8", "surrogateescape"))
            try:
                yield f"name-{how}-{number}", packed(entry, form=form)
            except ValueError:  # too long for it
                continue
    pax = b"\xff\xfe.jpg"
    yield "name-pax", packed(member("x", b"20 path=" + pax + b"\n", tarfile.XHDTYPE), GOOD)
    for text in (b"10 size=x\n", b"99999999999999999999 a=b\n", b"-5 a=b\n", b"0 a=b\n",
                 b"17 size=-9999999\n", b"9" * 5000 + b" size=1\n", b"30 GNU.sparse.map=0,x,9,y,zzz\n",
                 b"25 hdrcharset=notacoding\n"):  # fmt: skip
        yield f"pax-{zlib.crc32(text)}", packed(member("x", text, tarfile.XHDTYPE), GOOD)
    yield "empty-name", packed(member(""))
    yield "twice", packed(GOOD, GOOD)
    yield "long", packed(member(f"{TOP}/ant/{'x' * 5000}.jpg"))
    yield "deep", packed(member("a/" * 20_000 + "b.jpg"))
    yield "no-image", packed(member(f"{TOP}/ant/image_0001.txt"))
    yield "two-inside", zipped(b"x", INNER) + packed(GOOD)
    plain = packed(GOOD)
    central = plain.rindex(b"PK\1\2")
    for name, place, value in (("locked", 8, 1), ("strong-lock", 8, 0x41), ("method", 10, 99), ("version", 6, 999),
                               ("utf8-name", 8, 0x800)):  # fmt: skip
        changed = bytearray(plain)
        struct.pack_into("<H", changed, central + place, value)
        struct.pack_into("<H", changed, place - 2, value)
        if name == "utf8-name":
            changed[central + 46], changed[30] = 0xFF, 0xFF
        yield f"zip-{name}", bytes(changed)
    size = gzip.compress(bytearray(tar(GOOD)).replace(b"00000000001\0", b"\xff" * 12), mtime=0)
    yield "negative-size", zipped(size)


def flipped(content: bytes, draw: random.Random) -> bytes:
    """The content with one bit changed."""
    damaged = bytearray(content)
    damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def cut(seed: int) -> Iterator[Named]:
    """Cut at every fiftieth, and with a bit changed: of the whole, and of the tar before it was packed."""
    draw = random.Random(seed)
    long = member(f"{TOP}/bee/{'y' * 120}.jpg", draw.randbytes(700))
    members = (GOOD, member(f"{TOP}/bee", b"", tarfile.DIRTYPE), long)
    for how, form in (("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)):
        content, inner = packed(*members, form=form), tar(*members, form=form)
        for percent in range(0, 100, 2):
            yield f"zip-{how}-{percent:02}", content[: len(content) * percent // 100]
            yield f"tar-{how}-{percent:02}", zipped(gzip.compress(inner[: len(inner) * percent // 100], mtime=0))
        for number in range(100):
            yield f"flipped-zip-{how}-{number:03}", flipped(content, draw)
            yield f"flipped-tar-{how}-{number:03}", zipped(gzip.compress(flipped(inner, draw), mtime=0))
