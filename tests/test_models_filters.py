"""The DFN score: against a plain reference, bit-equal in any batch, and silent about nothing."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.filters import HEADS, Filter, Heads, check_encoder, check_vectors, save_filter
from models.records import EncoderRecord, FilterRecord, Preprocessing, Tokenizer, WeightsError, whole_folder


def encoder_record(image_dim=6, text_dim=5, shares_space=False, **changes):
    gray = (0.5, 0.5, 0.5)
    return EncoderRecord(
        name="planted",
        architecture={},
        preprocessing=Preprocessing(size_px=8, resize="squash", interpolation="bicubic", mean=gray, std=gray),
        tokenizer=Tokenizer(kind="open_clip", context_length=77, pad_id=0, max_chars=10, files={}),
        image_dim=image_dim,
        text_dim=text_dim,
        shares_space=shares_space,
        is_normalised=False,
        batch_size=4,
        text_batch_size=4,
        text_bucket_tokens=None,
        weights_sha256="0" * 64,
    ).model_copy(update=changes)


def random_heads(image_dim=6, text_dim=5, embed_dim=3, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (embed_dim, image_dim), (embed_dim,), (embed_dim, text_dim)
    return Heads(*(rng.standard_normal(shape, dtype=np.float32) for shape in shapes), log_scale=2.66)


@pytest.fixture
def filter(tmp_path):
    save_filter(tmp_path / "f", random_heads(), encoder_record=encoder_record())
    return Filter.load(tmp_path / "f")


def reference(heads, image, text):
    """Straight from the paper, a pair at a time, in float64."""
    left = heads.visual_weight.astype(float) @ image.astype(np.float16).astype(float) + heads.visual_bias
    right = heads.text_weight.astype(float) @ text.astype(np.float16).astype(float)
    return left @ right / np.linalg.norm(left) / np.linalg.norm(right)


def test_the_score_is_the_cosine_of_the_projections(filter):
    rng = np.random.default_rng(1)
    images, texts = rng.standard_normal((700, 6)), rng.standard_normal((700, 5))
    wanted = [reference(filter.heads, image, text) for image, text in zip(images, texts, strict=True)]
    scores = filter.score(images, texts)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, wanted, atol=2e-6)


def test_a_score_has_the_same_bits_in_any_batch():
    filter = Filter(FilterRecord.model_construct(image_dim=1280, text_dim=384), random_heads(1280, 384, 256))
    rng = np.random.default_rng(2)
    images, texts = (rng.standard_normal((600, dim)).astype(np.float16) for dim in (1280, 384))
    scores = filter.score(images, texts)
    for rows in (rng.permutation(600), np.arange(300, 301), np.arange(77, 600), np.repeat(5, 513)):
        assert np.array_equal(filter.score(images[rows], texts[rows]), scores[rows])
    assert filter.score(images[:0], texts[:0]).shape == (0,)


def test_float32_input_is_rounded_to_what_tables_hold(filter):
    rng = np.random.default_rng(3)
    images, texts = (rng.standard_normal((9, dim), dtype=np.float32) for dim in (6, 5))
    assert np.array_equal(
        filter.score(images, texts), filter.score(images.astype(np.float16), texts.astype(np.float16))
    )


BAD = {"nan": np.nan, "infinity": np.inf, "overflow": 1e6}


def test_unusable_vectors_score_nan_and_leave_the_others_alone(filter):
    images, texts = np.ones((8, 6), np.float32), np.ones((8, 5), np.float32)
    images[0, 1], images[1, 2], texts[2, 0] = BAD.values()
    images[3], texts[4], images[5] = 0, 0, 1e-9
    assert check_vectors(images).tolist() == [False, False, True, False, True, False, True, True]
    assert np.isnan(filter.score(images, texts)).tolist() == [True] * 6 + [False] * 2


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, st.tuples(st.integers(0, 5), st.just(11)), elements=st.floats(width=32)))
def test_wild_vectors_give_a_cosine_or_nan(vectors):
    filter = Filter(FilterRecord.model_construct(image_dim=6, text_dim=5), random_heads())
    images, texts = vectors[:, :6], vectors[:, 6:]
    scores = filter.score(images, texts)
    good = check_vectors(images) & check_vectors(texts)
    assert np.isnan(scores[~good]).all()
    assert ((np.abs(scores) <= 1) | np.isnan(scores)).all()


def test_without_heads_it_is_the_plain_cosine_of_a_shared_space(tmp_path):
    record = save_filter(tmp_path / "f", None, encoder_record=encoder_record(2, 2, shares_space=True))
    filter = Filter.load(tmp_path / "f")
    scores = filter.score(np.array([[1.0, 0], [3, 4], [-2, 0]]), np.array([[2.0, 0], [1, 0], [1, 0]]))
    np.testing.assert_allclose(scores, [1, 0.6, -1], atol=1e-7)
    assert (record.embed_dim, record.weights_sha256, sorted(p.name for p in (tmp_path / "f").iterdir())) == (
        None,
        None,
        ["record.json"],
    )
    with pytest.raises(ValueError, match="share no space"):
        save_filter(tmp_path / "g", None, encoder_record=encoder_record())
    assert not (tmp_path / "g").exists()


def test_the_version_is_the_contents(tmp_path):
    def version(name, heads, **changes):
        save_filter(tmp_path / name, heads, encoder_record=encoder_record(**changes))
        return Filter.load(tmp_path / name).version

    first = version("a", random_heads())
    assert len(first) == 16
    assert first == version("b", random_heads()) == FilterRecord.read(tmp_path / "a").version
    others = {version("c", random_heads(seed=1)), version("d", random_heads(), batch_size=5)}
    assert len(others | {first}) == 3


def test_altered_missing_and_foreign_weights_are_refused(filter, tmp_path):
    weights = tmp_path / "f" / HEADS
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(WeightsError, match=r"wanted .*sha256.*; found [0-9a-f]{64}; fix: "):
        Filter.load(tmp_path / "f")
    weights.unlink()
    with pytest.raises(WeightsError, match="no such file"):
        Filter.load(tmp_path / "f")
    with pytest.raises(WeightsError, match=r"record\.json"):
        Filter.load(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match="encoder planted"):
        check_encoder(filter.record, encoder_record(batch_size=5))
    check_encoder(filter.record, encoder_record())


def test_an_unknown_field_in_a_record_is_refused(filter, tmp_path):
    path = tmp_path / "f" / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"formular": "x"}))
    with pytest.raises(
        WeightsError, match=r"wanted the fields of FilterRecord; found .* does not fit in formular; fix"
    ):
        Filter.load(tmp_path / "f")


@pytest.mark.parametrize(("images", "texts"), [((2, 5), (2, 5)), ((2, 6), (2, 6)), ((2, 6), (3, 5)), ((6,), (5,))])
def test_vectors_of_another_encoder_are_refused(filter, images, texts):
    with pytest.raises(ValueError, match="wanted"):
        filter.score(np.ones(images), np.ones(texts))


def test_heads_that_do_not_fit_or_are_not_finite_are_refused(tmp_path):
    for heads, says in [(random_heads(7), "shapes"), (random_heads(seed=0), "NaN")]:
        if says == "NaN":
            heads.visual_weight[0, 0] = np.nan
        with pytest.raises(ValueError, match=says):
            save_filter(tmp_path / "f", heads, encoder_record=encoder_record())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    out = tmp_path / "out"
    with whole_folder(out) as folder:
        (folder / "a").write_text("1")
        assert not out.exists()
    with pytest.raises(KeyError), whole_folder(out) as folder:
        (folder / "a").write_text("2")
        raise KeyError
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("a", "1")]
    with whole_folder(out) as folder:
        (folder / "b").write_text("3")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("b", "3")]
