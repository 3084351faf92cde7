"""The towers: real weights, fixed bits, pinned preprocessing, and a full CLIP that agrees with its stored vectors."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_images
from test_models_filters import random_heads

from etl.samples.corpora import fetch_weights
from models import clip
from models.encoder import Encoder
from models.filters import Filter, save_filter
from models.records import EncoderRecord, WeightsError

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def tiny_clip(out: Path, checkpoint: Path | None = None, vision=TINY["vision_cfg"], **options) -> EncoderRecord:
    config = out.parent / "tiny-clip.json"
    config.write_text(json.dumps(TINY | {"vision_cfg": vision}))
    open_clip.add_model_config(config)
    options = {"seed": 0, "batch_size": 8, "text_batch_size": 8} | options
    return clip.build_open_clip("tiny-clip", checkpoint, out, **options)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("towers") / "lit"
    clip.build_lit(fetch_weights("efficientnet_lite0"), fetch_weights("minilm"), out)
    return out


@pytest.fixture(scope="session")
def encoder(encoder_folder) -> Encoder:
    return Encoder.load(encoder_folder)


@pytest.fixture(scope="session")
def photos() -> list[Image.Image]:
    """A temple and a flower, whole and in parts of other shapes."""
    china, flower = (Image.fromarray(image) for image in load_sample_images().images)
    boxes = [(0, 0, 640, 427), (100, 50, 300, 400), (0, 200, 640, 300), (300, 100, 420, 220)]
    return [photo.crop(box) for photo in (china, flower) for box in boxes]


CAPTIONS = [
    "a Chinese temple",
    "",
    "a yellow flower",
    "the roof of a temple " * 9,
    "blossom",
    "sky",
    "q" * 500,
    "petals",
]


def test_the_record_is_that_of_the_trial(encoder):
    record = encoder.record
    assert (record.image_dim, record.text_dim, record.shares_space, record.is_normalised) == (1280, 384, False, False)
    assert record.preprocessing.model_dump() == {
        "size_px": 160,
        "resize": "squash",
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "background": "white",
        "decode": "exact",
    }
    assert sorted(record.tokenizer.files) == sorted(clip.HF_FILES)


def test_the_image_tower_knows_its_classes(encoder, photos):
    """The weights' own classifier, which was left out, sees the temple in our vectors: tensors and pixels fit."""
    given = list(torch.load(fetch_weights("efficientnet_lite0"), weights_only=True).values())
    logits = torch.from_numpy(encoder.encode_images(photos[:1])) @ given[-2].T + given[-1]
    bell_cote, stupa, monastery, palace = 442, 832, 663, 698
    assert logits.topk(4).indices.tolist() == [[bell_cote, stupa, monastery, palace]]


def test_the_text_tower_is_the_sentence_encoder(encoder):
    near, same, far = encoder.encode_texts(["a cat sits on the mat", "a kitten on a rug", "quarterly tax report"])
    near, same, far = (vector / np.linalg.norm(vector) for vector in (near, same, far))
    assert near @ same > 0.5 > 0.2 > near @ far


def test_a_row_has_the_same_bits_whatever_batch_it_lands_in(encoder, photos):
    pixels = [encoder.preprocess(photo) for photo in photos] * 5
    pixels = [np.roll(image, 7 * i, axis=2) for i, image in enumerate(pixels)]
    texts = [f"{caption} {i % 9}" for i, caption in enumerate(CAPTIONS * 5)]
    images_NI, texts_NT = encoder.encode_images(pixels), encoder.encode_texts(texts)
    rng = np.random.default_rng(0)
    for rows in (rng.permutation(40), rng.permutation(40)[:21], [5], [39, 0, 39]):
        assert np.array_equal(encoder.encode_images([pixels[row] for row in rows]), images_NI[rows])
        assert np.array_equal(encoder.encode_texts([texts[row] for row in rows]), texts_NT[rows])


