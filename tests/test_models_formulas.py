"""Formulas against direct float64 computations of what their papers state, and what they are fitted to."""

import numpy as np
import pytest
from scipy import stats
from test_models_filters import encoder_record

from models.filters import Filter, save_filter
from models.fit import clusters, linear_probe, mark_targets
from models.formulas import Binary, Clusters, NormSim2, NormSimInf, SClipLoss, pair_keys
from models.records import WeightsError


def unit(vectors):
    wide = np.asarray(vectors, np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def stored(seed, count, dim=24):
    """Vectors as tables hold them."""
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float16)


def filter_of(tmp_path, formula, dim=24):
    save_filter(
        tmp_path / formula.name, None, encoder_record=encoder_record(dim, dim, shares_space=True), formula=formula
    )
    return Filter.load(tmp_path / formula.name)


def s_clip_directly(images_NI, texts_NI, batches, temperature):
    """arXiv 2405.19547, equation 2, pair by pair in float64; a pair joins each batch unless it is in it."""
    images, texts = unit(images_NI), unit(texts_NI)
    found = []
    for n in range(len(images)):
        penalties = []
        for batch in batches:
            members = batch if n in batch else [*batch, n]
            sides = (texts[members] @ images[n], images[members] @ texts[n])
            penalties.append(sum(np.logaddexp.reduce(cosines / temperature) for cosines in sides))
        found.append(images[n] @ texts[n] - temperature / 2 * np.mean(penalties))
    return np.array(found)


def test_s_clip_loss_is_that_of_a_direct_computation(tmp_path):
    images, texts, draw = stored(0, 2000), stored(1, 2000), np.random.default_rng(2)
    batches = [draw.choice(2000, 128, replace=False).tolist() for _ in range(3)]
    sides = [unit(side).astype(np.float32)[batches] for side in (images, texts)]
    formula = SClipLoss(*sides, pair_keys(images, texts)[np.array(batches)], 0.01)
    scores = filter_of(tmp_path, formula).score(images, texts)
    np.testing.assert_allclose(scores, s_clip_directly(images, texts, batches, 0.01), atol=1e-4, rtol=0)


def test_s_clip_loss_of_fixed_batches_ranks_as_the_published_form_does(tmp_path):
    """There each pair is scored within random batches of the data itself (K = 10 of 200), here against 5 kept ones."""
    images, texts, draw = stored(3, 1000), stored(4, 1000), np.random.default_rng(5)
    texts[:500] += images[:500]  # half of the pairs belong together
    orders = [draw.permutation(1000).reshape(5, 200) for _ in range(10)]
    published = np.zeros(1000)
    for batch in (batch for order in orders for batch in order):
        cosines = unit(images[batch]) @ unit(texts[batch]).T / 0.05
        logs = np.logaddexp.reduce(cosines, axis=0) + np.logaddexp.reduce(cosines, axis=1)
        published[batch] += (0.05 * np.diag(cosines) - 0.05 / 2 * logs) / 10
    kept = [draw.choice(1000, 200, replace=False).tolist() for _ in range(5)]
    sides = [unit(side).astype(np.float32)[kept] for side in (images, texts)]
    ours = filter_of(tmp_path, SClipLoss(*sides, pair_keys(images, texts)[np.array(kept)], 0.05)).score(images, texts)
    assert stats.spearmanr(ours, published).statistic > 0.97  # 0.997 was found


