"""How good a filter or an induced model is by itself: on stored vectors, and on evaluation sets with pixels.

A set with pixels is a folder in clip_benchmark's layout (`models.eval_sets`); DataComp's 38 are listed in
`models.tasks`. Definitions are in `models.metrics`.

Dimensions: N pairs or images, M captions, C classes, E embedding, T text vector, F fields of metadata.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.data import Vectors
from models.eval_sets import EvalFolder, EvalSetError, Sample
from models.filters import Filter
from models.metrics import Answers, caption_retrieval, jaccard, jaccard_means, retrieval, retrieval_of_pairs
from models.prompts import Units, class_vectors

if TYPE_CHECKING:
    from models.embedder import Embedder

IMAGES_AT_ONCE = 256
"""Files held in memory while they are encoded."""
EncodeTexts = Callable[[Sequence[str]], NDArray[np.floating[Any]]]


def evaluate(
    filter: Filter,
    vectors: Vectors,
    *,
    labels: Mapping[str, str] | None = None,
    encode_texts: EncodeTexts | None = None,
    templates: Sequence[str] = ("{}",),
) -> dict[str, float]:
    """All metrics of a filter, or of an induced model's heads, on one evaluation set of stored vectors.

    Args:
        labels: uid -> class name, for classification over the pairs that it names; needs encode_texts.
        encode_texts: texts -> text vectors, shape NT (`Encoder.encode_texts`).

    Returns:
        What `retrieval` gives; with labels also what `classification` gives.
    """
    images_NE = filter.project_images(vectors.image_NI)
    metrics = retrieval(images_NE, filter.project_texts(vectors.text_NT), vectors.captions)
    if labels is None:
        return metrics
    return metrics | _answers(filter, vectors, images_NE, labels, encode_texts, templates).metrics()


def evaluate_items(
    filter: Filter, vectors: Vectors, *, labels: Mapping[str, str] | None = None,
    encode_texts: EncodeTexts | None = None, templates: Sequence[str] = ("{}",),
) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    """As `evaluate`, item by item, for intervals over items: what comes out has the metric as its mean.

    Returns:
        `r5`: see `retrieval_of_pairs`; with labels also `mean_per_class`: whether the image is named rightly, times
        images / (classes x images of its class), over the images with a label.
    """
    images_NE = filter.project_images(vectors.image_NI)
    found = {"r5": retrieval_of_pairs(images_NE, filter.project_texts(vectors.text_NT), vectors.captions)}
    if labels is None:
        return found
    answers = _answers(filter, vectors, images_NE, labels, encode_texts, templates)
    _, class_N, counts_C = np.unique(answers.labels_N, return_inverse=True, return_counts=True)
    weights_N = len(class_N) / (len(counts_C) * counts_C[class_N])
    return found | {"mean_per_class": answers.top(1) * weights_N}


def _answers(filter: Filter, vectors: Vectors, images_NE: NDArray[np.floating[Any]], labels: Mapping[str, str],
             encode_texts: EncodeTexts | None, templates: Sequence[str]) -> Answers:  # fmt: skip
    """Zero-shot classification of the pairs that have a label."""
    if encode_texts is None:
        raise ValueError("wanted encode_texts, to encode the names of the classes; found None")
    classes = sorted(set(labels.values()))
    rows = [row for row, uid in enumerate(vectors.uids) if uid in labels]
    if not rows:
        raise ValueError(f"wanted pairs with a label; found none of {len(labels)} labelled uids among the vectors")
    labels_N = np.array([classes.index(labels[vectors.uids[row]]) for row in rows])
    classes_CE = class_vectors(lambda texts: filter.project_texts(encode_texts(texts)), classes, templates)
    return Answers.of(images_NE[rows], labels_N, classes_CE)


@dataclass(frozen=True)
class SetResult:
    """What a model does on one set with pixels."""

    metrics: Mapping[str, float]
    """In [0, 1]."""
    num_samples: int
    """Images; for an association, cues."""
    num_broken: int
    """Images that do not decode: each is a miss."""


def evaluate_folder(model: "Embedder", folder: EvalFolder) -> SetResult:
    """All metrics of a model on one set, encoding every image once.

    Returns:
        classification: `top1`, `top5`, `mean_per_class`, `macro_f1`, and where samples hold `.npy` metadata
        `worst_group_top1` and `_top5` over its first field (income, region). retrieval: what `caption_retrieval`
        gives. association: what `jaccard_means` gives.

    Raises:
        EvalSetError: no samples, or samples that lack what their kind needs.
    """
    broken_before = model.num_broken
    run = {"classification": _classify, "retrieval": _retrieve, "association": _associate}[folder.kind]
    metrics, num_samples = run(model, folder)
    return SetResult(metrics, num_samples, model.num_broken - broken_before)


def _classify(model: "Embedder", folder: EvalFolder) -> tuple[dict[str, float], int]:
    images, labels, fields = list[Units](), list[int](), list[NDArray[np.int64]]()
    for samples in _batched(folder):
        images.append(model.embed_images([sample.image() for sample in samples]))
        labels += [sample.label() for sample in samples]
        fields += [found for sample in samples if (found := sample.metadata()) is not None]
    if labels and max(labels) >= len(folder.classes):
        raise EvalSetError(f"wanted labels below {len(folder.classes)}, the classes of {folder.folder}; "
                           f"found {max(labels)}")  # fmt: skip
    classes_CE = model.embed_classes(folder.classes, folder.templates)
    answers = Answers.of(np.concatenate(images), np.array(labels), classes_CE)
    metrics = answers.metrics() | {"macro_f1": answers.macro_f1()}
    if fields:
        if len(fields) < len(labels):
            raise EvalSetError(f"wanted .npy metadata of all or none of {len(labels)} samples; found {len(fields)}")
        groups_N = np.stack(fields)[:, 0]
        metrics |= {f"worst_group_top{k}": answers.worst_group(groups_N, k) for k in (1, 5)}
    return metrics, len(labels)


def _retrieve(model: "Embedder", folder: EvalFolder) -> tuple[dict[str, float], int]:
    images, captions, image_of_text = list[Units](), list[str](), list[int]()
    for samples in _batched(folder):
        start = sum(len(batch) for batch in images)
        images.append(model.embed_images([sample.image() for sample in samples]))
        for row, sample in enumerate(samples, start=start):
            lines = sample.text("txt").splitlines()
            captions += lines
            image_of_text += [row] * len(lines)
    if not captions:
        raise EvalSetError(f"wanted captions in {folder.folder}; found none")
    images_NE = np.concatenate(images)
    return caption_retrieval(images_NE, model.embed_texts(captions), np.array(image_of_text)), len(images_NE)


def _associate(model: "Embedder", folder: EvalFolder) -> tuple[dict[str, float], int]:
    """WinoGAViL, with the prompt of DataComp's wino_eval.py."""
    scores, sizes = [], []
    for sample in (sample for samples in _batched(folder) for sample in samples):
        try:
            asked = json.loads(sample.text("json"))
            cue, candidates, right = str(asked["cue"]).lower(), asked["candidates"], set(asked["associations"])
        except (ValueError, KeyError, TypeError):
            raise EvalSetError(f"wanted cue, candidates and associations in {sample.where}.json") from None
        images_NE = model.embed_images([sample.image(str(number)) for number in range(len(candidates))])
        text_1E = model.embed_texts([f"{'An' if cue[:1] in set('aeiou') else 'A'} {cue}"])
        scores.append(jaccard(images_NE @ text_1E[0], np.array([name in right for name in candidates])))
        sizes.append(len(candidates))
    return jaccard_means(scores, sizes), len(scores)


def _batched(folder: EvalFolder) -> Iterator[list[Sample]]:
    samples = folder.samples()
    if not (batch := list(islice(samples, IMAGES_AT_ONCE))):
        raise EvalSetError(f"wanted samples in {folder.folder}; found none")
    while batch:
        yield batch
        batch = list(islice(samples, IMAGES_AT_ONCE))
