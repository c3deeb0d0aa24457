"""Learning from features, by faiss and scikit-learn.

Letters: S segments, F features, D numbers of a vector, C categories.
"""

import warnings
from importlib.util import find_spec

import numpy as np

from diffseg.types import Float, Int
from pipeline.errors import ConfigError

ITERATIONS = 25  # of k-means, as faiss has it
FIRST = 32  # points a centroid that k-means++ draws the first ones from: of all of them it would take longest
NEVER = -1e9  # the bias of a category without segments: its probability is 0


def check_installed() -> None:
    """Raises ConfigError where scikit-learn is missing."""
    if find_spec("sklearn") is None:
        raise ConfigError("categories need scikit-learn, which is not installed: pip install 'diffseg[categories]'")


def centroids_of(points: Float[np.ndarray, "S D"], count: int, seed: int) -> Float[np.ndarray, "C D"]:
    """Spherical k-means of unit vectors, by faiss where it is installed, else in small batches."""
    from sklearn.cluster import MiniBatchKMeans, kmeans_plusplus

    points = np.ascontiguousarray(points, np.float32)
    first = kmeans_plusplus(points[: FIRST * count], count, random_state=seed)[0]
    if find_spec("faiss") is None:
        batches = MiniBatchKMeans(count, init=first, n_init=1, batch_size=4096, random_state=seed)
        found = batches.fit(points).cluster_centers_
    else:
        import faiss

        faiss.omp_set_num_threads(1)  # its OpenMP is not torch's: two pools of threads would be in each other's way
        few = {"min_points_per_centroid": 1}  # it would warn
        kmeans = faiss.Kmeans(points.shape[1], count, niter=ITERATIONS, spherical=True, seed=seed, **few)
        kmeans.train(points, init_centroids=first)
        found = kmeans.centroids
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return np.asarray(found / np.where(lengths > 0, lengths, 1), np.float32)


def linear(
    features: Float[np.ndarray, "S F"], pixels: Int[np.ndarray, "S C"], c: float
) -> tuple[Float[np.ndarray, "C F"], Float[np.ndarray, " C"]]:
    """Weights and biases of a multinomial logistic regression on standardised features.

    pixels: of each category in a segment. It counts for the one of most pixels, with the share of these as its weight.
    c: the inverse of the strength of regularisation.
    """
    from sklearn.linear_model import LogisticRegression

    seen = pixels.any(1)
    features, pixels = features[seen], pixels[seen]
    rows, biases = np.zeros((pixels.shape[1], features.shape[1])), np.full(pixels.shape[1], NEVER)
    known, categories = np.unique(pixels.argmax(1), return_inverse=True)
    biases[known] = 0
    if len(known) > 1:
        mean, deviation = features.mean(0), features.std(0) + 1e-6
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged: held-out images decide what it is worth
            fitted = LogisticRegression(C=c, max_iter=200)
            fitted.fit((features - mean) / deviation, categories, pixels.max(1) / pixels.sum(1))
        signs = np.array([[-0.5], [0.5]]) if len(known) == 2 else 1  # of two, only the second has a row
        rows[known] = signs * fitted.coef_ / deviation
        biases[known] = np.ravel(signs * fitted.intercept_.reshape(-1, 1)) - rows[known] @ mean
    return rows, biases
