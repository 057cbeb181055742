"""Names of images in addresses: opaque to a client, and never a path to this machine's files."""

import base64
import binascii


def of(path: str) -> str:
    """The id of an image, from its path in the collection.

    >>> of("3/digit_0003.png")
    'My9kaWdpdF8wMDAzLnBuZw'
    """
    return base64.urlsafe_b64encode(path.encode("utf-8", "surrogatepass")).rstrip(b"=").decode()


def path(text: str) -> str | None:
    """The path that has an id, to be looked up in the collection and nowhere else; None if none can have it.

    >>> path("My9kaWdpdF8wMDAzLnBuZw"), path("My9kaWdpdF8wMDAzLnBuZx"), path("é")
    ('3/digit_0003.png', None, None)
    """
    try:
        found = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True).decode("utf-8", "surrogatepass")
    except (binascii.Error, ValueError):
        return None
    return found if of(found) == text else None  # an image has one id
