"""Late fusion of words and pictures in an evaluation, as in a search."""

import numpy as np

from lookalike.evaluation.ranking import Mix
from lookalike.index.tags import Tags


def mix_words(texts: dict[str, str], weight: float, queries: np.ndarray, gallery: np.ndarray) -> Mix | None:
    """Return a function that mixes the similarity of words into the cosines, as Searcher.fuse does.

    texts             by path; `weight` is that of the words.
    queries, gallery  paths, str, (Q,) and (G,).

    TF-IDF is fitted on the gallery only. A query that shares no word with the gallery is compared by picture only.
    Returns None if the gallery has no words.
    """
    own = {row: texts[path] for row, path in enumerate(gallery.tolist()) if path in texts}
    if not own:
        return None
    fitted = Tags.fit(own, weight)

    def mix(block: slice, cosines: np.ndarray) -> np.ndarray:
        for row, path in enumerate(queries[block].tolist()):
            asked = fitted.weigh(texts.get(path, ""))
            if asked is None:
                continue
            matched, words = fitted.match(asked)
            there = np.isfinite(cosines[row])
            cosines[row, there] *= np.float32(1 - weight)
            matched, words = matched[there[matched]], words[there[matched]]
            cosines[row, matched] += np.float32(weight) * words
        return cosines

    return mix
