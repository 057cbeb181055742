"""Metric learning losses, which move images of one class together and images of other classes apart.

Each takes unit-length embeddings, float32 (B, D), and their classes, int (B,), and returns a scalar: the mean over the
anchors that have the pairs or triplets the loss needs; 0 if none has. d(i, j) = |z_i - z_j| is the Euclidean distance.
"""

from typing import Any

from lookalike.networks.keras_setup import tf

FAR = 1e9  # larger than any distance or logarithm here


def supervised_contrastive(embeddings: Any, classes: Any, temperature: float) -> Any:
    """Compute the supervised contrastive loss, which contrasts each image's class with all others in the batch.

        L_i = -1/|P(i)| * sum over p in P(i) of log( exp(z_i.z_p / t) / sum over a != i of exp(z_i.z_a / t) )

    P(i): the other images of i's class in the batch. t: `temperature`.
    Source: Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, equation 2 (L_out).
    """
    same, other = _pairs(classes)
    logits = embeddings @ tf.transpose(embeddings) / temperature  # (B, B)
    logits = tf.where(same | other, logits, -FAR)  # without the image itself
    log_share = logits - tf.reduce_logsumexp(logits, axis=1, keepdims=True)
    positives = tf.cast(same, tf.float32)
    count = tf.reduce_sum(positives, axis=1)  # (B,)
    per_anchor = -tf.reduce_sum(tf.where(same, log_share, 0.0), axis=1) / tf.maximum(count, 1.0)
    return _mean_where(per_anchor, count > 0)


def triplet_hard(embeddings: Any, classes: Any, margin: float) -> Any:
    """Compute the batch-hard triplet loss: each anchor, its furthest positive p and its nearest negative n.

        L_i = max(0, m + max over p of d(i, p) - min over n of d(i, n))

    m: `margin`.
    Source: Hermans, Beyer, Leibe, In Defense of the Triplet Loss for Person Re-Identification, 2017, equation 5.
    """
    same, other = _pairs(classes)
    distances = _distances(embeddings)
    furthest = tf.reduce_max(tf.where(same, distances, -FAR), axis=1)
    nearest = tf.reduce_min(tf.where(other, distances, FAR), axis=1)
    valid = tf.reduce_any(same, axis=1) & tf.reduce_any(other, axis=1)
    return _mean_where(tf.maximum(tf.where(valid, margin + furthest - nearest, 0.0), 0.0), valid)


def triplet_semihard(embeddings: Any, classes: Any, margin: float) -> Any:
    """Compute the semi-hard triplet loss: each pair of a class with the nearest negative further away than the pair.

        L_ip = max(0, m + d(i, p)^2 - d(i, n)^2),   n the nearest with d(i, n) > d(i, p), or the furthest if none is

    m: `margin`. The mean is over all pairs (i, p).
    Source: Schroff, Kalenichenko, Philbin, FaceNet, CVPR 2015, equations 1 and 4, with squared distances as there. The
    paper does not say what to take if no negative is further away.
    """
    same, other = _pairs(classes)
    distances = tf.square(_distances(embeddings))  # (B, B)
    further = other[:, None, :] & (distances[:, None, :] > distances[:, :, None])  # (anchor, positive, negative)
    nearest = tf.reduce_min(tf.where(further, distances[:, None, :], FAR), axis=2)  # (B, B)
    furthest = tf.reduce_max(tf.where(other, distances, 0.0), axis=1, keepdims=True)
    negative = tf.where(nearest < FAR, nearest, furthest)
    valid = same & tf.reduce_any(other, axis=1, keepdims=True)
    return _mean_where(tf.maximum(margin + distances - negative, 0.0), valid)


def _pairs(classes: Any) -> tuple[Any, Any]:
    """Return two bool (B, B): the pairs of one class, without an image and itself, and the pairs of two classes."""
    equal = classes[:, None] == classes[None, :]
    return equal & ~tf.eye(tf.shape(classes)[0], dtype=tf.bool), ~equal


def _distances(embeddings: Any) -> Any:
    """Return Euclidean distances, (B, B), with a finite gradient where two embeddings are equal."""
    squares = tf.maximum(2.0 - 2.0 * (embeddings @ tf.transpose(embeddings)), 1e-12)
    return tf.sqrt(squares)


def _mean_where(values: Any, which: Any) -> Any:
    weights = tf.cast(which, tf.float32)
    return tf.reduce_sum(values * weights) / tf.maximum(tf.reduce_sum(weights), 1.0)
