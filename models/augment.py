"""Random crops, mirrors and greys whose randomness is a function of (seed, position). Touches nothing.

The crop is open_clip's training transform (`open_clip.transform.AugmentationCfg`: torchvision's RandomResizedCrop over
0.9 to 1 of the area); torchvision's own draws from a global generator, which threads would share and a resumed run
would find in another state. So the draws are ours and the pixels are torchvision's.

Dimensions: C channels, H height, W width, S side of the tower's input.
"""

import math

import numpy as np
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from models.pixels import Pixels
from models.recipe import Augmentation
from models.records import Preprocessing

_STREAM = 1
"""Keeps these draws apart from those of the order, which are [seed, epoch]."""
_TRIES = 10


def augment(image_CHW: Tensor, config: Augmentation, preprocessing: Preprocessing, seed: int, position: int) -> Pixels:
    """The image at the tower's size: uint8, shape CSS, contiguous. Equal arguments, equal bytes."""
    random = np.random.default_rng([seed, position, _STREAM])
    top, left, height, width = crop_box(image_CHW.shape[1], image_CHW.shape[2], config, random)
    is_mirrored, is_grey = random.random(2) < (config.mirror_probability, config.grey_probability)
    sides = [preprocessing.size_px, preprocessing.size_px]
    resampling = InterpolationMode(preprocessing.interpolation)
    out_CSS = functional.resized_crop(image_CHW, top, left, height, width, sides, resampling, antialias=True)
    if is_mirrored:
        out_CSS = functional.horizontal_flip(out_CSS)
    if is_grey:
        out_CSS = functional.rgb_to_grayscale(out_CSS, num_output_channels=3)
    return np.ascontiguousarray(out_CSS.numpy())


def crop_box(height: int, width: int, config: Augmentation, random: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop: an area and a ratio are drawn until they fit, at most ten times.

    As torchvision's RandomResizedCrop: the area uniform, the ratio uniform in its logarithm; after ten the largest crop
    in the middle whose ratio is allowed.
    """
    least, most = config.crop_ratio
    for _ in range(_TRIES):
        area = height * width * random.uniform(*config.crop_area)
        ratio = math.exp(random.uniform(math.log(least), math.log(most)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(random.integers(height - h + 1)), int(random.integers(width - w + 1)), h, w
    ratio = min(max(width / height, least), most)
    w, h = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
    return (height - h) // 2, (width - w) // 2, h, w
