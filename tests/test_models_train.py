"""The loop learns what was planted, comes out as one linear map a side, and repeats itself to the bit."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_models_filters import encoder_record

from models.data import Vectors, write_part
from models.evaluate import evaluate
from models.filters import Filter, FilterRecord, Heads, save_filter
from models.metrics import classification, retrieval
from models.order import batches
from models.recipe import learning_rate
from models.train import FILTER, INDUCED, ImageStats, TrainConfig, TrainingError, train

DIMS = {"image_dim": 24, "text_dim": 16}
SMALL = TrainConfig(steps=60, dropout=0.1, batch_size=32, embed_dim=8, lr=1e-2)


def planted(folder, num_rows=300, seed=0, image=None):
    """Pairs that share a latent vector: images = latent A + noise, far from mean 0; texts = latent B."""
    rng, world = np.random.default_rng(seed), np.random.default_rng(7)
    latent = rng.standard_normal((num_rows, 6))
    images = latent @ world.standard_normal((6, 24)) * np.geomspace(0.01, 10, 24) + np.linspace(-30, 30, 24)
    texts = latent @ world.standard_normal((6, 16))
    uids = [hashlib.md5(f"{seed} {i}".encode()).hexdigest() for i in range(num_rows)]
    write_part(
        folder / "part-0.arrow", uids, images if image is None else image, texts, [f"c{i}" for i in range(num_rows)]
    )
    return Vectors.open(folder)


def fresh_run(folder: str) -> str:
    """What a process of its own does; also called in this one."""
    vectors = planted(Path(folder) / "v")
    result = train(vectors, SMALL, Path(folder) / "out", encoder_record=encoder_record(**DIMS))
    return json.dumps([result.losses, Filter.load(result.folder).version])


@pytest.mark.parametrize("shift", [0.0, 5.0], ids=["same statistics", "other statistics"])
def test_trained_heads_go_on_from_the_same_map(tmp_path, shift):
    """At a rate of nearly nothing what comes out is what went in; at a real rate training goes on from there."""
    vectors, encoder = planted(tmp_path / "v"), encoder_record(**DIMS)
    first = train(vectors, SMALL, tmp_path / "f", encoder_record=encoder)
    heads = Heads.load(first.folder / "heads.safetensors")
    stats = ImageStats.of(vectors)
    stats = ImageStats(stats.mean + shift, stats.std * (1 + shift))
    still = SMALL.model_copy(update={"steps": 1, "lr": 1e-12, "dropout": 0.0, "embed_dim": 99})
    same = train(vectors, still, tmp_path / "s", encoder_record=encoder, stats=stats, init=heads)
    scores = Filter.load(first.folder).score(vectors.image_NI, vectors.text_NT)
    np.testing.assert_allclose(Filter.load(same.folder).score(vectors.image_NI, vectors.text_NT), scores, atol=1e-4)
    further = SMALL.model_copy(update={"dropout": 0.0, "lr": 1e-3})
    losses = train(vectors, further, tmp_path / "t", encoder_record=encoder, stats=stats, init=heads).losses
    assert same.losses[0] == pytest.approx(losses[0], abs=1e-6)
    assert max(losses) < 0.5 * first.losses[0]


def test_first_heads_of_another_encoder_are_refused(tmp_path):
    heads = Heads(np.ones((8, 23), np.float32), np.zeros(8, np.float32), np.ones((8, 16), np.float32), 2.66)
    with pytest.raises(ValueError, match=r"wanted first heads of \(24, 16\) dimensions.*; found \(23, 16\)"):
        train(planted(tmp_path / "v"), SMALL, tmp_path / "f", encoder_record=encoder_record(**DIMS), init=heads)


def test_what_was_planted_is_learnt_and_holds_on_other_pairs(tmp_path):
    vectors, held_out = planted(tmp_path / "v"), planted(tmp_path / "w", seed=1)
    steps = []
    result = train(
        vectors, SMALL, tmp_path / "f", encoder_record=encoder_record(**DIMS), on_step=lambda *at: steps.append(at)
    )
    filter = Filter.load(result.folder)
    assert steps == list(enumerate(result.losses))
    assert (len(result.losses), result.samples_seen) == (60, 60 * 32)
    assert result.losses[0] > 2 * result.losses[-1]
    assert evaluate(filter, held_out)["r5"] > 0.8
    true = filter.score(held_out.image_NI, held_out.text_NT)
    false = filter.score(held_out.image_NI, np.roll(held_out.text_NT, 1, axis=0))
    assert np.mean(true > false) > 0.95


def plain_losses(vectors, config):
    """The heads' training written out: what the loop must give to the bit."""
    torch.manual_seed(config.seed)
    weight, text = (torch.nn.Linear(dim, config.embed_dim, bias=False) for dim in (24, 16))
    scale = torch.nn.Parameter(torch.tensor(config.init_log_scale))
    stats = ImageStats.of(vectors)
    mean, std = torch.from_numpy(stats.mean).float(), torch.from_numpy(np.maximum(stats.std, 1e-3)).float()
    groups = [{"params": [weight.weight, text.weight], "weight_decay": config.weight_decay}]
    optimizer = torch.optim.AdamW([*groups, {"params": [scale], "weight_decay": 0.0}], lr=config.lr, betas=config.betas)
    losses, warmup = [], int(config.warmup_fraction * config.steps)
    for step, rows in enumerate(batches(len(vectors), config.batch_size, config.steps, config.seed)):
        images = (torch.from_numpy(vectors.images(rows)).float() - mean) / std
        drop = torch.nn.functional.dropout
        image = torch.nn.functional.normalize(weight(drop(images, config.dropout)), dim=-1)
        texts = text(drop(torch.from_numpy(vectors.texts(rows)).float(), config.dropout))
        texts = torch.nn.functional.normalize(texts, dim=-1)
        for group in optimizer.param_groups:
            falling = (1 + np.cos(np.pi * (step - warmup) / (config.steps - warmup))) / 2
            group["lr"] = config.lr * ((step + 1) / warmup if step < warmup else falling)
        logits, labels = scale.exp() * image @ texts.T, torch.arange(len(rows))
        both = [torch.nn.functional.cross_entropy(side, labels) for side in (logits, scale.exp() * texts @ image.T)]
        loss = sum(both) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            scale.clamp_(0, np.log(100))
        losses.append(loss.item())
    return losses


