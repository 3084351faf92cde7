"""Metrics of retrieval and of classification on unit vectors. numpy only; touches nothing.

Ties count against the model: a wrong candidate that scores as high as the right one stands before it, so that a model
that gives every pair one score gets nothing. clip_benchmark lets `topk` and `argmax` decide: by position. So its value
lies between ours and ours with `ties_help`, and both are equal where no query is decided by a tie. A vector that is not
finite is a miss.

Dimensions: N pairs or images, M captions, B rows of a block, C classes, E embedding.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 1024
"""Rows of the similarity matrix held at once."""
TOP5_CLASSES = 5
"""Top 5 is given from so many classes on, as clip_benchmark does."""

Units = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


def retrieval(
    image_vectors: Units, text_vectors: Units, captions: Sequence[str], ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Recall at k of pairs in both directions: the share of queries with a right candidate among the k best.

    Pairs with the same caption (compared exactly) are right for each other; every pair is a candidate of its own, so m
    equal wrong captions take m places.

    Args:
        image_vectors, text_vectors: unit vectors of the pairs in the same order, shape NE.

    Returns:
        `image_to_text_r5`, `text_to_image_r5` and their mean `r5`, for each k; in [0, 1].
    """
    group_N = _groups(captions)
    return _recalls(image_vectors, text_vectors, group_N, group_N, ks)


def retrieval_of_pairs(
    image_vectors: Units, text_vectors: Units, captions: Sequence[str], k: int = 5
) -> NDArray[np.float64]:
    """What `retrieval` found of each pair: the share (0, .5 or 1) of its two queries that are answered among the k
    best, shape N. The mean over pairs is `r{k}`."""
    group_N = _groups(captions)
    found_2N = [_places(*sides, group_N, group_N) < k
                for sides in ((image_vectors, text_vectors), (text_vectors, image_vectors))]  # fmt: skip
    shares_N: NDArray[np.float64] = np.mean(found_2N, axis=0, dtype=np.float64)
    return shares_N


def _groups(captions: Sequence[str]) -> Ints:
    """The first row with the same caption, shape N."""
    first: dict[str, int] = {}
    return np.array([first.setdefault(caption, row) for row, caption in enumerate(captions)])


def caption_retrieval(
    image_vectors: Units, text_vectors: Units, image_of_text: Ints, ks: Sequence[int] = (1, 5, 10), *,
    ties_help: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Recall at k where an image has several captions (Flickr30k, COCO), as clip_benchmark's zeroshot_retrieval.

    An image is answered if any of its captions is among the k best; a caption, if its image is. Equal captions of two
    images stay two candidates, of which one is wrong.

    Args:
        image_vectors: shape NE. text_vectors: shape ME.
        image_of_text: row of each caption's image, int64, shape M.

    Returns:
        As `retrieval`: `image_to_text_r5` is clip_benchmark's text_retrieval_recall@5, `text_to_image_r5` its
        image_retrieval_recall@5, and `r1` the mean_recall@1 of DataComp's retr_eval.py.
    """
    return _recalls(image_vectors, text_vectors, np.arange(len(image_vectors)), image_of_text, ks, ties_help=ties_help)


def _recalls(image_vectors: Units, text_vectors: Units, image_group: Ints, text_group: Ints, ks: Sequence[int], *,
             ties_help: bool = False) -> dict[str, float]:  # fmt: skip
    places = {
        "image_to_text": _places(image_vectors, text_vectors, image_group, text_group, ties_help=ties_help),
        "text_to_image": _places(text_vectors, image_vectors, text_group, image_group, ties_help=ties_help),
    }
    found = {f"{way}_r{k}": float((place < k).mean()) for way, place in places.items() for k in ks}
    means = {f"r{k}": (found[f"image_to_text_r{k}"] + found[f"text_to_image_r{k}"]) / 2 for k in ks}
    return found | means


@dataclass(frozen=True)
class Answers:
    """What a zero-shot classifier said of N images."""

    labels_N: Ints
    """The right class."""
    places_N: Ints
    """Wrong classes that score as high as the right one or higher."""
    predicted_N: Ints
    """The class that was said: a wrong one where it ties with the right one."""
    num_classes: int

    @classmethod
    def of(cls, image_vectors: Units, labels: Ints, class_vectors: Units, *, ties_help: bool = False) -> "Answers":
        """An image belongs to the class whose vector is nearest.

        Args:
            image_vectors: unit vectors, shape NE. labels: the right row of class_vectors, shape N.
            class_vectors: unit vectors, shape CE.

        Raises:
            ValueError: a label beyond the classes.
        """
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(class_vectors):
            raise ValueError(f"wanted labels from 0 to {len(class_vectors) - 1}; found {labels.min()}, {labels.max()}")
        places_N = _places(image_vectors, class_vectors, labels, np.arange(len(class_vectors)), ties_help=ties_help)
        best_wrong = []
        for start in range(0, len(labels), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            similarity_BC = np.nan_to_num(image_vectors[block] @ class_vectors.T, nan=-np.inf)
            similarity_BC[np.arange(len(similarity_BC)), labels[block]] = -np.inf
            best_wrong.append(similarity_BC.argmax(axis=1))
        wrong_N = np.concatenate([np.empty(0, np.int64), *best_wrong])
        return cls(labels, places_N, np.where(places_N == 0, labels, wrong_N), len(class_vectors))

    def top(self, k: int) -> Flags:
        """Whether the right class is among the k best, shape N."""
        return self.places_N < k

    def metrics(self) -> dict[str, float]:
        """`top1`; `top5` from TOP5_CLASSES classes on; `mean_per_class`: the mean over the classes that occur of each
        one's top1 (scikit-learn's balanced accuracy). In [0, 1]."""
        found = {"top1": float(self.top(1).mean())}
        if self.num_classes >= TOP5_CLASSES:
            found["top5"] = float(self.top(5).mean())
        return found | {"mean_per_class": float(np.mean(list(_by_group(self.top(1), self.labels_N).values())))}

    def macro_f1(self) -> float:
        """The mean over the classes that occur of F1 = 2 TP / (2 TP + FP + FN): WILDS' F1-macro for iWildCam."""
        occurring, scores = np.unique(self.labels_N), []
        for label in occurring:
            is_label, is_said = self.labels_N == label, self.predicted_N == label
            scores.append(2 * float((is_label & is_said).sum()) / float(is_label.sum() + is_said.sum()))
        return float(np.mean(scores))

    def worst_group(self, groups_N: Ints, k: int = 1) -> float:
        """The lowest top k of a group that occurs (WILDS' worst-group accuracy)."""
        return min(_by_group(self.top(k), groups_N).values())


