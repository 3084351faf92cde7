"""Evaluation sets with pixels: the same numbers as clip_benchmark's own code, DataComp's metrics, absent sets."""

import io
import json

import numpy as np
import pytest
import torch
from clip_benchmark.datasets.builder import build_wds_dataset, image_captions_collate_fn
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, f1_score, jaccard_score
from test_models_encoder import tiny_clip
from test_models_filters import random_heads
from wds import from_corpus, image_bytes, write_set

from etl.samples.corpora import CorpusSpec, build, fetch_weights
from models import clip, tasks
from models.embedder import Embedder
from models.encoder import Encoder
from models.eval_sets import EvalFolder, EvalSetError
from models.evaluate import SetResult, evaluate_folder
from models.filters import Filter, save_filter
from models.metrics import Answers, caption_retrieval, jaccard, jaccard_means

TEMPLATES = ["a photo of {c}.", "a drawing of {c}."]


@pytest.fixture(scope="module")
def samples():
    """96 real pictures and words of art4apps, in 12 categories."""
    return from_corpus(build("art4apps", CorpusSpec(sources=("art4apps",))), 96)


@pytest.fixture(autouse=True)
def plain_numbers(monkeypatch):
    """clip_benchmark takes float() of an array of one value, which numpy 2.4 refuses: it gets a float of its own."""
    monkeypatch.setattr(zeroshot_classification, "float", lambda one: np.asarray(one).item(), raising=False)


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    """Real towers under random heads: an answer is seldom right, and the numbers are those of real vectors."""
    folder = tmp_path_factory.mktemp("model")
    record = clip.build_lit(fetch_weights("efficientnet_lite0"), fetch_weights("minilm"), folder / "encoder")
    save_filter(folder / "heads", random_heads(1280, 384, 256), encoder_record=record)
    return Embedder.load(folder / "encoder", folder / "heads")


class OurVectors:
    """What clip_benchmark asks a model and a tokeniser for, answered with our vectors of what its reader read."""

    def __init__(self, embedder):
        self._embedder, self._texts = embedder, []

    def transform(self, image):
        return torch.from_numpy(self._embedder.encoder.preprocess(image.convert("RGB")))

    def encode_image(self, pixels):
        vectors = self._embedder.encoder.encode_images(pixels.numpy())
        return torch.from_numpy(self._embedder.filter.project_images(vectors))

    def tokenize(self, texts):
        self._texts += texts
        return torch.arange(len(self._texts) - len(texts), len(self._texts))

    def encode_text(self, tokens):
        return torch.from_numpy(self._embedder.embed_texts([self._texts[i] for i in tokens]))


def theirs(folder, model, **loading):
    dataset = build_wds_dataset("ours", model.transform, data_dir=str(folder))
    loader = torch.utils.data.DataLoader(dataset, batch_size=32, **loading)
    return dataset, loader


def test_classification_is_clip_benchmarks_on_a_real_set(samples, embedder, tmp_path):
    classes = sorted({label for _, _, label, _ in samples})
    rows = [{"webp": image, "cls": str(classes.index(label)).encode()} for image, _, label, _ in samples]
    write_set(tmp_path / "s", rows, classes=classes, templates=TEMPLATES)
    model = OurVectors(embedder)
    dataset, loader = theirs(tmp_path / "s", model)
    wanted = zeroshot_classification.evaluate(
        model, loader, model.tokenize, dataset.classes, dataset.templates, "cpu", amp=False
    )
    found = evaluate_folder(embedder, EvalFolder.open(tmp_path / "s"))
    assert (found.num_samples, found.num_broken, len(classes)) == (96, 0, 12)
    names = {"acc1": "top1", "acc5": "top5", "mean_per_class_recall": "mean_per_class"}
    assert {k: found.metrics[name] for k, name in names.items()} == pytest.approx(wanted, abs=1e-6)
    assert 0 < wanted["acc1"] < wanted["acc5"] < 1


WAYS = {"image": "text_to_image", "text": "image_to_text"}
RECALLS = {f"{way}_retrieval_recall@{k}": f"{ours}_r{k}" for way, ours in WAYS.items() for k in (1, 5, 10)}