def test_the_losses_are_those_of_the_training_written_out_to_the_bit(tmp_path):
    vectors = planted(tmp_path / "v")
    torch.set_num_threads(1)
    result = train(vectors, SMALL, tmp_path / "f", encoder_record=encoder_record(**DIMS))
    assert result.losses == plain_losses(vectors, SMALL)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_in_a_fresh_process(tmp_path):
    torch.manual_seed(99)  # whatever was drawn before must not matter
    torch.rand(3)
    code = f"from test_models_train import fresh_run; print(fresh_run({str(tmp_path / 'a')!r}))"
    other = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert other.stdout.splitlines()[-1] == fresh_run(str(tmp_path / "b"))


def test_another_seed_gives_another_run(tmp_path):
    def losses(seed):
        torch.rand(1)  # what others draw must not matter
        config = SMALL.model_copy(update={"seed": seed, "steps": 3})
        return train(vectors, config, tmp_path / "f", encoder_record=encoder_record(**DIMS)).losses

    vectors = planted(tmp_path / "v")
    assert losses(0) == losses(0) != losses(1)


@pytest.mark.parametrize("given", [False, True])
def test_the_standardisation_is_folded_into_the_head(tmp_path, given):
    """With dropout 0 the loss of the trained heads, computed from the folder alone, goes on from the last step's."""
    vectors = planted(tmp_path / "v", num_rows=32)
    stats = ImageStats(np.linspace(0, 2, 24), np.geomspace(0.5, 2, 24)) if given else None
    config = SMALL.model_copy(update={"steps": 1, "dropout": 0.0, "lr": 1e-12, "weight_decay": 0.0})
    result = train(vectors, config, tmp_path / "f", encoder_record=encoder_record(**DIMS), stats=stats)
    filter = Filter.load(result.folder)
    logits = np.exp(2.66) * filter.project_images(vectors.image_NI) @ filter.project_texts(vectors.text_NT).T
    lse = [np.log(np.exp(logits).sum(axis=axis)) for axis in (0, 1)]
    assert result.losses[0] == pytest.approx(np.mean([lse - np.diag(logits) for lse in lse]), abs=1e-4)


def test_statistics_are_those_of_all_rows(tmp_path):
    vectors = planted(tmp_path / "v")
    stats = ImageStats.of(vectors, rows_at_once=77)
    images = vectors.image_NI.astype(float)
    np.testing.assert_allclose(stats.mean, images.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(stats.std, images.std(axis=0), rtol=1e-6)


def test_the_rate_warms_up_and_falls_along_a_cosine():
    config = TrainConfig(steps=20, dropout=0, lr=0.8, warmup_fraction=0.2)
    rates = [learning_rate(step, config.recipe) for step in (0, 1, 3, 4, 12, 19)]
    np.testing.assert_allclose(rates, [0.2, 0.4, 0.8, 0.8, 0.4, 0.8 * (1 + np.cos(np.pi * 15 / 16)) / 2])


def test_a_loss_that_is_no_number_aborts_and_leaves_nothing(tmp_path):
    image = np.full((40, 24), np.nan)
    with pytest.raises(TrainingError, match="found nan at step 0"):
        train(planted(tmp_path / "v", 40, image=image), SMALL, tmp_path / "f", encoder_record=encoder_record(**DIMS))
    assert not (tmp_path / "f").exists()


def test_vectors_of_another_encoder_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"wanted vectors of \(6, 5\)"):
        train(planted(tmp_path / "v"), SMALL, tmp_path / "f", encoder_record=encoder_record())