def classification(image_vectors: Units, labels: Ints, class_vectors: Units) -> dict[str, float]:
    """Zero-shot classification, see `Answers.of` and `Answers.metrics`."""
    return Answers.of(image_vectors, labels, class_vectors).metrics()


def jaccard(similarity_N: NDArray[np.floating[Any]], is_right_N: Flags) -> float:
    """WinoGAViL's score of one cue (Bitton et al. 2022, arXiv 2207.12576, section 4): of the images, as many are chosen
    as are right; intersection over union of the two. A wrong image goes before a right one that scores the same."""
    order = np.lexsort((is_right_N, -np.nan_to_num(similarity_N, nan=-np.inf)))
    chosen = order[: is_right_N.sum()]
    common = int(is_right_N[chosen].sum())
    return common / (2 * len(chosen) - common)


def jaccard_means(scores: Iterable[float], num_candidates: Iterable[int]) -> dict[str, float]:
    """`jaccard` over all cues, `jaccard_5_6` and `jaccard_10_12` over those with so many images, where some have."""
    scores_N, num_N = np.array(list(scores)), np.array(list(num_candidates))
    found = {"jaccard": scores_N, "jaccard_5_6": scores_N[num_N <= 6], "jaccard_10_12": scores_N[num_N >= 10]}
    return {name: float(values.mean()) for name, values in found.items() if len(values)}


def _by_group(is_right_N: Flags, groups_N: Ints) -> dict[int, float]:
    return {int(group): float(is_right_N[groups_N == group].mean()) for group in np.unique(groups_N)}


def _places(
    queries: Units, candidates: Units, query_group: Ints, candidate_group: Ints, *, ties_help: bool = False
) -> Ints:
    """For each query, how many wrong candidates score as high as its best right one or higher (higher only, where
    ties help). int64, shape N."""
    places = [np.empty(0, np.int64)]
    for start in range(0, len(queries), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        similarity_BN = np.nan_to_num(queries[block] @ candidates.T, nan=-np.inf)
        is_right_BN = query_group[block, None] == candidate_group[None, :]
        best_B = np.where(is_right_BN, similarity_BN, -np.inf).max(axis=1, keepdims=True)
        is_before_BN = similarity_BN > best_B if ties_help else similarity_BN >= best_B
        places.append((is_before_BN & ~is_right_BN).sum(axis=1))
    return np.concatenate(places)
