"""The steps that make a filter: trained, fine-tuned, averaged. On the stored vectors of the tiny recipe."""

import json

import numpy as np
import pytest

from etl.config import load
from etl.filters.recipe import FilterRecipe, datasets
from etl.loop.loop import Loop
from etl.loop.training import Trainer, labels_of
from etl.project import Project
from etl.stage import UserError
from models.data import Vectors
from models.encoder import Encoder
from models.evaluate import evaluate
from models.filters import Filter, Heads
from models.train import ImageStats

SAID: list[str] = []
TEMPLATES = ["a picture of {}", "some {c}"]


def recipe_of(tiny, output, *overrides):
    """The recipe with things, a labelled set, as the cleaner dataset; its runs are kept in `output`."""
    project = tiny[0]
    settings = [f"output={output}", f"tables={project.config.tables_root}", "loop.seeds=[0]", "loop.headline_parts=[]",
                "datasets.things.kind=filter", "loop.filter_dataset=clean", "loop.finetune.dataset=things",
                "loop.finetune.steps=20", "loop.finetune.batch_size=32", *overrides]  # fmt: skip
    other = Project(load(["tiny"], settings), SAID.append)
    other.__dict__["store"] = project.store
    loop = Loop(other)
    return FilterRecipe(other, Trainer(other, loop._vectors("pool"), ()), loop.data_of)


def heads_of(trained):
    return Heads.load(trained.folder / "heads.safetensors")


@pytest.fixture(scope="module")
def averaged(tiny, tmp_path_factory):
    output = tmp_path_factory.mktemp("recipe")
    return recipe_of(tiny, output), output, recipe_of(tiny, output).make(0)


def test_the_final_filter_is_the_mean_of_the_weights_before_and_after(tiny, averaged):
    _, _, made = averaged
    before, after, final = (heads_of(part).tensors() for part in (made.before, made.after, made.final))
    for name, tensor in final.items():
        np.testing.assert_allclose(tensor, 0.5 * before[name] + 0.5 * after[name], rtol=1e-6, atol=1e-7)
        assert not np.array_equal(before[name], after[name])
    trained = heads_of(tiny[1].filters[0].final)
    np.testing.assert_array_equal(heads_of(made.before).text_weight, trained.text_weight)  # as without fine-tuning
    assert made.folders() == {
        "dfn": made.final.folder, "dfn_before": made.before.folder
    }  # fmt: skip


def test_fine_tuning_moves_the_filter_towards_what_it_is_tuned_on(averaged):
    recipe, _, made = averaged
    vectors = recipe.data_of("things").vectors
    r5 = [evaluate(Filter.load(part.folder), Vectors.open(vectors))["r5"] for part in (made.before, made.after)]
    assert r5[1] > r5[0]
    assert (made.before.folder / "run.json").exists() and json.loads((made.final.folder / "run.json").read_text())[
        "losses"
    ] == []


def test_made_again_nothing_is_trained(averaged):
    recipe, _, made = averaged
    SAID.clear()
    assert recipe.make(0) == made
    assert [line.split("seed")[0].split()[1] for line in SAID if "up to date" in line][-3:] == [
        "dfn", "dfn_after", "dfn_averaged"
    ]  # fmt: skip


def test_captions_of_a_labelled_set_are_its_classes_in_templates(tiny, averaged):
    recipe = recipe_of(tiny, averaged[1], f"loop.finetune.templates={json.dumps(TEMPLATES)}")
    data = recipe._finetuning_data(recipe.project.config.loop.finetune, seed=0)
    vectors, labels = Vectors.open(data.vectors), labels_of(recipe.project.sources["things"].labels)
    assert {len(vectors)} == {
        len([uid for uid in Vectors.open(recipe.data_of("things").vectors).uids if uid in labels])
    }
    allowed = {uid: [t.format(labels[uid], c=labels[uid]) for t in TEMPLATES] for uid in vectors.uids}
    assert all(caption in allowed[uid] for uid, caption in zip(vectors.uids, vectors.captions, strict=True))
    assert {allowed[u].index(c) for u, c in zip(vectors.uids, vectors.captions, strict=True)} == {0, 1}
    texts = Encoder.load(recipe.project.encoder[1]).encode_texts(vectors.captions)
    np.testing.assert_allclose(vectors.text_NT, texts, atol=2e-3)
    other = recipe._finetuning_data(recipe.project.config.loop.finetune, seed=1)
    assert Vectors.open(other.vectors).captions != vectors.captions


def test_templates_want_labels_and_two_datasets_want_a_choice(tiny, averaged):
    recipe = recipe_of(tiny, averaged[1], 'loop.finetune.templates=["{}"]')
    finetune = recipe.project.config.loop.finetune.model_copy(update={"dataset": "clean"})
    recipe.project.sources["clean"] = recipe.project.sources["clean"].model_copy(update={"labels": None})
    with pytest.raises(UserError, match="wanted labels of clean"):
        recipe._finetuning_data(finetune, seed=0)
    two = load(["tiny"], ["datasets.things.kind=filter", "loop.headline_parts=[]"])
    with pytest.raises(UserError, match=r"found 2 \(clean, things\); fix: name one"):
        datasets(Project(two))
    assert datasets(recipe.project) == ("clean", "things")


def test_filters_begin_with_a_given_one(tiny, averaged, tmp_path):
    _, _, made = averaged
    recipe = recipe_of(tiny, tmp_path, f"loop.init={made.before.folder}", "loop.finetune=null", "loop.filter.steps=1")
    begun = recipe.make(0)
    assert begun.final is begun.before and begun.after is None
    moved = np.abs(heads_of(begun.before).visual_weight - heads_of(made.before).visual_weight).max()
    assert 0 < moved < 1e-3 * 1.01 / ImageStats.of(Vectors.open(recipe.trainer.stats_from)).std.clip(1e-3).min()
