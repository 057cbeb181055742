"""A query: the settings of a search, which every face makes and the collection answers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Query:
    """The settings of a search, beside the picture or the image that it begins with.

    k               hits, 1 or more; where there are fewer images, all of them.
    min_similarity  the least cosine of a hit.
    label           search this class only; then fewer than k hits are all of the class.
    text            words that the images' tags are compared with, too; alone, or at weight 1, it finds only what
                    shares a word. Where there are no tags and the network reads texts: with the images themselves.
    text_weight     of the words beside a picture, 0 to 1; the collection's own by default.
    """

    k: int = 10
    min_similarity: float = -1.0
    label: str | None = None
    text: str | None = None
    text_weight: float | None = None