def both_recalls(samples, embedder, folder):
    """(ours, clip_benchmark's) of a set with two captions an image."""
    captions = [f"{word}\n{label}: {word}" for _, word, label, _ in samples]
    rows = [{"webp": row[0], "txt": text.encode()} for row, text in zip(samples, captions, strict=True)]
    write_set(folder, rows, kind="retrieval")
    model = OurVectors(embedder)
    _, loader = theirs(folder, model, collate_fn=image_captions_collate_fn)
    found = evaluate_folder(embedder, EvalFolder.open(folder))
    return found, zeroshot_retrieval.evaluate(model, loader, model.tokenize, "cpu", amp=False, recall_k_list=[1, 5, 10])


def test_retrieval_with_several_captions_is_clip_benchmarks_on_a_real_set(samples, embedder, tmp_path):
    """One picture is there twice, for cleaner and sweep: its captions tie, so one of the two is left out."""
    once = list({image: (image, *rest) for image, *rest in samples[:50]}.values())
    found, wanted = both_recalls(once, embedder, tmp_path / "s")
    assert len(once) == 49
    assert {k: found.metrics[name] for k, name in RECALLS.items()} == pytest.approx(wanted, abs=1e-6)
    assert found.metrics["r5"] == pytest.approx(
        (wanted["image_retrieval_recall@5"] + wanted["text_retrieval_recall@5"]) / 2
    )
    assert 0 < found.metrics["r1"] < found.metrics["r10"] < 1


def test_where_a_real_picture_is_there_twice_clip_benchmark_lies_between(samples, embedder):
    twins = [row for row in samples if row[1] in ("cleaner", "sweep")]
    chosen = twins + [row for row in samples if row not in twins][:8]
    images, texts = embedder.embed_images([row[0] for row in chosen]), embedder.embed_texts([row[1] for row in chosen])
    ks, rows = range(1, 11), np.arange(10)
    low, high = (caption_retrieval(images, texts, rows, ks, ties_help=flag) for flag in (False, True))
    scores = torch.from_numpy(texts @ images.T)
    for k in ks:
        them = zeroshot_retrieval.recall_at_k(scores, torch.eye(10, dtype=torch.bool), k).mean().item()
        assert low[f"text_to_image_r{k}"] - 1e-6 <= them <= high[f"text_to_image_r{k}"] + 1e-6
    assert sum(high[f"text_to_image_r{k}"] - low[f"text_to_image_r{k}"] for k in ks) == pytest.approx(0.2)


def units(rows, seed):
    """Unit vectors of so few values that many similarities tie exactly."""
    rng = np.random.default_rng(seed)
    return np.eye(4, dtype=np.float32)[rng.integers(0, 4, rows)] * rng.choice([1, 1, -1], (rows, 1)).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 7))
def test_with_ties_clip_benchmark_lies_between_ours_and_ours_with_help(seed, num_classes):
    images, classes = units(20, seed), units(num_classes, seed + 1)
    labels = np.random.default_rng(seed).integers(0, num_classes, 20)
    logits = torch.from_numpy(images @ classes.T)
    ks = (1, min(3, num_classes))
    them = zeroshot_classification.accuracy(logits, torch.from_numpy(labels), ks)
    against, helped = (Answers.of(images, labels, classes, ties_help=flag) for flag in (False, True))
    for k, value in zip(ks, them, strict=True):
        assert against.top(k).mean() - 1e-6 <= value <= helped.top(k).mean() + 1e-6
    image_of_text = np.repeat(np.arange(20), 2)
    texts = units(40, seed + 2)
    low, high = (caption_retrieval(images, texts, image_of_text, (5,), ties_help=flag) for flag in (False, True))
    right = torch.zeros(40, 20, dtype=torch.bool)
    right[torch.arange(40), torch.from_numpy(image_of_text)] = True
    found = zeroshot_retrieval.recall_at_k(torch.from_numpy(texts @ images.T), right, 5)
    assert low["text_to_image_r5"] - 1e-6 <= float((found > 0).float().mean()) <= high["text_to_image_r5"] + 1e-6


