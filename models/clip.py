"""A CLIP as a folder: `record.json`, `model.safetensors` (both towers), tokeniser files. The model is open_clip's own.

Two kinds: `build_lit` pairs frozen towers that share no space (after LiT, Zhai et al. 2022, arXiv 2111.07991; the
projection on each side is trained by `train.py`); `build_open_clip` takes an architecture of open_clip and its weights.
"""

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from open_clip.model import set_model_preprocess_cfg
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from safetensors.torch import load_file, save_file
from torch import nn

from models.fallback import text_tower_differs
from models.filters import HEADS, Filter, check_encoder
from models.foreign import load_checkpoint, load_in_order, must_fit
from models.records import (
    EncoderRecord,
    Precision,
    Preprocessing,
    Tokenizer,
    WeightsError,
    check_files,
    sha256_file,
    whole_folder,
)

WEIGHTS = "model.safetensors"
MAX_CHARS = 8192  # of a caption are tokenised; 128 word pieces are about 600
HF_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
BERT_UNUSED = {"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"}  # by mean pooling
HF_CONTEXT = 127
"""Tokens. One less than a multiple of the bucket, so that every row has a padding token: without any in the whole batch
transformers drops the attention mask and takes another path, and a row's bits could depend on its neighbours."""
HF_BUCKET = 16
CAUSAL_BUCKET = 4
"""Tokens. Of 384 captions of 24 tokens a core did 87 a second; in buckets of 8: 79, of 16: 72."""
LIT_TRUNK = "tf_efficientnet_lite0"
LIT_SIZE_PX = 160
LIT_ARCHITECTURE: dict[str, Any] = {
    "class": "CustomTextCLIP",
    "embed_dim": 384,
    "quick_gelu": False,
    "vision_cfg": {"timm_model_name": LIT_TRUNK, "timm_pool": "avg", "timm_proj": "none", "image_size": LIT_SIZE_PX},
    # hf_model_name is the encoder's folder: its config.json is the architecture, held by the record's sha256.
    "text_cfg": {"hf_model_name": ".", "hf_model_pretrained": False, "hf_pooler_type": "mean_pooler"}
    | {"hf_proj_type": None, "context_length": HF_CONTEXT},
}


def build_lit(
    image_weights: Path,
    text_folder: Path,
    out: Path,
    *,
    batch_size: int = 16,
    text_batch_size: int = 4,
    precision: Precision = "fp32",
) -> EncoderRecord:
    """EfficientNet-lite0 (1,280-d pooled features) beside MiniLM (384-d, mean of the tokens) in one open_clip model.

    Args:
        image_weights: torch file of the trunk, whose tensors are timm's in the same order under other names.
        text_folder: a Hugging Face BERT: safetensors, config and tokeniser.
        out: folder to write, whole or not at all.
        batch_size: 16 images stay in a core's cache (64: half the speed); a GPU wants more.
        text_batch_size: captions of the full context length a pass (32 of the shortest bucket); a GPU wants more.

    Raises:
        WeightsError: a file is missing, or its tensors do not fit the architecture.
    """
    if missing := [name for name in (*HF_FILES, WEIGHTS) if not (text_folder / name).is_file()]:
        raise WeightsError(wanted=f"{', '.join(missing)} in {text_folder}", found="no such file", fix="fetch it again")
    with whole_folder(out) as folder:
        for name in HF_FILES:
            shutil.copyfile(text_folder / name, folder / name)
        model = _construct(LIT_ARCHITECTURE, folder)
        load_in_order(model.visual.trunk, image_weights, LIT_TRUNK)
        given = load_file(text_folder / WEIGHTS)
        with must_fit("the tensors of config.json"):
            model.text.transformer.load_state_dict({name: given[name] for name in given if name not in BERT_UNUSED})
        cfg = timm.get_pretrained_cfg(LIT_TRUNK)
        return _write(
            model,
            folder,
            name="efficientnet_lite0-minilm",
            architecture=LIT_ARCHITECTURE,
            # Squashed: a crop would cut off what the caption of a banner or a drawing speaks of.
            preprocessing=Preprocessing(
                size_px=LIT_SIZE_PX, resize="squash", interpolation=cfg.interpolation, mean=cfg.mean, std=cfg.std
            ),
            tokenizer=Tokenizer(
                kind="hf",
                context_length=HF_CONTEXT,
                pad_id=model.text.config.pad_token_id,
                max_chars=MAX_CHARS,
                files={name: sha256_file(folder / name) for name in HF_FILES},
            ),
            image_dim=model.visual.trunk.num_features,
            text_dim=model.text.output_dim,
            shares_space=False,
            is_normalised=False,
            batch_size=batch_size,
            text_batch_size=text_batch_size,
            text_bucket_tokens=HF_BUCKET,
            precision=precision,
        )


