"""The inference form of the towers: pair by pair against open_clip's own, trimmed, in bfloat16, and out of memory."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from test_models_encoder import TINY, encoder_folder, photos, tiny_clip  # noqa: F401
from test_models_filters import encoder_record

from models import clip
from models.encoder import Encoder
from models.fallback import fold_batch_norms, text_tower_differs
from models.records import EncoderRecord, Preprocessing
from models.towers import _can_pack, good_precision, inference_towers

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
TEXTS = ["a red house", "", "two dogs on a beach " * 30, "b", "<end_of_text> within", "a photo of the sea, at night"]


def small(vision=(), text=(), custom=False, **options):
    """A CLIP of 2 blocks and 128 features (wide enough for packed weights), with weights that are not near zero."""
    torch.manual_seed(0)
    vision_cfg = {"image_size": 32, "layers": 2, "width": 128, "head_width": 32, "patch_size": 8} | dict(vision)
    text_cfg = TINY["text_cfg"] | {"width": 128, "heads": 4} | dict(text)
    model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(64, vision_cfg, text_cfg, **options).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ln_" in name or "gamma" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) / 4)  # a fold that is left out shows
    return model


def towers_of(model, precision="fp32", **options):
    config = Preprocessing(size_px=32, resize="squash", interpolation="bicubic", mean=MEAN, std=STD)
    return inference_towers(model, encoder_record(preprocessing=config, precision=precision), device="cpu", **options)


def images(num=7):
    rng = np.random.default_rng(0)
    noise, colours = rng.random((num, 3, 32, 32)), rng.random((num, 3, 1, 1))
    return torch.from_numpy((255 * (0.3 * noise + 0.7 * colours)).astype(np.uint8))


def tokens():
    return open_clip.SimpleTokenizer()(TEXTS)


def unit(vectors):
    return torch.nn.functional.normalize(vectors.float(), dim=-1)


def stock(model):
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))
    with torch.inference_mode():
        return unit(model.encode_image((images() / 255 - mean) / std)), unit(model.encode_text(tokens()))


def ours(towers):
    with torch.inference_mode():
        return unit(towers.encode_image(images())), unit(towers.encode_text(tokens()))


KNOWN = {
    "gelu": {},
    "quick_gelu": {"quick_gelu": True},
    "layer scale": {"vision": {"ls_init_value": 0.3}, "text": {"ls_init_value": 0.3}},
    "avg": {"vision": {"pool_type": "avg"}},
    "avg, norm last": {"vision": {"pool_type": "avg", "final_ln_after_pool": True}},
    "no ln_pre, patch dropout": {"vision": {"no_ln_pre": True, "patch_dropout": 0.5}},
    "norm eps": {"vision": {"norm_kwargs": {"eps": 0.01}}, "text": {"norm_kwargs": {"eps": 0.01}}},
    "custom, biased projection": {"custom": True, "text": {"proj_bias": True}},
    "custom, no projection": {"custom": True, "text": {"proj_type": "none"}},
    "eos": {"custom": True, "text": {"pool_type": "eos", "eos_id": 49407}},
    "one block": {"vision": {"layers": 1}, "text": {"layers": 1}},
}


@pytest.mark.parametrize("options", KNOWN.values(), ids=KNOWN)
def test_known_towers_give_the_vectors_of_open_clip(options):
    model = small(**options)
    before = copy.deepcopy(model.state_dict())
    wanted, towers = stock(model), towers_of(model)
    assert towers.notes == ()
    for given, expected in zip(ours(towers), wanted, strict=True):
        assert given.dtype == torch.float32
        assert (given - expected).abs().max() <= 1e-5
        assert expected.std(dim=0).max() > 0.01  # rows differ: a mix-up would show
    bf16 = ours(towers_of(model, "bf16"))
    for given, expected in zip(bf16, wanted, strict=True):
        assert (given * expected).sum(dim=1).min() >= 0.999
    if wanted[0].shape[1] == wanted[1].shape[1]:
        assert (bf16[0] @ bf16[1].T - wanted[0] @ wanted[1].T).abs().max() <= 0.003
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("custom", [False, True])
def test_a_trimmed_caption_has_the_vector_of_the_whole_row(custom):
    model = small(custom=custom)
    towers, whole = towers_of(model), stock(model)[1]
    for row, end in enumerate(tokens().argmax(dim=1).tolist()):
        for length in {end + 1, min(end + 5, 77)}:
            with torch.inference_mode():
                trimmed = unit(towers.encode_text(tokens()[row : row + 1, :length]))
            assert (trimmed - whole[row]).abs().max() <= 1e-5


FALLBACKS = {
    "not causal": ("text", {"custom": True, "text": {"no_causal_mask": True}}, "attention is not causal"),
    "class token": ("text", {"custom": True, "text": {"embed_cls": True}}, "class token"),
    "last": ("text", {"text": {"pool_type": "last"}}, "pools by 'last'"),
    "eos elsewhere": ("text", {"text": {"pool_type": "eos", "eos_id": 2}}, "pools by 'eos'"),
    "custom text block": ("text", {"text": {"qk_norm": True}}, "CustomResidualAttentionBlock"),
    "custom image block": ("image", {"vision": {"scale_fc": True}}, "CustomResidualAttentionBlock"),
    "attention pool": ("image", {"vision": {"attentional_pool": True}}, "attention pool"),
    "ResNet": ("image", {"vision": {"layers": (1, 1, 1, 1), "width": 32, "head_width": 32}}, "ModifiedResNet"),
    "timm": ("image", {"vision": {"timm_model_name": "resnet18"}}, "TimmModel"),
}


@pytest.mark.parametrize(("which", "options", "why"), FALLBACKS.values(), ids=FALLBACKS)
def test_other_towers_keep_their_own_forward_pass_and_say_why(which, options, why):
    model = small(**options)
    towers = towers_of(model)
    assert len(towers.notes) == 1
    assert towers.notes[0].startswith(f"{which} tower: ")
    assert why in towers.notes[0]
    assert (text_tower_differs(model) is None) == (which == "image")
    for given, expected in zip(ours(towers), stock(model), strict=True):
        assert (given - expected).abs().max() <= 1e-4
    for given, expected in zip(ours(towers_of(model, "bf16")), stock(model), strict=True):
        assert (given * expected).sum(dim=1).min() >= 0.995


def test_an_altered_structure_is_not_taken_for_a_known_one():
    for alter in (
        lambda model: setattr(model.transformer.resblocks[1].mlp, "gelu", torch.nn.ReLU()),
        lambda model: setattr(model.transformer.resblocks[0], "ls_1", torch.nn.Dropout()),
        lambda model: setattr(model, "ln_final", torch.nn.Identity()),
        lambda model: model.attn_mask.fill_(0),
        lambda model: model.train(),
    ):
        model = small()
        alter(model)
        assert text_tower_differs(model) is not None


def test_batch_norms_fold_into_convolutions_and_their_activations_stay():
    torch.manual_seed(0)
    trunk = timm.create_model(clip.LIT_TRUNK, num_classes=0).eval()
    for norm in (module for module in trunk.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        for tensor, low in ((norm.running_mean, -0.3), (norm.running_var, 0.5), (norm.bias.data, -0.3)):
            tensor.uniform_(low, low + 0.8)
    pixels = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        wanted = trunk(pixels)
        num_norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in trunk.modules())
        assert fold_batch_norms(trunk) == num_norms == 49
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in trunk.modules())
        assert (trunk(pixels) - wanted).abs().max() <= 1e-4 * wanted.abs().max()


class TwoReaders(torch.nn.Module):
    """The convolution's own output is used beside the norm's."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return y + self.norm(y)