def test_every_pass_has_a_fixed_shape_that_depends_on_the_caption_alone(encoder, monkeypatch):
    """This CPU gives the same bits in other shapes too; other devices do not."""
    passes = []
    encode = encoder._towers.encode_text
    spied = replace(encoder._towers, encode_text=lambda tokens: passes.append(tokens) or encode(tokens))
    monkeypatch.setattr(encoder, "_towers", spied)
    sixteen = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    num_tokens = {"a dog": 16, sixteen: 32, "dog " * 20: 32, "dog " * 400: 128}
    for texts in [list(num_tokens), *([text] for text in num_tokens), ["a dog", "dog " * 400]]:
        passes.clear()
        encoder.encode_texts(texts)
        assert sorted((tokens.shape for tokens in passes), key=lambda shape: shape[1]) == [
            (512 // length, length) for length in sorted({num_tokens[text] for text in texts})
        ]
        assert all((tokens[:, -1] == encoder.record.tokenizer.pad_id).all() for tokens in passes)


def test_equal_captions_are_encoded_once(encoder, monkeypatch):
    passes = []
    original = Encoder._encode_text_batch
    monkeypatch.setattr(Encoder, "_encode_text_batch", lambda *args: passes.append(1) or original(*args))
    vectors = encoder.encode_texts(["same"] * 100 + ["other"])
    assert (len(passes), len(np.unique(vectors, axis=0))) == (1, 2)
    assert np.array_equal(vectors[0], vectors[99])


def test_nothing_in_gives_nothing_out(encoder):
    assert encoder.encode_images([]).shape == (0, 1280)
    assert encoder.encode_texts([]).shape == (0, 384)


def test_wild_captions_give_vectors(encoder):
    @settings(max_examples=20, deadline=None)
    @given(st.lists(st.text(st.characters(), max_size=300), min_size=1, max_size=4))
    def check(texts):
        assert np.isfinite(encoder.encode_texts([*texts, "\ud800\x00\u202e", "x" * 1_000_000])).all()

    check()


def test_pixels_of_another_shape_are_refused(encoder):
    for bad in (np.zeros((160, 160, 3), np.uint8), np.zeros((3, 160, 160), np.float32)):
        with pytest.raises(ValueError, match="wanted uint8"):
            encoder.encode_images([bad])


def test_the_assembled_clip_scores_pixels_as_the_filter_scores_stored_vectors(
    encoder, encoder_folder, photos, tmp_path
):
    """Through open_clip's own transform, tokeniser and forward pass, from photographs."""
    save_filter(tmp_path / "h", random_heads(1280, 384, 256), encoder_record=encoder.record)
    images, texts = encoder.encode_images(photos), encoder.encode_texts(CAPTIONS)
    stored = Filter.load(tmp_path / "h").score(images.astype(np.float16), texts.astype(np.float16))
    model = clip.assemble(encoder_folder, tmp_path / "h")
    transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    tokens = clip.load_tokenizer(encoder_folder, encoder.record)(CAPTIONS)
    with torch.inference_mode():
        image_NE, text_NE, scale = model(torch.stack([transform(photo) for photo in photos]), tokens)
    assert isinstance(model, open_clip.CustomTextCLIP)
    assert {"visual.head.proj.weight", "visual.head.proj.bias", "text.proj.weight"} <= set(model.state_dict())
    np.testing.assert_allclose((image_NE * text_NE).sum(dim=1), stored, atol=1e-3)
    assert scale.item() == pytest.approx(np.exp(2.66), rel=1e-5)
    assert np.std(stored) > 0.01

    fused = clip.fuse(encoder_folder, tmp_path / "h", tmp_path / "fused")
    whole = Encoder.load(tmp_path / "fused")
    cosines = (whole.encode_images(photos) * whole.encode_texts(CAPTIONS)).sum(axis=1)
    np.testing.assert_allclose(cosines, (image_NE * text_NE).sum(dim=1), atol=2e-3)
    assert (fused.image_dim, fused.text_dim, fused.shares_space, fused.is_normalised) == (256, 256, True, True)


@pytest.mark.parametrize("name", [clip.WEIGHTS, "vocab.txt", "config.json"])
def test_altered_and_cut_weights_are_refused(encoder_folder, tmp_path, name):
    copy = shutil.copytree(encoder_folder, tmp_path / "copy")
    data = bytearray((copy / name).read_bytes())
    data[-2] ^= 1
    for content in (data, data[:-100]):
        (copy / name).write_bytes(content)
        with pytest.raises(WeightsError, match=rf"wanted .*{name} with sha256 .*; found .*; fix: "):
            Encoder.load(copy)


def test_the_same_weights_give_the_same_version(encoder, encoder_folder, tmp_path):
    again = clip.build_lit(fetch_weights("efficientnet_lite0"), fetch_weights("minilm"), tmp_path / "lit")
    assert again.version == encoder.record.version == EncoderRecord.read(encoder_folder).version
    assert again.model_copy(update={"text_batch_size": 3}).version != again.version


def test_weights_of_another_trunk_are_refused(tmp_path):
    given = torch.load(fetch_weights("efficientnet_lite0"), weights_only=True)
    first = next(iter(given))
    torch.save(given | {first: given[first][:, :, :1]}, tmp_path / "a.pth")
    torch.save(dict(list(given.items())[:10]), tmp_path / "b.pth")
    for name, says in {"a.pth": "tensor 0 like conv_stem.weight", "b.pth": "no more tensors"}.items():
        with pytest.raises(WeightsError, match=says):
            clip.build_lit(tmp_path / name, fetch_weights("minilm"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


class _Payload:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def test_a_checkpoint_with_code_in_it_is_refused_and_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": _Payload()}, "evil.pth")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        tiny_clip(tmp_path / "out", Path("evil.pth"))
    assert not Path("ran").exists()


def test_an_open_clip_architecture_from_a_local_checkpoint(tmp_path, photos):
    tiny_clip(tmp_path / "a")
    weights = load_file(tmp_path / "a" / clip.WEIGHTS)
    save_file(weights, tmp_path / "w.safetensors")
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}}, tmp_path / "w.pt")
    records = [tiny_clip(tmp_path / f"from {w}", tmp_path / w, seed=None) for w in ("w.safetensors", "w.pt")]
    first = EncoderRecord.read(tmp_path / "a")
    assert [record.version for record in records] == [first.version] * 2
    encoder = Encoder.load(tmp_path / "a")
    image_NI, text_NT = encoder.encode_images(photos), encoder.encode_texts(CAPTIONS)
    np.testing.assert_allclose(np.linalg.norm(image_NI, axis=1), 1, atol=1e-5)
    model, _ = clip.load(tmp_path / "a")
    with torch.inference_mode():
        wanted = model.encode_text(open_clip.SimpleTokenizer()(CAPTIONS), normalize=True)
    np.testing.assert_allclose(text_NT, wanted, atol=1e-5)
    assert (first.shares_space, first.is_normalised, first.preprocessing.size_px) == (True, True, 32)


def test_the_activation_is_part_of_the_record(tmp_path, photos):
    plain, quick = (tiny_clip(tmp_path / str(flag), quick_gelu=flag) for flag in (False, True))
    assert (plain.weights_sha256, plain.architecture["quick_gelu"]) == (quick.weights_sha256, False)
    vectors = [Encoder.load(tmp_path / str(flag)).encode_images(photos) for flag in (False, True)]
    assert plain.version != quick.version
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-4


def test_what_cannot_be_built_says_why(tmp_path):
    for name, options, says in [
        ("no-such-clip", {"seed": 0}, "list_models"),
        ("roberta-ViT-B-32", {"seed": 0}, "text tower of its own"),
        ("ViT-B-32", {}, "a checkpoint for ViT-B-32, or a seed"),
    ]:
        with pytest.raises(ValueError, match=says):
            clip.build_open_clip(name, None, tmp_path / "out", **options)
    tiny_clip(tmp_path / "a")
    save_file({"logit_scale": torch.zeros(())}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="the tensors of tiny-clip"):
        tiny_clip(tmp_path / "out", tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="no such file"):
        clip.build_lit(tmp_path / "x.pth", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