def build_open_clip(
    name: str,
    checkpoint: Path | None,
    out: Path,
    *,
    quick_gelu: bool | None = None,
    preprocessing: Preprocessing | None = None,
    batch_size: int = 16,
    text_batch_size: int = 4,
    seed: int | None = None,
    precision: Precision = "fp32",
) -> EncoderRecord:
    """An architecture of open_clip's list with weights from a local file.

    Args:
        checkpoint: safetensors or a torch file (read with `weights_only`). None: random weights from `seed`, for tests.
        quick_gelu: the activation, where the weights want another than the name says (DFN's B/16, L/14 and H/14: True).
        preprocessing: None: OpenAI's, at the size of the architecture.
        batch_size: a core is as fast with 8 to 64 images; a GPU wants more, and more captions.
        text_batch_size: captions of the full context length a pass; shorter ones go in larger batches.

    Raises:
        ValueError: a name that open_clip does not know, a text tower from a hub, or no checkpoint and no seed.
        WeightsError: tensors that do not fit.
    """
    config = open_clip.get_model_config(name)
    if config is None:
        raise ValueError(f"wanted a CLIP of open_clip.list_models() with a text tower of its own; found {name!r}")
    if checkpoint is None and seed is None:
        raise ValueError(f"wanted a checkpoint for {name}, or a seed for random weights; found neither")
    return build_from_config(
        config, name, checkpoint, out, quick_gelu=quick_gelu, preprocessing=preprocessing, batch_size=batch_size,
        text_batch_size=text_batch_size, seed=seed, precision=precision,
    )  # fmt: skip


def build_from_config(
    config: dict[str, Any], name: str, checkpoint: Path | None, out: Path, *, quick_gelu: bool | None,
    preprocessing: Preprocessing | None, batch_size: int = 16, text_batch_size: int = 4, seed: int | None = None,
    precision: Precision = "fp32",
) -> EncoderRecord:  # fmt: skip
    """`build_open_clip` with the architecture as open_clip's JSON files have it, under a name of its own."""
    if "hf_model_name" in config["text_cfg"] or "multimodal_cfg" in config:
        raise ValueError(f"wanted a CLIP of open_clip.list_models() with a text tower of its own; found {name!r}")
    config = copy.deepcopy(config)
    custom_text = config.pop("custom_text", False)
    config["quick_gelu"] = config.get("quick_gelu", False) if quick_gelu is None else quick_gelu
    architecture = {"class": "CustomTextCLIP" if custom_text else "CLIP", **config}
    with whole_folder(out) as folder, torch.random.fork_rng():
        torch.manual_seed(seed or 0)
        model = _construct(architecture, folder)
        if checkpoint is not None:
            load_checkpoint(model, checkpoint, name)
        return _write(
            model,
            folder,
            name=name,
            architecture=architecture,
            preprocessing=preprocessing or _openai_preprocessing(config["vision_cfg"]["image_size"]),
            tokenizer=Tokenizer(
                kind="open_clip",
                context_length=model.context_length,
                pad_id=config["text_cfg"].get("pad_id", 0),
                max_chars=MAX_CHARS,
                files={},
            ),
            image_dim=config["embed_dim"],
            text_dim=config["embed_dim"],
            shares_space=True,
            is_normalised=True,
            batch_size=batch_size,
            text_batch_size=text_batch_size,
            text_bucket_tokens=None if text_tower_differs(model) else CAUSAL_BUCKET,
            precision=precision,
        )


def load(folder: Path) -> tuple[Any, EncoderRecord]:
    """The model in eval mode on the CPU, and its record.

    Raises:
        WeightsError: weights or tokeniser missing, cut or altered. Nothing is read before its sha256 has been checked.
    """
    record = EncoderRecord.read(folder)
    check_files(folder, {WEIGHTS: record.weights_sha256, **record.tokenizer.files})
    model = _construct(record.architecture, folder)
    model.load_state_dict(load_file(folder / WEIGHTS), strict=True)
    return _with_preprocessing(model, record), record


