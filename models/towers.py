"""The inference form of an open_clip model's two towers: the same weights, less work, fewer copies.

What changes no result beyond rounding: the pixels' mean and std, affine layer norms, layer scales and QuickGELU's 1.702
are folded into the matrices beside them; patches are cut from uint8 and multiplied once; captions are read up to their
end-of-text token (attention is causal: nothing behind it reaches it); the last block computes the pooled token alone.
A tower that is not exactly of the known kind keeps open_clip's own forward pass.

With precision bf16, matrices and attention are bfloat16; the residual stream, layer norms and projections float32.

Dimensions: B batch, C channels, H height, W width, L tokens, D features of a token, O outputs, I image vector, T text
vector.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn
from torch.nn import functional

from models.fallback import OwnForward, image_tower_differs, text_tower_differs
from models.records import EncoderRecord, Precision, Preprocessing

GREY = 128
"""Taken from a pixel before the patch matrix: exact in bfloat16, and rounding errors of weights meet small numbers."""

TOWERS = {"visual": "image", "text": "text"}

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Towers:
    """Two functions, to be called under `torch.inference_mode`."""

    encode_image: Function
    """images_BCHW, uint8, on the device -> vectors_BI, float32, not normalised."""
    encode_text: Function
    """tokens_BL, int64, on the device -> vectors_BT, float32, not normalised. Re-expressed, it takes any L that holds
    the end-of-text token of every row; else what open_clip's own takes."""
    notes: tuple[str, ...]
    """A line for each tower that runs open_clip's own forward pass, saying why."""


@dataclass(frozen=True)
class _Place:
    device: torch.device
    dtype: torch.dtype
    packs: bool
    """Whether weights may be packed for the CPU; torch.compile wants them plain."""

    def put(self, tensor: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return tensor.detach().to(self.device, dtype).contiguous()


def inference_towers(model: Any, record: EncoderRecord, *, device: torch.device | str, compile: bool = False) -> Towers:
    """Both towers on a device, in the record's precision. The model, in eval mode, is read and not altered.

    A row's bits do not depend on the other rows of its batch, where the device's matmul keeps to that at one shape.

    Args:
        compile: `torch.compile` both: half a minute on a CPU, and no gain there.
    """
    place = _Place(torch.device(device), torch.bfloat16 if record.precision == "bf16" else torch.float32, not compile)
    whys = {"image": image_tower_differs(model.visual, record.preprocessing), "text": text_tower_differs(model)}
    config = record.preprocessing
    # The copy that keeps open_clip's forward pass goes without a tower that is re-expressed.
    unused = [tower for name, tower in model.named_children() if name in TOWERS and not whys[TOWERS[name]]]
    own = OwnForward(model, unused, config, place.device, place.dtype) if any(whys.values()) else None
    with torch.no_grad():
        image = own.encode_image if own and whys["image"] else _Image(model.visual, config, place).__call__
        text = own.encode_text if own and whys["text"] else _Text(model, place).__call__
    if compile:
        image, text = torch.compile(image, dynamic=False), torch.compile(text, dynamic=True)
    notes = (f"{name} tower: open_clip's own forward pass, because {why}" for name, why in whys.items() if why)
    return Towers(image, text, tuple(notes))


def good_precision(device: torch.device | str) -> Precision:
    """bf16 where the device multiplies it in hardware (CUDA, AVX-512 BF16, AMX), else fp32. Reads /proc/cpuinfo."""
    kind, cpu = torch.device(device).type, Path("/proc/cpuinfo")
    if kind == "cuda":
        has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        flags = set(cpu.read_text().split()) if kind == "cpu" and cpu.is_file() else set()
        has_bf16 = bool(flags & {"avx512_bf16", "amx_bf16"})
    return "bf16" if has_bf16 else "fp32"


class _Linear:
    """act(x @ weight.T + bias). bfloat16 on a CPU: the weight is packed once, not at every call, and act is fused."""

    def __init__(self, weight_OD: Tensor, bias_O: Tensor, place: _Place, act: str = "none") -> None:
        self._weight, self._bias_O = place.put(weight_OD, place.dtype), place.put(bias_O, place.dtype)
        self._act = act
        self._is_packed = place.packs and self._weight.is_cpu and place.dtype == torch.bfloat16 and _can_pack()
        if self._is_packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight)

    def __call__(self, x: Tensor) -> Tensor:
        if self._is_packed:
            return _packed_linear(x, self._weight, self._bias_O, self._act)
        y = functional.linear(x, self._weight, self._bias_O)
        return functional.gelu(y) if self._act == "gelu" else functional.silu(y) if self._act == "swish" else y


