"""Class names in templates: the classes of zero-shot classification, and captions for fine-tuning. numpy only.

Dimensions: N prompts, C classes, K templates, E embedding.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Units = NDArray[np.floating[Any]]
EmbedTexts = Callable[[Sequence[str]], Units]


def prompts(name: str, templates: Sequence[str]) -> list[str]:
    """A class's name in each template, for `{}` or clip_benchmark's `{c}`."""
    return [template.format(name, c=name) for template in templates]


def class_captions(labels: Mapping[str, str], templates: Sequence[str], seed: int = 0) -> dict[str, str]:
    """Captions for fine-tuning on a set with classes, as the DFN recipe does on ImageNet: a template for each image.

    Args:
        labels: uid -> class name.
        seed: another one draws other templates. The template of a pair follows from seed and uid alone.

    Returns:
        uid -> caption, in the order of `labels`.
    """
    found = {}
    for uid, name in labels.items():
        draw = int.from_bytes(hashlib.sha256(f"{seed} {uid}".encode()).digest()[:8], "big")
        found[uid] = templates[draw % len(templates)].format(name, c=name)
    return found


def class_vectors(embed_texts: EmbedTexts, classes: Sequence[str], templates: Sequence[str]) -> Units:
    """Prompt ensembling (Radford et al. 2021, arXiv 2103.00020, section 3.1.4): the mean of a class's unit embeddings.

    Args:
        embed_texts: texts -> unit vectors, shape NE.
        templates: with a `{}` or a `{c}` for the class.

    Returns:
        Unit vectors, shape CE.
    """
    units_NE = embed_texts([prompt for name in classes for prompt in prompts(name, templates)])
    mean_CE = units_NE.reshape(len(classes), len(templates), -1).mean(axis=1)
    units_CE: Units = mean_CE / np.linalg.norm(mean_CE, axis=1, keepdims=True)
    return units_CE
