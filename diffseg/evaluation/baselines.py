"""Baselines without a model: segmentations that a method must beat for its figures to mean something.

Input: uint8 [H, W, 3]. Output: a label map of the same size. scikit-image and scikit-learn compute them; they are
needed for evaluation only, so their absence is an error of the one call that needs them.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np

from diffseg.types import Integer

CLUSTERS = 4  # of k-means; the best of 3..12 by covering + ARI on half of the first BSDS shard
FITTED_PIXELS = 10_000  # k-means is fitted to these and assigns all pixels: 30 times as fast, equally good

Image = Integer[np.ndarray, "H W 3"]
LabelMap = Integer[np.ndarray, "H W"]


def one_segment(image: Image) -> LabelMap:
    """One segment for the whole image: pixel accuracy alone would often rate it well."""
    return np.zeros(image.shape[:2], np.int32)


def kmeans(image: Image, clusters: int = CLUSTERS) -> LabelMap:
    """K-means on CIE Lab colours, without position; deterministic.

    An image of fewer colours than clusters has a segment a colour. Raises ValueError where scikit-image or
    scikit-learn is absent.
    """
    colours = _library("skimage.color", "scikit-image").rgb2lab(image).reshape(-1, 3).astype(np.float32)
    random = np.random.default_rng(0)
    fitted = colours[random.choice(len(colours), min(FITTED_PIXELS, len(colours)), replace=False)]
    clusters = min(clusters, len(np.unique(fitted, axis=0)))
    model = _library("sklearn.cluster", "scikit-learn").KMeans(clusters, n_init=4, random_state=0).fit(fitted)
    return np.asarray(model.predict(colours), np.int32).reshape(image.shape[:2])


def felzenszwalb(image: Image, scale: float = 400.0, sigma: float = 1.2, min_share: float = 0.005) -> LabelMap:
    """Graph-based segmentation (Felzenszwalb and Huttenlocher, IJCV 2004).

    scale: larger makes larger segments. sigma: of the blur before, pixels. min_share: of the image, smaller segments
    are merged. Raises ValueError where scikit-image is absent.
    """
    smallest = max(1, round(min_share * image.shape[0] * image.shape[1]))
    segment = _library("skimage.segmentation", "scikit-image").felzenszwalb
    return np.asarray(segment(image, scale=scale, sigma=sigma, min_size=smallest), np.int32)


BASELINES: Mapping[str, Callable[[Image], LabelMap]] = {
    "kmeans": kmeans,
    "felzenszwalb": felzenszwalb,
    "one-segment": one_segment,
}


def _library(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(f"this baseline needs {package}, which is not installed: pip install {package}") from error