def write_like(record: EncoderRecord, model: nn.Module, folder: Path, out: Path) -> EncoderRecord:
    """A folder with other weights and the rest as in `folder`, whose record is given: fine-tuned, or averaged."""
    with whole_folder(out) as new:
        for name in record.tokenizer.files:
            shutil.copyfile(folder / name, new / name)
        fields = {name: value for name, value in record if name != "weights_sha256"}
        return _write(model, new, **fields)


def load_tokenizer(folder: Path, record: EncoderRecord) -> Any:
    """open_clip's tokeniser: texts -> tokens_NL, int64, L = the record's context length."""
    context_length = record.tokenizer.context_length
    if record.tokenizer.kind == "hf":
        return HFTokenizer(str(folder), context_length=context_length)
    return SimpleTokenizer(context_length=context_length)


def assemble(encoder_folder: Path, heads_folder: Path) -> Any:
    """The full CLIP of a filter or induced model: towers, projections, temperature in open_clip's own places.

    It scores pixels as the filter scores stored vectors (which are float16: to about 1e-3).

    Raises:
        WeightsError: altered weights, or heads that were trained on another encoder.
        ValueError: towers without a place for a linear head with a bias.
    """
    filter = Filter.load(heads_folder)
    towers, record = load(encoder_folder)
    check_encoder(filter.record, record)
    if filter.heads is None:
        return towers
    model = _construct(_with_heads(record, filter), encoder_folder)
    model.load_state_dict(towers.state_dict() | load_file(heads_folder / HEADS), strict=True)
    return _with_preprocessing(model, record)


def _with_heads(record: EncoderRecord, filter: Filter) -> dict[str, Any]:
    """The towers' architecture with a place for the filter's heads."""
    architecture = copy.deepcopy(record.architecture)
    if architecture["vision_cfg"].get("timm_proj") != "none" or record.tokenizer.kind != "hf":
        raise ValueError(f"wanted a timm trunk and a Hugging Face text tower to put heads on; found {record.name}")
    architecture["embed_dim"] = filter.record.embed_dim
    architecture["vision_cfg"] |= {"timm_proj": "linear", "timm_proj_bias": True}
    architecture["text_cfg"] |= {"hf_proj_type": "linear"}
    return architecture


def fuse(encoder_folder: Path, heads_folder: Path, out: Path) -> EncoderRecord:
    """What `assemble` gives, written as an encoder folder of its own: a CLIP that training on pixels can begin with.

    Raises:
        As `assemble`; ValueError also for a filter without heads, whose encoder is that CLIP already.
    """
    filter, record = Filter.load(heads_folder), EncoderRecord.read(encoder_folder)
    if filter.heads is None:
        raise ValueError(f"wanted a filter with heads; found {filter.record.name}; fix: name its encoder's folder")
    dim = filter.record.embed_dim
    known = {"name": f"{record.name}+{filter.record.name}", "architecture": _with_heads(record, filter),
             "image_dim": dim, "text_dim": dim, "shares_space": True, "is_normalised": True}  # fmt: skip
    fused = record.model_copy(update=known)
    return write_like(fused, assemble(encoder_folder, heads_folder), encoder_folder, out)


def _openai_preprocessing(size_px: int) -> Preprocessing:
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    return Preprocessing(size_px=size_px, resize="shortest", interpolation="bicubic", mean=mean, std=std)


def _construct(architecture: Mapping[str, Any], folder: Path) -> Any:
    config = copy.deepcopy(dict(architecture))
    if "hf_model_name" in config["text_cfg"]:
        config["text_cfg"]["hf_model_name"] = str(folder)
    model_class = {"CLIP": open_clip.CLIP, "CustomTextCLIP": open_clip.CustomTextCLIP}[config.pop("class")]
    return model_class(**config).eval()


def _with_preprocessing(model: Any, record: EncoderRecord) -> Any:
    """Tells open_clip's own transforms what the record says."""
    preprocessing = record.preprocessing.model_dump(exclude={"size_px", "resize", "background", "decode"})
    size = {"size": record.preprocessing.size_px, "resize_mode": record.preprocessing.resize, "mode": "RGB"}
    set_model_preprocess_cfg(model, preprocessing | size | {"fill_color": 255})
    return model


def _write(model: nn.Module, folder: Path, **fields: Any) -> EncoderRecord:
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / WEIGHTS)
    record = EncoderRecord(weights_sha256=sha256_file(folder / WEIGHTS), **fields)
    record.write(folder)
    return record
