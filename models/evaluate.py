"""How good a filter or an induced model is by itself: retrieval and zero-shot classification on vectors.

Ties count against the model: a wrong candidate that scores as high as the right one stands before it, so that a model
that gives every pair one score gets nothing. A vector that is not finite is a miss.

Dimensions: N pairs, B rows of a block, C classes, K templates, E embedding, T text vector.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data import Vectors
from models.filters import Filter

BLOCK_ROWS = 1024
"""Rows of the similarity matrix held at once."""

Units = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
EncodeTexts = Callable[[Sequence[str]], NDArray[np.floating[Any]]]


def retrieval(
    image_vectors: Units, text_vectors: Units, captions: Sequence[str], ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Recall at k in both directions: the share of queries with a right candidate among the k best.

    Pairs with the same caption (compared exactly) are right for each other; every pair is a candidate of its own, so m
    equal wrong captions take m places.

    Args:
        image_vectors, text_vectors: unit vectors of the pairs in the same order, shape NE.

    Returns:
        `image_to_text_r5`, `text_to_image_r5` and their mean `r5`, for each k; in [0, 1].
    """
    first: dict[str, int] = {}
    group_N = np.array([first.setdefault(caption, row) for row, caption in enumerate(captions)])
    places = {
        "image_to_text": _places(image_vectors, text_vectors, group_N, group_N),
        "text_to_image": _places(text_vectors, image_vectors, group_N, group_N),
    }
    found = {f"{way}_r{k}": float((place_N < k).mean()) for way, place_N in places.items() for k in ks}
    means = {f"r{k}": (found[f"image_to_text_r{k}"] + found[f"text_to_image_r{k}"]) / 2 for k in ks}
    return found | means


def classification(image_vectors: Units, labels: Ints, class_vectors: Units) -> dict[str, float]:
    """Zero-shot classification: an image belongs to the class whose vector is nearest.

    Args:
        image_vectors: unit vectors, shape NE.
        labels: the right row of class_vectors, shape N.
        class_vectors: unit vectors, shape CE.

    Returns:
        `top1`, and `mean_per_class`: the mean over the classes that occur of each one's top1; in [0, 1].
    """
    is_right_N = _places(image_vectors, class_vectors, labels, np.arange(len(class_vectors))) == 0
    per_class = [is_right_N[labels == label].mean() for label in np.unique(labels)]
    return {"top1": float(is_right_N.mean()), "mean_per_class": float(np.mean(per_class))}


def class_vectors(filter: Filter, classes: Sequence[str], encode_texts: EncodeTexts, templates: Sequence[str]) -> Units:
    """Prompt ensembling (Radford et al. 2021, arXiv 2103.00020, section 3.1.4): the mean of a class's unit embeddings.

    Args:
        encode_texts: texts -> text vectors, shape NT (`Encoder.encode_texts`).
        templates: with a `{}` for the class.

    Returns:
        Unit vectors, shape CE.
    """
    prompts = [template.format(name) for name in classes for template in templates]
    prompts_CKE = filter.project_texts(encode_texts(prompts)).reshape(len(classes), len(templates), -1)
    mean_CE = prompts_CKE.mean(axis=1)
    units_CE: Units = mean_CE / np.linalg.norm(mean_CE, axis=1, keepdims=True)
    return units_CE


def evaluate(
    filter: Filter,
    vectors: Vectors,
    *,
    labels: Mapping[str, str] | None = None,
    encode_texts: EncodeTexts | None = None,
    templates: Sequence[str] = ("{}",),
) -> dict[str, float]:
    """All metrics of a filter, or of an induced model's heads, on one evaluation set.

    Args:
        labels: uid -> class name, for classification over the pairs that it names; needs encode_texts.

    Returns:
        What `retrieval` gives; with labels also what `classification` gives.
    """
    images_NE = filter.project_images(vectors.image_NI)
    metrics = retrieval(images_NE, filter.project_texts(vectors.text_NT), vectors.captions)
    if labels is None:
        return metrics
    if encode_texts is None:
        raise ValueError("wanted encode_texts, to encode the names of the classes; found None")
    classes = sorted(set(labels.values()))
    rows = [row for row, uid in enumerate(vectors.uids) if uid in labels]
    if not rows:
        raise ValueError(f"wanted pairs with a label; found none of {len(labels)} labelled uids among the vectors")
    labels_N = np.array([classes.index(labels[vectors.uids[row]]) for row in rows])
    classes_CE = class_vectors(filter, classes, encode_texts, templates)
    return metrics | classification(images_NE[rows], labels_N, classes_CE)


def _places(queries: Units, candidates: Units, query_group: Ints, candidate_group: Ints) -> Ints:
    """For each query, how many wrong candidates score as high as its best right one or higher. int64, shape N."""
    places = []
    for start in range(0, len(queries), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        similarity_BN = np.nan_to_num(queries[block] @ candidates.T, nan=-np.inf)
        is_right_BN = query_group[block, None] == candidate_group[None, :]
        best_B = np.where(is_right_BN, similarity_BN, -np.inf).max(axis=1, keepdims=True)
        places.append(((similarity_BN >= best_B) & ~is_right_BN).sum(axis=1))
    return np.concatenate(places)