def test_metrics_of_predictions_are_scikit_learns():
    rng = np.random.default_rng(0)
    images, classes = rng.standard_normal((200, 8)), rng.standard_normal((9, 8))
    labels, groups = rng.integers(0, 7, 200), rng.choice([0, 1, 3], 200)  # two classes and group 2 do not occur
    answers = Answers.of(images, labels, classes)
    said = (images @ classes.T).argmax(axis=1)
    best5 = np.argsort(-(images @ classes.T), axis=1)[:, :5]
    assert answers.predicted_N.tolist() == said.tolist()
    assert answers.metrics() == pytest.approx(
        {
            "top1": (said == labels).mean(),
            "top5": (best5 == labels[:, None]).any(axis=1).mean(),
            "mean_per_class": balanced_accuracy_score(labels, said),
        }
    )
    assert answers.macro_f1() == pytest.approx(f1_score(labels, said, average="macro", labels=np.unique(labels)))
    for k, right in ((1, said == labels), (5, (best5 == labels[:, None]).any(axis=1))):
        assert answers.worst_group(groups, k) == pytest.approx(min(right[groups == g].mean() for g in (0, 1, 3)))
    with pytest.raises(ValueError, match="wanted labels from 0 to 8"):
        Answers.of(images, labels + 7, classes)


def test_an_answer_that_ties_with_a_wrong_one_is_wrong_in_every_metric():
    same = np.ones((3, 2), np.float32)
    answers = Answers.of(same, np.array([0, 1, 2]), same)
    assert (answers.metrics()["top1"], answers.macro_f1()) == (0, 0)
    assert jaccard(np.ones(4), np.array([True, False, True, False])) == 0


def test_jaccard_is_scikit_learns():
    rng = np.random.default_rng(3)
    for size in (5, 6, 10, 12):
        similarity, is_right = rng.standard_normal(size), np.arange(size) < 3
        rng.shuffle(is_right)
        chosen = np.isin(np.arange(size), np.argsort(similarity)[-3:])
        assert jaccard(similarity, is_right) == pytest.approx(jaccard_score(is_right, chosen))
    assert jaccard_means([0.1, 0.2, 0.5, 1.0], [5, 6, 10, 12]) == pytest.approx(
        {"jaccard": 0.45, "jaccard_5_6": 0.15, "jaccard_10_12": 0.75}
    )
    assert jaccard_means([0.5], [5]) == {"jaccard": 0.5, "jaccard_5_6": 0.5}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A CLIP of random weights whose towers share a space."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_clip(folder / "encoder")
    return Embedder.load(folder / "encoder")


def npy(*values):
    np.save(buffer := io.BytesIO(), np.array(values))
    return buffer.getvalue()


def noise(seed):
    return image_bytes(
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype=np.uint8)), "png"
    )


def test_groups_come_from_the_metadata_and_broken_images_are_misses(model, tmp_path):
    rows = [{"png": noise(i), "cls": b"%d" % (i % 6), "npy": npy(i % 2, 7)} for i in range(40)]
    rows[3]["png"] = b"<html>"
    write_set(tmp_path / "s", rows, classes=list("abcdef"), templates=["{}"], per_shard=7)
    found = evaluate_folder(model, EvalFolder.open(tmp_path / "s"))
    vectors, classes = (
        model.embed_images([row["png"] for row in rows]),
        model.embed_classes(list("abcdef"), ["{}"]),
    )
    right5 = np.array([i != 3 and (i % 6) in np.argsort(-(vectors[i] @ classes.T))[:5] for i in range(40)])
    assert (found.num_samples, found.num_broken) == (40, 1)
    assert found.metrics["top5"] == pytest.approx(right5.mean())
    assert found.metrics["worst_group_top5"] == pytest.approx(min(right5[0::2].mean(), right5[1::2].mean()))
    assert found.metrics["worst_group_top5"] < found.metrics["top5"]


def test_an_association_is_scored_as_datacomp_does(model, tmp_path):
    names = [f"n{i}" for i in range(10)]
    rows = []
    for cue in ("Apple", "dog"):
        asked = {"cue": cue, "candidates": names, "associations": names[:3]}
        rows.append({"json": json.dumps(asked).encode(), **{f"{i}.png": noise(i) for i in range(10)}})
    write_set(tmp_path / "s", rows, kind="association")
    images, texts = (
        model.embed_images([noise(i) for i in range(10)]),
        model.embed_texts(["An apple", "A dog"]),
    )
    chosen = [np.isin(np.arange(10), np.argsort(images @ text)[-3:]) for text in texts]
    wanted = np.mean([jaccard_score(np.arange(10) < 3, pick) for pick in chosen])
    found = evaluate_folder(model, EvalFolder.open(tmp_path / "s"))
    assert found == SetResult({"jaccard": pytest.approx(wanted), "jaccard_10_12": pytest.approx(wanted)}, 2, 0)


