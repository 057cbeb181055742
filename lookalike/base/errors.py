"""The one exception that a user's mistake, or a broken surrounding, raises."""


class LookalikeError(Exception):
    """Work cannot go on. The message names the value, the place and the way out, in one line."""


def closest(value: str, known: list[str]) -> str:
    """What to say after an unknown name: the nearest known one, then all of them.

    >>> closest("ResNet5O", ["ResNet50", "VGG16"])
    'did you mean ResNet50? Known: ResNet50, VGG16'
    """
    from difflib import get_close_matches

    near = get_close_matches(value, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}Known: {', '.join(known)}"