def test_a_norm_that_cannot_be_folded_stays():
    assert fold_batch_norms(TwoReaders().eval()) == 0
    untraceable = TwoReaders().eval()
    untraceable.forward = lambda x: untraceable.conv(x) if x.sum() > 0 else x
    assert fold_batch_norms(untraceable) == 0


def test_the_demo_encoder_runs_its_own_towers_with_folded_norms(encoder_folder, photos):  # noqa: F811
    encoder = Encoder.load(encoder_folder)
    assert [note.split(":")[0] for note in encoder.notes] == ["image tower", "text tower"]
    own = encoder._towers.encode_image.__self__._own
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in own.modules())
    pixels = np.stack([encoder.preprocess(photo) for photo in photos])
    model, _ = clip.load(encoder_folder)
    with torch.inference_mode():
        wanted = model.encode_image((torch.from_numpy(pixels) / 255 - 0.5) / 0.5).numpy()
    assert np.abs(encoder.encode_images(pixels) - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.fixture(params=["fp32", "bf16"])
def tiny_encoder(request, tmp_path):
    tiny_clip(tmp_path / "clip", precision=request.param)
    return Encoder.load(tmp_path / "clip")


def many(num=30):
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (num, 3, 32, 32), dtype=np.uint8), [f"{'word ' * (i % 11)}{i}" for i in range(num)]


