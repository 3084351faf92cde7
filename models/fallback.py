"""A tower that `models.towers` does not re-express: why, and open_clip's own forward pass for it.

Dimensions: B batch, C channels, H height, W width, L tokens, I image vector, T text vector.
"""

import copy
from collections.abc import Sequence
from typing import Any

import open_clip
import torch
from open_clip import transformer as known
from open_clip.timm_model import TimmModel
from timm.layers import BatchNormAct2d
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.records import Preprocessing


def image_tower_differs(visual: Any, config: Preprocessing) -> str | None:
    """Why the vision tower is not re-expressed; None: it is."""
    if type(visual) is not known.VisionTransformer:
        return f"it is a {type(visual).__name__}"
    conv, sides = visual.conv1, (config.size_px, config.size_px)
    differences = {
        "it is in training mode": visual.training,
        "it has an attention pool": visual.attn_pool is not None,
        f"it pools by {visual.pool_type!r}": visual.pool_type not in ("tok", "avg"),
        "it gives tokens beside the vector": visual.output_tokens,
        "its patches do not tile the image": visual.image_size != sides
        or any(side % patch for side, patch in zip(sides, visual.patch_size, strict=True)),
        "its patches are not a plain convolution": conv.kernel_size != conv.stride or conv.bias is not None,
    }
    found = next((why for why, differs in differences.items() if differs), None)
    return found or _transformer_differs(visual.transformer, [visual.ln_post])


def text_tower_differs(model: Any) -> str | None:
    """Why the text tower is not re-expressed, and captions cannot be trimmed; None: it is, and they can."""
    tower, is_clip = getattr(model, "text", model), type(model) is open_clip.CLIP
    if not is_clip and (type(model), type(tower)) != (open_clip.CustomTextCLIP, known.TextTransformer):
        return f"it is a {type(tower).__name__}"
    pool, eos_id = (tower.text_pool_type, tower.text_eos_id) if is_clip else (tower.pool_type, tower.eos_id)
    length, mask = tower.context_length, tower.attn_mask
    differences = {
        "it is in training mode": tower.training,
        "it has a class token": getattr(tower, "cls_emb", None) is not None
        or len(tower.positional_embedding) != length,
        "its attention is not causal": mask is None
        or not torch.equal(mask, torch.full_like(mask, -torch.inf).triu(1))
        or getattr(tower, "use_pad_mask", False),
        # SimpleTokenizer's end of text is the last of its vocabulary.
        f"it pools by {pool!r}": pool != "argmax" and (pool, eos_id) != ("eos", tower.vocab_size - 1),
        "it gives tokens beside the vector": getattr(tower, "output_tokens", False),
    }
    found = next((why for why, differs in differences.items() if differs), None)
    return found or _transformer_differs(tower.transformer, [tower.ln_final])


def _transformer_differs(transformer: Any, norms: list[Any]) -> str | None:
    if type(transformer) is not known.Transformer:
        return f"it has a {type(transformer).__name__}"
    for block in transformer.resblocks:
        if type(block) is not known.ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
            return f"it has a {type(block).__name__}"
        attn, norms = block.attn, [*norms, block.ln_1, block.ln_2]
        if type(attn) is not nn.MultiheadAttention or attn.in_proj_bias is None or attn.bias_k is not None:
            return "its attention is of another kind"
        if [name for name, _ in block.mlp.named_children()] != ["c_fc", "gelu", "c_proj"] or attn.add_zero_attn:
            return "its block is of another kind"
        act = block.mlp.gelu
        if type(act) not in (nn.GELU, known.QuickGELU) or getattr(act, "approximate", "none") != "none":
            return f"its activation is {act}"
        if {type(block.ls_1), type(block.ls_2)} - {nn.Identity, known.LayerScale}:
            return "its layer scale is of another kind"
    if any(type(norm) not in (known.LayerNorm, known.LayerNormFp32) or norm.bias is None for norm in norms):
        return "its norms are of another kind"
    return None


class OwnForward:
    """open_clip's own forward pass of a copy of the model, behind the normalisation of its transform.

    A timm trunk has its batch norms folded, and its convolutions in channels_last: twice the speed on a CPU.
    """

    def __init__(
        self, model: Any, unused: Sequence[nn.Module], config: Preprocessing, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Copies the model without its `unused` towers."""
        own = copy.deepcopy(model, {id(tower): nn.Identity() for tower in unused})
        if isinstance(own.visual, TimmModel):
            fold_batch_norms(own.visual.trunk)
        self._own, self._dtype = own.to(device, dtype), dtype
        own.visual.to(memory_format=torch.channels_last)
        mean_C11, std_C11 = (torch.tensor(x, device=device).view(3, 1, 1) for x in (config.mean, config.std))
        self._scale_C11, self._shift_C11 = 1 / (255 * std_C11), -mean_C11 / std_C11

    def encode_image(self, images_BCHW: Tensor) -> Tensor:
        """uint8 -> vectors_BI, float32."""
        images_BCHW = images_BCHW.to(memory_format=torch.channels_last).float()
        images_BCHW = torch.addcmul(self._shift_C11, images_BCHW, self._scale_C11).to(self._dtype)
        vectors_BI: Tensor = self._own.encode_image(images_BCHW).float()
        return vectors_BI

    def encode_text(self, tokens_BL: Tensor) -> Tensor:
        """int64 -> vectors_BT, float32."""
        vectors_BT: Tensor = self._own.encode_text(tokens_BL).float()
        return vectors_BT


class _Leaves(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (nn.Conv2d, nn.BatchNorm2d)) or super().is_leaf_module(module, name)


def fold_batch_norms(trunk: nn.Module) -> int:
    """Puts each batch norm that alone reads a convolution into it, in place: how many. Their activations stay.

    A trunk whose forward pass cannot be traced is left as it is: 0.
    """
    try:
        graph, modules = _Leaves().trace(trunk), dict(trunk.named_modules())
    except Exception:  # a tracer meets whatever the trunk's code does with its stand-ins for tensors
        return 0
    calls = [node for node in graph.nodes if node.op == "call_module"]
    targets = [node.target for node in calls]
    num_folded = 0
    for node in calls:
        norm, (source, *_) = modules[str(node.target)], node.args
        conv = modules.get(str(source.target)) if isinstance(source, fx.Node) and source.op == "call_module" else None
        if type(norm) not in (nn.BatchNorm2d, BatchNormAct2d) or not isinstance(conv, nn.Conv2d):
            continue
        if len(source.users) == 1 and targets.count(node.target) == targets.count(source.target) == 1:
            trunk.set_submodule(str(source.target), fuse_conv_bn_eval(conv, norm))
            rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
            trunk.set_submodule(str(node.target), rest)
            num_folded += 1
    return num_folded
