"""Caltech-101: 9,144 photographs in 101 categories and a background folder.

Source: Li, Andreeto, Ranzato, Perona, Caltech 101, CaltechDATA, 2022, doi:10.22002/D1.20086, CC BY 4.0.
The official file is a zip that holds a tar.gz that holds the photographs.
"""

import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath

from lookalike.base.errors import LookalikeError
from lookalike.datasets.archive import UNPACKED_MOST, safe_path, tar_files
from lookalike.datasets.base import Item, Settings
from lookalike.datasets.download import fetch

URL = "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip?download=1"
CHECKSUM = "md5:3138e1922a9193bfa496528edbbc45d0"
IMAGES = "101_ObjectCategories"
BACKGROUND = "BACKGROUND_Google"  # excluded by default in params.yaml, also for data sets that do not have it


def items(settings: Settings) -> Iterator[Item]:
    """Fetch the archive, official or from a mirror, and yield its photographs in the archive's order."""
    if settings.url and not settings.checksum:
        raise LookalikeError(
            f"download.checksum is empty but download.url is {settings.url}: set it to the mirror's md5:<hex> or "
            f"sha256:<hex>; for an exact copy of the official file: {CHECKSUM}"
        )
    archive = fetch(settings.url or URL, settings.checksum or CHECKSUM)
    try:
        with zipfile.ZipFile(archive) as zipped:
            inner = [name for name in zipped.namelist() if PurePosixPath(name).name == f"{IMAGES}.tar.gz"]
            if len(inner) != 1:
                raise LookalikeError(f"{archive}: expected one {IMAGES}.tar.gz in the zip, found {len(inner)}")
            safe_path(inner[0], str(archive))
            info = zipped.getinfo(inner[0])
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.file_size > UNPACKED_MOST:
                raise LookalikeError(  # zipfile unpacks other methods without a limit
                    f"{archive}: {inner[0]} is not stored or deflated, or larger than {UNPACKED_MOST:,} bytes; "
                    "refusing the archive"
                )
            with zipped.open(inner[0]) as stream:
                for path, content in tar_files(stream, f"{archive}:{inner[0]}"):
                    if path.suffix.lower() == ".jpg" and len(path.parts) == 3 and path.parts[0] == IMAGES:
                        _, label, name = path.parts
                        yield Item(PurePosixPath(label, name), label, content)
    except LookalikeError:
        raise
    except Exception as error:  # encrypted, of a newer version or broken: zipfile has an exception for each
        raise LookalikeError(f"{archive}: not a readable zip archive ({type(error).__name__}: {error})") from None


def origin(settings: Settings) -> str:
    """Return address and checksum of the archive."""
    return f"{settings.url or URL} {settings.checksum or CHECKSUM}"
