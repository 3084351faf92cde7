"""The model that learns from stored vectors: a linear head on each side of frozen towers, trained as a CLIP is.

Towers are frozen as in LiT (arXiv 2111.07991), so that a run takes seconds on a core. Image vectors are standardised
while training, and the standardisation is folded into the head afterwards: what comes out is one linear map a side.

Dimensions: N pairs, B rows of a batch, I image vector, T text vector, E embedding.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.data import Vectors
from models.filters import Heads
from models.order import Draw

MIN_STD = 1e-3
"""A dimension that is constant in the statistics must not blow up on other rows."""


@dataclass(frozen=True)
class ImageStats:
    """Mean and standard deviation of every image dimension. float64, shape I."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @classmethod
    def of(cls, vectors: Vectors, *, rows_at_once: int = 8192) -> Self:
        """Over all rows, in one pass."""
        total, squares = np.zeros(vectors.image_dim), np.zeros(vectors.image_dim)
        for start in range(0, len(vectors), rows_at_once):
            rows = np.arange(start, min(start + rows_at_once, len(vectors)))
            images_BI = vectors.images(rows).astype(np.float64)
            total += images_BI.sum(axis=0)
            squares += np.square(images_BI).sum(axis=0)
        mean = total / len(vectors)
        return cls(mean, np.sqrt(np.maximum(squares / len(vectors) - mean**2, 0)))


class HeadsModule(nn.Module):
    """Standardisation and a linear map for images, a linear map for texts, and the temperature."""

    def __init__(
        self,
        image_dim: int,
        text_dim: int,
        *,
        embed_dim: int,
        init_log_scale: float,
        dropout: float = 0.0,
        stats: ImageStats | None = None,
    ) -> None:
        super().__init__()
        mean = np.zeros(image_dim) if stats is None else stats.mean
        std = np.ones(image_dim) if stats is None else np.maximum(stats.std, MIN_STD)
        self.dropout = dropout
        self.visual = nn.Linear(image_dim, embed_dim, bias=False)
        self.text = nn.Linear(text_dim, embed_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(init_log_scale))
        self.mean_I: Tensor
        self.std_I: Tensor
        self.register_buffer("mean_I", torch.from_numpy(mean))
        self.register_buffer("std_I", torch.from_numpy(std))
        self.offset_E: Tensor
        self.register_buffer("offset_E", torch.zeros(embed_dim, dtype=torch.float64))

    @classmethod
    def going_on(cls, heads: Heads, *, dropout: float = 0.0, stats: ImageStats | None = None) -> Self:
        """Trained heads, to be trained further: the same map as `heads` at first, whatever they were standardised by.

        What the bias holds beyond these statistics stays as it is and is not trained.
        """
        image_dim, text_dim = heads.visual_weight.shape[1], heads.text_weight.shape[1]
        module = cls(image_dim, text_dim, embed_dim=len(heads.visual_bias), init_log_scale=heads.log_scale,
                     dropout=dropout, stats=stats)  # fmt: skip
        weight_EI = torch.from_numpy(heads.visual_weight).double()
        with torch.no_grad():
            module.visual.weight.copy_(weight_EI * module.std_I)
            module.text.weight.copy_(torch.from_numpy(heads.text_weight))
        module.offset_E.copy_(torch.from_numpy(heads.visual_bias).double() + weight_EI @ module.mean_I)
        return module

    def forward(self, images_BI: Tensor, texts_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit embeddings of shape BE for both sides, and the inverse temperature: what open_clip's CLIP gives."""
        standard_BI = (images_BI - self.mean_I.float()) / self.std_I.float()
        image_BE = self.visual(functional.dropout(standard_BI, self.dropout, self.training)) + self.offset_E.float()
        text_BE = self.text(functional.dropout(texts_BT, self.dropout, self.training))
        return functional.normalize(image_BE, dim=-1), functional.normalize(text_BE, dim=-1), self.logit_scale.exp()

    def folded(self) -> Heads:
        """W (x - mean) / std + o as W' x + b: W' = W / std, b = o - W' mean. In float64, then rounded once."""
        weight_EI = self.visual.weight.detach().double() / self.std_I
        return Heads(
            visual_weight=weight_EI.float().cpu().numpy(),
            visual_bias=(self.offset_E - weight_EI @ self.mean_I).float().cpu().numpy(),
            text_weight=self.text.weight.detach().cpu().numpy(),
            log_scale=self.logit_scale.item(),
        )


@dataclass(frozen=True)
class VectorSource:
    """Stored vectors as the loop reads them."""

    vectors: Vectors

    def __len__(self) -> int:
        return len(self.vectors)

    def batches(self, draws: Iterable[Draw], device: str) -> Iterator[tuple[Tensor, Tensor]]:
        """(images_BI, texts_BT) in float32 for each draw."""
        for rows_B, _ in draws:
            images_BI = torch.from_numpy(self.vectors.images(rows_B)).to(device).float()
            texts_BT = torch.from_numpy(self.vectors.texts(rows_B)).to(device).float()
            yield images_BI, texts_BT
