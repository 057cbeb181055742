"""The exception for everything that a user can fix."""


class LookalikeError(Exception):
    """An error that a user can fix. Its one-line message names the value, the place and the way out."""


def closest(value: str, known: list[str]) -> str:
    """Return a hint for an unknown name: the most similar known name, then all of them.

    >>> closest("ResNet5O", ["ResNet50", "VGG16"])
    'did you mean ResNet50? Known: ResNet50, VGG16'
    """
    from difflib import get_close_matches

    near = get_close_matches(value, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}Known: {', '.join(known)}"