def test_the_recipes_are_those_of_the_trial():
    assert (FILTER.steps, FILTER.dropout, INDUCED.steps, INDUCED.dropout) == (400, 0.5, 200, 0.1)
    assert FILTER.model_copy(update={"steps": 200, "dropout": 0.1}) == INDUCED
    with pytest.raises(ValueError, match="step"):
        TrainConfig(step=1, dropout=0)


def units(rows, dim, seed):
    vectors = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def naive_recall(queries, candidates, captions, k):
    """By sorting: is a pair with the query's caption among the k best."""
    hits = 0
    for query, caption in zip(queries, captions, strict=True):
        best = sorted(range(len(candidates)), key=lambda j: -float(query @ candidates[j]))[:k]
        hits += any(captions[j] == caption for j in best)
    return hits / len(queries)


def test_retrieval_against_a_plain_reference(monkeypatch):
    monkeypatch.setattr("models.metrics.BLOCK_ROWS", 16)
    images, texts = units(50, 4, 0), units(50, 4, 1)
    captions = [f"c{i % 20}" for i in range(50)]
    found = retrieval(images, texts, captions, ks=(1, 5))
    wanted = {}
    for k in (1, 5):
        sides = naive_recall(images, texts, captions, k), naive_recall(texts, images, captions, k)
        wanted |= {f"image_to_text_r{k}": sides[0], f"text_to_image_r{k}": sides[1], f"r{k}": sum(sides) / 2}
    assert found == pytest.approx(wanted)
    assert 0 < found["r1"] < found["r5"] < 1


def test_equal_captions_are_right_for_each_other_and_ties_are_not():
    eye = np.eye(3, dtype=np.float32)
    swapped = eye[[1, 0, 2]]
    assert retrieval(eye, swapped, ["a", "b", "c"], ks=(1,))["r1"] == pytest.approx(1 / 3)
    assert retrieval(eye, swapped, ["a", "a", "c"], ks=(1,))["r1"] == 1
    same = np.ones((3, 3), np.float32)
    assert retrieval(same, same, ["a", "b", "c"], ks=(1, 2)) == dict.fromkeys(retrieval(eye, eye, "abc", ks=(1, 2)), 0)
    broken = np.array([[np.nan] * 3, eye[1], eye[2]], np.float32)
    found = retrieval(broken, eye, ["a", "b", "c"], ks=(1,))
    assert (found["image_to_text_r1"], found["text_to_image_r1"]) == pytest.approx((2 / 3, 2 / 3))


def test_classification_counts_images_and_classes():
    classes = np.eye(3, dtype=np.float32)
    images, labels = classes[[0, 0, 0, 0, 1, 2]], np.array([0, 0, 0, 0, 1, 1])  # no image of class 2
    assert classification(images, labels, classes) == pytest.approx({"top1": 5 / 6, "mean_per_class": (1 + 0.5) / 2})
    assert classification(images, labels, np.ones((3, 3), np.float32))["top1"] == 0


def test_evaluate_with_labels_averages_the_templates(tmp_path):
    """Identity heads over planted vectors: the words' vectors are known, so is every class."""
    heads = Heads(np.eye(2, dtype=np.float32), np.zeros(2, np.float32), np.eye(2, dtype=np.float32), 2.66)
    save_filter(tmp_path / "f", heads, encoder_record=encoder_record(2, 2))
    uids = [f"{i:032x}" for i in range(4)]
    # The second is at 52 degrees: nearer to the dog (90) than to "a cat" (0) or to a mean of raw vectors (12), but
    # nearer to the mean of unit vectors (18). The last is a cat that is labelled a dog.
    images = np.array([[1, 0], [0.6157, 0.788], [0, 1], [1, 0.5]])
    write_part(tmp_path / "v" / "part-0.arrow", uids, images, images, ["a", "b", "c", "d"])
    words = {"a cat": [2.0, 0], "the cat": [0.8, 0.6], "a dog": [0, 1.0], "the dog": [0, 3.0]}
    labels = dict(zip(uids, ["cat", "cat", "dog", "dog"], strict=True)) | {"f" * 32: "dog"}
    found = evaluate(
        Filter.load(tmp_path / "f"),
        Vectors.open(tmp_path / "v"),
        labels=labels,
        encode_texts=lambda texts: np.array([words[text] for text in texts]),
        templates=("a {}", "the {}"),
    )
    assert (found["top1"], found["mean_per_class"], found["r1"]) == (0.75, 0.75, 1)
    assert FilterRecord.read(tmp_path / "f").embed_dim == 2