def _packed_linear(x: Tensor, packed: Tensor, bias_O: Tensor, act: str) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias_O, act, [], "none" if act == "gelu" else "")
    return y


@lru_cache
def _can_pack() -> bool:
    """Whether PyTorch has the operators its own compiler packs weights with: they are not public, hence a trial."""
    x, weight, bias = (torch.zeros(shape, dtype=torch.bfloat16) for shape in ((2, 32), (32, 32), (32,)))
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        return all(_packed_linear(x, packed, bias, act).shape == (2, 32) for act in ("none", "gelu", "swish"))
    except (AttributeError, RuntimeError):
        return False


class _Block:
    """A pre-norm attention block; x_BLD, float32, is altered in place."""

    def __init__(self, block: Any, place: _Place, *, is_causal: bool, pools: bool) -> None:
        self._num_heads, self._is_causal, self._dtype = block.attn.num_heads, is_causal, place.dtype
        self._eps_1, self._eps_2 = block.ln_1.eps, block.ln_2.eps
        weight, bias = _behind_norm(block.ln_1, block.attn.in_proj_weight, block.attn.in_proj_bias)
        split = len(weight) // 3 if pools else 0
        self._q = _Linear(weight[:split], bias[:split], place) if pools else None
        self._qkv = _Linear(weight[split:], bias[split:], place)  # without q where that is of the pooled token alone
        self._out = _Linear(*_before_scale(block.ls_1, block.attn.out_proj), place)
        is_quick = type(block.mlp.gelu) is QuickGELU  # y * sigmoid(1.702 y) = silu(1.702 y) / 1.702
        weight, bias = _behind_norm(block.ln_2, block.mlp.c_fc.weight, block.mlp.c_fc.bias)
        factor = 1.702 if is_quick else 1.0
        self._fc = _Linear(weight * factor, bias * factor, place, act="swish" if is_quick else "gelu")
        weight, bias = _before_scale(block.ls_2, block.mlp.c_proj)
        self._proj = _Linear(weight / factor, bias, place)

    def __call__(self, x_BLD: Tensor) -> Tensor:
        """Every token."""
        q_BLD, k_BLD, v_BLD = self._qkv(self._norm(x_BLD, self._eps_1)).chunk(3, dim=-1)
        return self._add(x_BLD, q_BLD, k_BLD, v_BLD, self._is_causal, None)

    def pooled(self, x_BLD: Tensor, at_B: Tensor) -> Tensor:
        """The token of each row at its place: x_BD. In a causal tower it attends to none behind it."""
        rows_B = torch.arange(len(x_BLD), device=x_BLD.device)
        mask_B11L = None
        if self._is_causal:
            mask_B11L = (torch.arange(x_BLD.shape[1], device=x_BLD.device) <= at_B[:, None])[:, None, None]
        normed_BLD = self._norm(x_BLD, self._eps_1)
        k_BLD, v_BLD = self._qkv(normed_BLD).chunk(2, dim=-1)
        q_B1D = self._q(normed_BLD[rows_B, at_B, None]) if self._q else k_BLD
        return self._add(x_BLD[rows_B, at_B, None], q_B1D, k_BLD, v_BLD, False, mask_B11L)[:, 0]

    def _norm(self, x_BLD: Tensor, eps: float) -> Tensor:
        return functional.layer_norm(x_BLD, x_BLD.shape[-1:], eps=eps).to(self._dtype)

    def _add(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, is_causal: bool, mask: Tensor | None) -> Tensor:
        q, k, v = (part.view(*part.shape[:2], self._num_heads, -1).transpose(1, 2) for part in (q, k, v))
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)
        x = x.add_(self._out(attended.transpose(1, 2).flatten(2)))
        return x.add_(self._proj(self._fc(self._norm(x, self._eps_2))))


