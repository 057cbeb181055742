"""Pictures that `evaluate` draws, with titles and captions, in the order of the report and the browser page."""

from typing import NamedTuple


class Figure(NamedTuple):
    """A picture in `plots/`. A wide one scrolls sideways on a phone instead of shrinking."""

    name: str
    title: str
    text: str
    wide: bool = False

    @property
    def file(self) -> str:
        """Name of the file."""
        return f"{self.name}.png"


FIGURES = (
    Figure("map", "Map of the gallery", "Images that the search finds similar lie near each other."),
    Figure("precision_recall", "Precision and recall", "How pure the ranking stays while more of the class is found."),
    Figure("recall_at_k", "Recall at k", "Share of all relevant images among the first k; large classes cannot fit."),
    Figure("average_precision", "Average precision", "A query at 1 found its whole class first."),
    Figure("examples", "Examples",
           "Under each hit its similarity, and where labels are known ✓ same class, ✗ another.", wide=True),
    Figure("worst", "Worst queries",
           "What to look at first: wrong labels, odd pictures, or a real weakness.", wide=True),
    Figure("images_per_class", "Images of each class", "Small classes make uncertain figures."),
)  # fmt: skip
