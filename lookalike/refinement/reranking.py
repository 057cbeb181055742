"""Re-ranking of a shortlist by k-reciprocal neighbours.

Source: Zhong, Zheng, Cao, Li, Re-ranking person re-identification with k-reciprocal encoding, CVPR 2017.
"""

import numpy as np

# k1, k2 and lambda. The paper uses 20, 6 and 0.3, for pedestrians; here k1 was chosen on validation queries
RECIPROCAL, LOCAL, ORIGINAL_WEIGHT = 30, 6, 0.3


def rerank(query: np.ndarray, shortlist: np.ndarray) -> np.ndarray:
    """Order a shortlist by k-reciprocal encoding: shared neighbours count more than the cosine to the query.

    query      float32, (d,), unit length.
    shortlist  float32, (L, d), unit length, most similar first.

    Returns int64, (L,): positions in the shortlist, best first. Among query and shortlist, p and g are neighbours if
    each is among the k1 nearest of the other; V_p weighs p's neighbours by similarity, averaged over p's k2 nearest.
    The paper also adds neighbours' neighbours to the sets (its equation 5), which is left out here.
    The distance is (1 - w) (1 - sum min(V_p, V_g) / sum max(V_p, V_g)) + w (1 - cosine).
    """
    vectors = np.vstack([query, shortlist])  # (L + 1, d), the query first
    cosines = (vectors @ vectors.T).astype(np.float64)
    nearest = np.argsort(-cosines, axis=1, kind="stable")  # the nearest of each is itself
    near = np.zeros(cosines.shape, dtype=bool)
    np.put_along_axis(near, nearest[:, : RECIPROCAL + 1], True, axis=1)
    np.fill_diagonal(near, True)  # among more than k1 identical vectors, some would miss themselves
    weights = np.where(near & near.T, np.exp(cosines - 1), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    weights = weights[nearest[:, :LOCAL]].mean(axis=1)  # (L + 1, L + 1), rows sum to 1
    shared = np.minimum(weights[0], weights).sum(axis=1)
    jaccard = 1 - shared / (2 - shared)
    distance = (1 - ORIGINAL_WEIGHT) * jaccard + ORIGINAL_WEIGHT * (1 - cosines[0])
    return np.argsort(distance[1:], kind="stable")