def test_norm_sim_is_that_of_a_direct_computation(tmp_path):
    images, texts, targets = stored(6, 2000), stored(7, 2000), stored(8, 300)
    cosines = unit(images) @ unit(targets).T
    targets_TE = unit(targets).astype(np.float32)
    two = filter_of(tmp_path, NormSim2((targets_TE.astype(np.float64).T @ targets_TE).astype(np.float32)))
    np.testing.assert_allclose(two.score(images, texts), np.sqrt((cosines**2).sum(axis=1)), atol=1e-4, rtol=0)
    infinity = filter_of(tmp_path, NormSimInf(targets_TE)).score(images, texts)
    np.testing.assert_allclose(infinity, np.abs(cosines).max(axis=1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("reads", ["image", "image_text"])
def test_a_linear_probe_tells_two_kinds_apart_and_is_at_its_minimum(tmp_path, reads):
    images, texts = stored(9, 600), stored(10, 600)
    images[:200, 0] += 3
    features = unit(images) if reads == "image" else np.concatenate([unit(images), unit(texts)], axis=1)
    weight, bias = linear_probe(features[:200].astype(np.float32), features[200:].astype(np.float32))
    scores = filter_of(tmp_path, Binary(weight, bias, reads)).score(images, texts)
    assert (scores[:200] > 0).mean() > 0.85 and (scores[200:] < 0).mean() > 0.85
    np.testing.assert_allclose(scores, features @ weight + bias, atol=1e-4)
    # At the minimum no direction is downhill: each side is half of the loss, and L2 is of standardised weights.
    means, stds = features.mean(axis=0), features.std(axis=0)
    signs, shares = np.repeat([1, -1], [200, 400]), np.repeat([1 / 400, 1 / 800], [200, 400])
    slopes = -shares * signs / (1 + np.exp(signs * (features @ weight + bias)))
    np.testing.assert_allclose(slopes @ ((features - means) / stds) + 1e-3 * weight * stds, 0, atol=2e-4)
    with pytest.raises(ValueError, match="both sides"):
        linear_probe(features[:0], features)


def test_clusters_keep_what_is_nearest_to_a_centre_that_a_target_is_nearest_to(tmp_path):
    centres = np.eye(24, dtype=np.float32)[:6]
    images, targets = stored(11, 500), stored(12, 3)
    marked = mark_targets(centres, unit(targets).astype(np.float32))
    wanted = {int((unit(targets)[t] @ centres.T).argmax()) for t in range(3)}
    assert set(np.flatnonzero(marked)) == wanted and 0 < len(wanted) < 6
    scores = filter_of(tmp_path, Clusters(centres, marked)).score(images, images)
    assert scores.tolist() == [float(int(c) in wanted) for c in (unit(images) @ centres.T).argmax(axis=1)]
    made = clusters(unit(images).astype(np.float32), unit(targets).astype(np.float32), 12, 0)
    again = clusters(unit(images).astype(np.float32), unit(targets).astype(np.float32), 12, 0)
    assert (made.centres_CE == again.centres_CE).all() and 0 < made.is_target_C.sum() <= 3
    with pytest.raises(ValueError, match="at least 600"):
        clusters(unit(images).astype(np.float32), unit(targets).astype(np.float32), 600, 0)


@pytest.mark.parametrize("kind", [SClipLoss, NormSim2, NormSimInf, Binary, Clusters])
def test_every_formula_gives_nan_for_what_is_unusable_and_the_same_bits_in_any_company(tmp_path, kind):
    targets = unit(stored(13, 40)).astype(np.float32)
    formula = {
        SClipLoss: lambda: SClipLoss(targets[None], targets[None], np.arange(40, dtype=np.uint64)[None], 0.01),
        NormSim2: lambda: NormSim2(targets.T @ targets), NormSimInf: lambda: NormSimInf(targets),
        Binary: lambda: Binary(targets[:2].ravel(), 0.5, "image_text"),
        Clusters: lambda: Clusters(targets, np.arange(40, dtype=np.uint8) % 2),
    }[kind]()  # fmt: skip
    filter_ = filter_of(tmp_path, formula)
    images, texts = stored(14, 300), stored(15, 300)
    whole = filter_.score(images, texts)
    assert np.isfinite(whole).all() and len(set(whole.tolist())) > 1
    assert (filter_.score(images[70:73], texts[70:73]) == whole[70:73]).all()
    images[5], images[6, 0] = 0, np.inf
    assert np.flatnonzero(np.isnan(filter_.score(images, texts))).tolist() == [5, 6]


def test_a_pair_is_known_again_by_its_stored_bits_and_another_is_not():
    images, texts = stored(16, 5000, 3), stored(17, 5000, 2)
    keys = pair_keys(images, texts)
    assert len(set(keys.tolist())) == len({(i.tobytes(), t.tobytes()) for i, t in zip(images, texts, strict=True)})
    assert (pair_keys(images[::-1], texts[::-1]) == keys[::-1]).all()


def test_altered_tensors_are_refused(tmp_path):
    filter_of(tmp_path, NormSim2(np.eye(24, dtype=np.float32)))
    path = tmp_path / "norm_sim_2" / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(WeightsError, match="tensors"):
        Filter.load(tmp_path / "norm_sim_2")