def test_a_row_has_the_same_bits_in_any_batch_in_both_precisions(tiny_encoder):
    pixels, texts = many()
    images_NI, texts_NT = tiny_encoder.encode_images(pixels), tiny_encoder.encode_texts(texts)
    rng = np.random.default_rng(0)
    for rows in (rng.permutation(30), rng.permutation(30)[:13], [7], [29, 0, 29]):
        assert np.array_equal(tiny_encoder.encode_images(pixels[rows]), images_NI[rows])
        assert np.array_equal(tiny_encoder.encode_images(list(pixels[rows])), images_NI[rows])
        assert np.array_equal(tiny_encoder.encode_texts([texts[row] for row in rows]), texts_NT[rows])


def test_packed_weights_keep_a_rows_bits_whatever_stands_beside_it():
    """At widths of real towers, where a core's blocks of a matrix product have edges."""
    model = small({"width": 256}, {"width": 256})
    towers = towers_of(model, "bf16")
    pixels = images(16)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(towers.encode_image(pixels[order]), towers.encode_image(pixels)[order])


def test_an_array_of_images_is_not_copied(tiny_encoder, monkeypatch):
    pixels, _ = many(16)
    seen = []
    encode = tiny_encoder._towers.encode_image
    spied = replace(tiny_encoder._towers, encode_image=lambda batch: seen.append(batch.data_ptr()) or encode(batch))
    monkeypatch.setattr(tiny_encoder, "_towers", spied)
    vectors = tiny_encoder.encode_images(pixels)
    assert seen == [pixels[0].ctypes.data, pixels[8].ctypes.data]
    pixels.flags.writeable = False
    assert np.array_equal(tiny_encoder.encode_images(pixels), vectors)
    assert np.array_equal(tiny_encoder.encode_images(np.asfortranarray(pixels)), vectors)
    for bad in (pixels.astype(np.float32), pixels[:, :, 1:], pixels.transpose(0, 2, 3, 1)):
        with pytest.raises(ValueError, match="wanted uint8"):
            tiny_encoder.encode_images(bad)


def test_captions_are_trimmed_to_a_bucket_that_holds_their_end(tiny_encoder, monkeypatch):
    passes = []
    encode = tiny_encoder._towers.encode_text
    spied = replace(tiny_encoder._towers, encode_text=lambda batch: passes.append(batch) or encode(batch))
    monkeypatch.setattr(tiny_encoder, "_towers", spied)
    for num_words, length in {0: 4, 2: 4, 3: 8, 14: 16, 70: 72, 71: 76, 75: 77, 200: 77}.items():
        passes.clear()
        tiny_encoder.encode_texts(["dog " * num_words])
        assert [batch.shape for batch in passes] == [(round(8 * 77 / length), length)]
        assert (passes[0] == 49407).any(dim=1).all()