def _behind_norm(norm: Any, weight_OD: Tensor, bias_O: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix that takes the norm's scale and shift upon itself."""
    return weight_OD * norm.weight, bias_O + weight_OD @ norm.bias


def _before_scale(scale: Any, linear: Any) -> tuple[Tensor, Tensor]:
    if isinstance(scale, nn.Identity):
        return linear.weight, linear.bias
    return linear.weight * scale.gamma[:, None], linear.bias * scale.gamma


class _Image:
    def __init__(self, visual: Any, config: Preprocessing, place: _Place) -> None:
        self._dtype, self._patch, self._is_avg = place.dtype, visual.conv1.kernel_size, visual.pool_type == "avg"
        mean_C11, std_C11 = (torch.tensor(x, dtype=torch.float64).view(3, 1, 1) for x in (config.mean, config.std))
        weight_OCHW = visual.conv1.weight.detach().cpu().double() / (255 * std_C11)
        bias_O = (weight_OCHW * (GREY - 255 * mean_C11)).sum(dim=(1, 2, 3))
        self._patches = _Linear(weight_OCHW.flatten(1), bias_O, place)
        positions_LD = place.put(visual.positional_embedding)
        self._class_D, self._positions_LD = place.put(visual.class_embedding) + positions_LD[0], positions_LD[1:]
        self._ln_pre, self._ln_post = (copy.deepcopy(norm).to(place.device) for norm in (visual.ln_pre, visual.ln_post))
        self._is_norm_last = visual.final_ln_after_pool
        self._blocks = _blocks(visual.transformer, place, is_causal=False, pools=not self._is_avg)
        self._proj_DI = place.put(visual.proj)

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        (batch, _, height, width), (patch_height, patch_width) = images_BCHW.shape, self._patch
        patches = images_BCHW.view(batch, 3, height // patch_height, patch_height, width // patch_width, patch_width)
        patches_BLO = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2).to(self._dtype).sub_(GREY)
        x_BLD = self._patches(patches_BLO).float() + self._positions_LD
        x_BLD = self._ln_pre(torch.cat([self._class_D.expand(len(x_BLD), 1, -1), x_BLD], dim=1))
        for block in self._blocks[:-1]:
            x_BLD = block(x_BLD)
        if not self._is_avg:
            first_B = torch.zeros(len(x_BLD), dtype=torch.int64, device=x_BLD.device)
            x_BD = self._ln_post(self._blocks[-1].pooled(x_BLD, first_B))
        else:
            x_BLD = self._blocks[-1](x_BLD)[:, 1:]
            x_BD = self._ln_post(x_BLD.mean(dim=1)) if self._is_norm_last else self._ln_post(x_BLD).mean(dim=1)
        vectors_BI: Tensor = x_BD @ self._proj_DI
        return vectors_BI


class _Text:
    def __init__(self, model: Any, place: _Place) -> None:
        tower = getattr(model, "text", model)
        self._embedding_VD = place.put(tower.token_embedding.weight, place.dtype)
        self._positions_LD = place.put(tower.positional_embedding)
        self._blocks = _blocks(tower.transformer, place, is_causal=True, pools=True)
        self._ln_final = copy.deepcopy(tower.ln_final).to(place.device)
        projection = tower.text_projection
        weight = projection.weight.T if isinstance(projection, nn.Linear) else projection
        self._proj_DT = None if weight is None else place.put(weight)
        bias = getattr(projection, "bias", None)
        self._bias_T = None if bias is None else place.put(bias)

    def __call__(self, tokens_BL: Tensor) -> Tensor:
        x_BLD = functional.embedding(tokens_BL, self._embedding_VD).float() + self._positions_LD[: tokens_BL.shape[1]]
        for block in self._blocks[:-1]:
            x_BLD = block(x_BLD)
        vectors_BT: Tensor = self._ln_final(self._blocks[-1].pooled(x_BLD, tokens_BL.argmax(dim=1)))
        vectors_BT = vectors_BT if self._proj_DT is None else vectors_BT @ self._proj_DT
        return vectors_BT if self._bias_T is None else vectors_BT + self._bias_T


def _blocks(transformer: Any, place: _Place, *, is_causal: bool, pools: bool) -> list[_Block]:
    *blocks, last = transformer.resblocks
    every = [_Block(block, place, is_causal=is_causal, pools=False) for block in blocks]
    return [*every, _Block(last, place, is_causal=is_causal, pools=pools)]
