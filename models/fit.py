"""What formulas are fitted to: a linear probe, and cluster centres. numpy and scipy; seconds on stored vectors.

Dimensions: P good pairs, N others, D features, E embedding, C clusters, T targets.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import cluster, optimize  # type: ignore[import-untyped]

from models.formulas import Clusters, Float32

L2 = 1e-3
"""Of standardised features, beside the mean loss over pairs."""
KMEANS_ROUNDS = 20
"""As DataComp's image_based_clustering.py."""


def linear_probe(good_PD: Float32, other_ND: Float32) -> tuple[Float32, float]:
    """(weight_D, bias) of a logistic regression of good against other, each side counted as half of the loss.

    Features are standardised for the fit and the scale is folded into the weights. L-BFGS in float64: no seed.

    Raises:
        ValueError: a side has no pairs.
    """
    if not len(good_PD) or not len(other_ND):
        raise ValueError(f"wanted pairs on both sides of a binary filter; found {len(good_PD)} and {len(other_ND)}")
    features_ND = np.concatenate([good_PD, other_ND]).astype(np.float64)
    means_D, stds_D = features_ND.mean(axis=0), np.maximum(features_ND.std(axis=0), 1e-6)
    scaled_ND = (features_ND - means_D) / stds_D
    signs_N = np.repeat([1.0, -1.0], [len(good_PD), len(other_ND)])
    shares_N = np.repeat([0.5 / len(good_PD), 0.5 / len(other_ND)], [len(good_PD), len(other_ND)])

    def loss(point_D: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights_D, margins_N = point_D[:-1], signs_N * (scaled_ND @ point_D[:-1] + point_D[-1])
        value = float(shares_N @ np.logaddexp(0, -margins_N) + L2 / 2 * weights_D @ weights_D)
        slopes_N = -shares_N * signs_N * np.exp(-np.logaddexp(0, margins_N))
        return value, np.append(slopes_N @ scaled_ND + L2 * weights_D, slopes_N.sum())

    found = optimize.minimize(loss, np.zeros(features_ND.shape[1] + 1), jac=True, method="L-BFGS-B").x
    weights_D = found[:-1] / stds_D
    return weights_D.astype(np.float32), float(found[-1] - weights_D @ means_D)


def clusters(pool_NE: Float32, targets_TE: Float32, num_clusters: int, seed: int) -> Clusters:
    """k-means on the pool's images; the targets mark the centres that are nearest to them.

    Raises:
        ValueError: fewer images than clusters, or no target.
    """
    if len(pool_NE) < num_clusters or not len(targets_TE):
        raise ValueError(
            f"wanted at least {num_clusters} images of the pool and a target; "
            f"found {len(pool_NE)} and {len(targets_TE)}"
        )
    centres_CE = centres(pool_NE, num_clusters, seed)
    return Clusters(centres_CE, mark_targets(centres_CE, targets_TE))


def centres(vectors_NE: Float32, num_clusters: int, seed: int) -> Float32:
    """Cluster centres by k-means, float32, shape CE."""
    centres_CE, _ = cluster.vq.kmeans2(vectors_NE, num_clusters, iter=KMEANS_ROUNDS, minit="points", seed=seed)
    found_CE: Float32 = centres_CE.astype(np.float32)
    return found_CE


def mark_targets(centres_CE: Float32, targets_TE: Float32) -> NDArray[np.uint8]:
    """1 for each centre that is nearest, by dot product, to some target. uint8, shape C."""
    is_target_C = np.zeros(len(centres_CE), np.uint8)
    is_target_C[(targets_TE @ centres_CE.T).argmax(axis=1)] = 1
    return is_target_C