def test_only_towers_that_can_be_trimmed_get_a_bucket(tmp_path):
    assert tiny_clip(tmp_path / "a").text_bucket_tokens == clip.CAUSAL_BUCKET
    config = TINY | {"text_cfg": TINY["text_cfg"] | {"no_causal_mask": True}, "custom_text": True}
    (tmp_path / "siglip-like.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "siglip-like.json")
    record = clip.build_open_clip("siglip-like", None, tmp_path / "b", seed=0)
    assert record.text_bucket_tokens is None
    assert len(Encoder.load(tmp_path / "b").encode_texts(TEXTS)) == len(TEXTS)


def test_precision_is_part_of_the_version_and_may_be_missing(tmp_path):
    fp32, bf16 = (tiny_clip(tmp_path / name, precision=name) for name in ("fp32", "bf16"))
    assert fp32.weights_sha256 == bf16.weights_sha256
    assert fp32.version != bf16.version
    old = json.loads((tmp_path / "fp32" / "record.json").read_text())
    del old["precision"]
    assert EncoderRecord.model_validate_json(json.dumps(old)) == fp32
    vectors = [Encoder.load(tmp_path / name).encode_images(many()[0]) for name in ("fp32", "bf16")]
    assert 0 < np.abs(vectors[0] - vectors[1]).max() < 0.01


def fails_above(limit, encode, error):
    def encode_or_fail(batch):
        if len(batch) > limit:
            raise error
        return encode(batch)

    return encode_or_fail


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_a_batch_that_does_not_fit_is_halved_and_the_size_remembered(tiny_encoder, monkeypatch, error):
    pixels, texts = many()
    wanted = tiny_encoder.encode_images(pixels), tiny_encoder.encode_texts(texts)
    towers = tiny_encoder._towers
    small = replace(
        towers,
        encode_image=fails_above(3, towers.encode_image, error),
        encode_text=fails_above(20, towers.encode_text, error),
    )
    monkeypatch.setattr(tiny_encoder, "_towers", small)
    given = tiny_encoder.encode_images(pixels), tiny_encoder.encode_texts(texts)
    # 8 images a pass are halved twice; captions, of 4, 8, 12 and 16 tokens, from 154, 77, 51 and 38 a pass.
    assert tiny_encoder.num_oom_halvings == 2 + (3 + 2 + 2 + 1)
    scores = [(images_NI * texts_NT).sum(axis=1) for images_NI, texts_NT in (wanted, given)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-3)
    assert np.array_equal(tiny_encoder.encode_images(pixels), given[0])
    assert tiny_encoder.num_oom_halvings == 10


def test_what_never_fits_and_other_errors_are_raised(tiny_encoder, monkeypatch):
    towers = tiny_encoder._towers
    for error, num_halvings in ((RuntimeError("shapes"), 0), (torch.OutOfMemoryError("CUDA out of memory."), 3)):
        failing = replace(towers, encode_image=fails_above(0, towers.encode_image, error))
        monkeypatch.setattr(tiny_encoder, "_towers", failing)
        with pytest.raises(type(error), match=str(error)):
            tiny_encoder.encode_images(many(9)[0])
        assert tiny_encoder.num_oom_halvings == num_halvings


def test_bf16_is_good_where_the_cpu_multiplies_it():
    flags = Path("/proc/cpuinfo").read_text()
    assert good_precision("cpu") == ("bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32")
    assert good_precision("meta") == "fp32"
    if not torch.cuda.is_available():
        assert good_precision("cuda") == "fp32"


def test_weights_are_packed_where_they_can_be(monkeypatch):
    """Without PyTorch's private operators the plain ones give the same to rounding."""
    model = small()
    packed = ours(towers_of(model, "bf16"))
    monkeypatch.setattr("models.towers._can_pack", lambda: False)
    for one, other in zip(packed, ours(towers_of(model, "bf16")), strict=True):
        assert (one - other).abs().max() <= 0.01
    assert isinstance(_can_pack(), bool)