def test_the_table_is_datacomps_and_absent_or_cut_sets_do_not_count(model, tmp_path, monkeypatch):
    by_metric = {m: sum(t.metric == m for t in tasks.DATACOMP) for m in {t.metric for t in tasks.DATACOMP}}
    assert len({task.folder for task in tasks.DATACOMP}) == 38
    assert by_metric == {"top1": 27, "mean_per_class": 4, "r1": 2, "jaccard_10_12": 1, "macro_f1": 1,
                         "worst_group_top1": 2, "worst_group_top5": 1}  # fmt: skip
    rows = [{"png": noise(i), "cls": b"%d" % (i % 2)} for i in range(6)]
    for folder in ("wds_mnist_test", "wds_stl10_test", "wds_vtab-dtd_test"):
        write_set(tmp_path / folder, rows, classes=["a", "b"], templates=["{}"])
    cut = {"STL-10": 7}  # one more than there are
    table = tuple(t._replace(size=cut.get(t.name, 6)) for t in tasks.DATACOMP)
    monkeypatch.setattr(tasks, "DATACOMP", table)
    results = {r.task.name: r for r in tasks.evaluate_datacomp(model, tmp_path)}
    assert [name for name, r in results.items() if r.result] == ["Describable Textures", "MNIST", "STL-10"]
    top1 = results["MNIST"].result.metrics["top1"]
    assert (results["MNIST"].value, results["STL-10"].value, results["Flickr"].value) == (top1, None, None)
    found = tasks.averages(list(results.values()))
    assert found == {
        "imagenet": (None, 0, 1), "shifts": (None, 0, 6), "vtab": (top1, 1, 13), "retrieval": (None, 0, 3),
        "average": (top1, 2, 38),
    }  # fmt: skip


def test_sets_that_cannot_be_read_say_why(model, tmp_path):
    rows = [{"png": noise(0), "cls": b"0"}]
    facts = {"classes": ["a", "b"], "templates": ["{}"]}

    def said(name, change=lambda folder: None, rows=rows, **other):
        folder = write_set(tmp_path / name, rows, **(facts | other))
        change(folder)
        with pytest.raises(EvalSetError) as error:
            evaluate_folder(model, EvalFolder.open(folder))
        return str(error.value)

    assert "wanted one of classification, retrieval, association" in said("m", kind="multilabel")
    assert "nshards.txt" in said("n", lambda folder: (folder / "test/nshards.txt").unlink())
    assert "found no" in said("o", lambda folder: (folder / "test/nshards.txt").write_text("2"))
    assert "classnames.txt" in said("p", lambda folder: (folder / "classnames.txt").write_text(""))
    assert "a whole tar" in said("q", lambda folder: (folder / "test/0.tar").write_bytes(b"x" * 700))
    assert "wanted labels below 2" in said("r", rows=[{"png": noise(0), "cls": b"2"}])
    assert "a label in digits" in said("s", rows=[{"png": noise(0), "cls": b"-1"}])
    assert "wanted an image" in said("t", rows=[{"gif": b"", "cls": b"1"}])
    assert "all or none" in said("u", rows=[*rows, rows[0] | {"npy": npy(1)}])
    assert "wanted .txt" in said("v", kind="retrieval")
    assert "the number of shards" in said("w", rows=[])


def test_towers_without_a_space_want_heads(tmp_path):
    record = tiny_clip(tmp_path / "encoder")
    encoder = Encoder.load(tmp_path / "encoder")
    encoder.record = record.model_copy(update={"shares_space": False})
    with pytest.raises(ValueError, match="share no space"):
        Embedder(encoder)


def test_an_embedder_with_heads_scores_as_the_filter(embedder, samples):
    images, texts = [row[0] for row in samples[:8]], [row[1] for row in samples[:8]]
    encoder, filter = embedder.encoder, embedder.filter
    wanted = filter.score(encoder.encode_images([encoder.preprocess(i) for i in images]), encoder.encode_texts(texts))
    found = (embedder.embed_images(images) * embedder.embed_texts(texts)).sum(axis=1)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert isinstance(filter, Filter)
