"""The loop: open_clip's losses step by step, the same gradient in parts, and a kill that leaves no trace."""

import copy
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from training_data import furthest, job, tiny_encoder, weights

from models import clip
from models.checkpoint import MODEL, STATE, CheckpointError, Checkpoints
from models.data import Vectors, write_part
from models.encoder import Encoder
from models.exported import index_folder
from models.heads import HeadsModule, VectorSource
from models.job import TrainJob
from models.order import draws
from models.pairs import Pairs
from models.pixel_source import PixelSource
from models.pretrain import ERROR, run, run_rank
from models.recipe import Recipe, TrainingError
from models.step import Trainee, parameter_groups
from models.train import fit

ROOT = Path(__file__).resolve().parent.parent
RECIPE = Recipe(steps=6, batch_size=8, lr=1e-3, warmup_steps=2, weight_decay=0.2, eps=1e-6)


def setting(root: Path, **vision):
    """(model, source, record) of a small job; without dropout of patches unless told."""
    job(root)
    shutil.rmtree(root / "encoder")
    model, record = clip.load(tiny_encoder(root / "encoder", {"patch_dropout": 0.0} | vision))
    pairs = Pairs.open(index_folder(str(root / "data"), root / "pairs"))
    return model, PixelSource(pairs, record, clip.load_tokenizer(root / "encoder", record), seed=0), record


def trained(model, source, recipe=RECIPE, **options):
    """(losses, weights) of a copy of the model."""
    model = copy.deepcopy(model)
    torch.manual_seed(0)
    losses = fit(model, source, recipe, **options)
    return losses, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def theirs(model, source, recipe: Recipe) -> list[float]:
    """The losses of open_clip's own trainer: its step function, schedule, loss, and optimiser groups as in its main."""
    from open_clip_train.params import parse_args
    from open_clip_train.scheduler import cosine_lr
    from open_clip_train.train import train_one_epoch

    losses: list[float] = []

    class Recorded(open_clip.ClipLoss):
        def forward(self, *args, **options):
            found = super().forward(*args, **options)
            losses.append(found["contrastive_loss"].item())
            return found

    model = copy.deepcopy(model)
    model.output_dict = True

    def exclude(n, p):
        return p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n

    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if exclude(n, p)], "weight_decay": 0.0},
        {"params": [p for n, p in named if not exclude(n, p)], "weight_decay": recipe.weight_decay},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps)

    class Loader(list):
        num_batches, num_samples = recipe.steps, recipe.steps * recipe.batch_size

    loader = Loader(source.batches(draws(len(source), recipe), "cpu"))
    args = parse_args(["--model", "ViT-B-32", "--precision", "fp32", "--batch-size", str(recipe.batch_size)])
    clipped = {"grad_clip_norm": recipe.grad_clip_norm}
    vars(args).update(device="cpu", rank=0, world_size=1, distill=False, wandb=False, **clipped)
    data = {"train": SimpleNamespace(set_epoch=lambda epoch: None, dataloader=loader)}
    schedule = cosine_lr(optimizer, recipe.lr, recipe.warmup_steps, recipe.steps)
    torch.manual_seed(0)
    train_one_epoch(model, data, Recorded(), 0, optimizer, None, schedule, None, args)
    return losses


def test_fifty_losses_are_those_of_open_clip_s_trainer(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    model, source, _ = setting(tmp_path, patch_dropout=0.5)
    recipe = RECIPE.model_copy(update={"steps": 50, "warmup_steps": 10, "grad_clip_norm": 0.5})
    ours, _ = trained(model, source, recipe)
    wanted = theirs(model, source, recipe)
    assert len(wanted) == 50 and wanted[-1] < wanted[0] - 0.3
    np.testing.assert_allclose(ours, wanted, atol=1e-4)
    other = theirs(model, source, recipe.model_copy(update={"betas": (0.9, 0.999)}))
    assert np.abs(np.array(other) - wanted).max() > 1e-3  # the comparison sees a hyperparameter


def test_a_batch_in_parts_has_the_gradient_of_the_whole(tmp_path):
    model, source, _ = setting(tmp_path)
    whole, whole_weights = trained(model, source)
    for accumulate in (2, 4):
        parts, part_weights = trained(model, source, RECIPE.model_copy(update={"accumulate": accumulate}))
        np.testing.assert_allclose(parts, whole, atol=1e-4)
        assert furthest(part_weights, whole_weights) < 1e-4
    alone, _ = trained(model, source, RECIPE.model_copy(update={"batch_size": 2}))
    assert abs(alone[0] - whole[0]) > 0.5  # the loss of two rows is another than that of eight


def test_the_temperature_s_gradient_is_taken_once_in_however_many_parts(tmp_path):
    model, source, _ = setting(tmp_path)
    images, texts = next(iter(source.batches(draws(len(source), RECIPE), "cpu")))
    found = []
    for accumulate in (1, 4):
        mine = copy.deepcopy(model).double()  # float32 rounds by more than 1e-6 on some CPUs
        Trainee(mine, RECIPE.model_copy(update={"accumulate": accumulate}), "cpu").step(images.double(), texts, 1e-3)
        found.append({name: weight.grad for name, weight in mine.named_parameters()})
    assert found[0]["logit_scale"].abs() > 1e-3
    assert furthest(*found) < 1e-12


def test_bf16_is_near_and_not_the_same(tmp_path):
    model, source, _ = setting(tmp_path)
    exact, _ = trained(model, source)
    rough, rough_weights = trained(model, source, RECIPE.model_copy(update={"precision": "bf16"}))
    assert 0 < np.abs(np.array(exact) - rough).max() < 0.05
    assert {tensor.dtype for tensor in rough_weights.values()} == {torch.float32}


def test_a_long_gradient_is_cut_to_its_norm(tmp_path):
    """What is left in the weights' gradients when AdamW takes its step has the norm that was asked for."""
    model, source, _ = setting(tmp_path)
    seen = []
    whole = nn.utils.clip_grad_norm_

    def noted(parameters, norm):
        parameters = list(parameters)
        whole(parameters, norm)
        seen.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).norm().item())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.utils, "clip_grad_norm_", noted)
        trained(model, source, RECIPE.model_copy(update={"grad_clip_norm": 0.01}))
    np.testing.assert_allclose(seen, [0.01] * 6, rtol=1e-3)


def test_only_matrices_decay():
    model = nn.ModuleDict({"ln_1": nn.Linear(2, 2), "mlp": nn.Linear(2, 3), "norm": nn.LayerNorm(2)})
    model.register_parameter("logit_scale", nn.Parameter(torch.ones(1, 1)))
    model["mlp"].bias.requires_grad_(False)
    decayed, others = parameter_groups(model, 0.2)
    assert [p.shape for p in decayed["params"]] == [(3, 2)] and decayed["weight_decay"] == 0.2
    assert len(others["params"]) == 5 and others["weight_decay"] == 0


def test_the_temperature_stops_at_a_hundred(tmp_path):
    model, source, _ = setting(tmp_path)
    nn.init.constant_(model.logit_scale, 10.0)
    _, found = trained(model, source, RECIPE.model_copy(update={"steps": 1}))
    assert found["logit_scale"].item() == pytest.approx(np.log(100))


class Frozen(nn.Module):
    """Towers that do not learn, under heads that do: pixels in."""

    def __init__(self, towers, heads):
        super().__init__()
        self.towers, self.heads = towers.requires_grad_(False), heads
        self.logit_scale = heads.logit_scale

    def forward(self, images, texts):
        self.towers.eval()
        return self.heads(
            self.towers.encode_image(images, normalize=True), self.towers.encode_text(texts, normalize=True)
        )


def test_heads_on_stored_vectors_learn_what_they_learn_on_pixels(tmp_path):
    """The vectors are float16, the pixels are not: losses and weights within a thousandth over forty steps."""
    model, source, record = setting(tmp_path)
    encoder = Encoder.load(tmp_path / "encoder")
    rows = [source._pairs[n] for n in range(len(source))]
    images = encoder.encode_images([encoder.preprocess(row.read()) for row in rows])
    texts = encoder.encode_texts([row.text for row in rows])
    vectors = tmp_path / "v" / "part-0.arrow"
    write_part(vectors, [row.uid for row in rows], images.astype(np.float16), texts.astype(np.float16))
    torch.manual_seed(1)
    heads = HeadsModule(record.image_dim, record.text_dim, embed_dim=8, init_log_scale=2.66)
    recipe = RECIPE.model_copy(update={"steps": 40})
    stored, stored_weights = trained(heads, VectorSource(Vectors.open(vectors.parent)), recipe)
    on_pixels, pixel_weights = trained(Frozen(model, heads), source, recipe)
    learnt = {name.removeprefix("heads."): t for name, t in pixel_weights.items() if name.startswith("heads.")}
    assert stored[-1] < stored[0] - 0.05
    np.testing.assert_allclose(on_pixels, stored, atol=1e-3)
    assert furthest(learnt, stored_weights) < 1e-3
    frozen = {name.removeprefix("towers."): t for name, t in pixel_weights.items() if name.startswith("towers.")}
    assert furthest(frozen, model.state_dict()) == 0


class Breaks:
    """A source whose images are no numbers from one step on."""

    def __init__(self, source, step):
        self.source, self.step = source, step

    def __len__(self):
        return len(self.source)

    def batches(self, order, device):
        for step, (images, texts) in enumerate(self.source.batches(order, device)):
            yield (images * float("nan") if step >= self.step else images), texts


def test_a_loss_that_is_no_number_aborts_and_the_last_checkpoint_stays(tmp_path):
    model, source, _ = setting(tmp_path)
    checkpoints = Checkpoints(tmp_path / "c", "run", every_steps=2)
    with pytest.raises(TrainingError, match=r"found nan at step 5 with lr 0.001; fix: .*grad_clip_norm"):
        trained(model, Breaks(source, 5), checkpoints=checkpoints)
    saved = checkpoints.newest()
    assert saved.step == 4 and all(tensor.isfinite().all() for tensor in saved.model.values())
    whole, _ = trained(model, source)
    assert trained(model, source, checkpoints=checkpoints)[0] == whole


def test_weights_that_are_no_numbers_are_never_a_checkpoint(tmp_path):
    model, source, _ = setting(tmp_path)
    checkpoints = Checkpoints(tmp_path / "c", "run", every_steps=2)

    def poison(step, loss):
        if step == 3:
            next(victim.parameters()).data[0] = float("nan")

    victim = copy.deepcopy(model)
    with pytest.raises(TrainingError, match=r"wanted finite weights; found .* after step 3"):
        fit(victim, source, RECIPE, checkpoints=checkpoints, on_step=poison)
    assert checkpoints.newest().step == 2


def test_a_batch_that_parts_cannot_share_is_refused(tmp_path):
    model, source, _ = setting(tmp_path)
    with pytest.raises(TrainingError, match="1 ranks x 3 parts share equally; found 8"):
        fit(model, source, RECIPE.model_copy(update={"accumulate": 3}))


def test_the_last_checkpoints_stay_and_what_is_not_whole_is_passed_over(tmp_path):
    said = []
    checkpoints = Checkpoints(tmp_path / "c", "run", every_steps=1, keep=2, say=said.append)
    tensors = {"x": torch.arange(3.0)}
    assert checkpoints.newest() is None
    for step in (1, 2, 3):
        checkpoints.save(step, tensors, {"step": torch.tensor(step)})
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["step-00000002", "step-00000003"]
    last = tmp_path / "c" / "step-00000003"
    assert checkpoints.newest().step == 3
    for name in (MODEL, STATE, "checkpoint.json"):
        whole = (last / name).read_bytes()
        other = (
            whole.replace(b'"step": 3', b'"step": 4') if name.endswith("json") else whole[:-1] + bytes([whole[-1] ^ 1])
        )
        for damaged in (whole[:-1], other, b""):
            (last / name).write_bytes(damaged)
            assert checkpoints.newest().step == 2
            assert re.match("checkpoint step-00000003 is not whole: ignored", said[-1])
        (last / name).unlink()
        assert checkpoints.newest().step == 2
        (last / name).write_bytes(whole)
    assert checkpoints.newest().step == 3 and torch.equal(checkpoints.newest().model["x"], tensors["x"])
    with pytest.raises(
        CheckpointError, match=r"wanted checkpoints of run other in .*; found one of run, with other data"
    ):
        Checkpoints(tmp_path / "c", "other", every_steps=1).newest()


def test_a_checkpoint_that_was_being_written_is_ignored_and_then_removed(tmp_path, monkeypatch):
    said = []
    checkpoints = Checkpoints(tmp_path / "c", "run", every_steps=1, say=said.append)
    checkpoints.save(1, {"x": torch.ones(1)}, {})
    for name in ("checkpoint.fsync", "checkpoint.sha256_file"):
        with monkeypatch.context() as patch:
            patch.setattr(f"models.{name}", lambda path: 1 / 0)  # stands for a kill
            with pytest.raises(ZeroDivisionError):
                checkpoints.save(2, {"x": torch.zeros(1)}, {})
        assert checkpoints.newest().step == 1
        assert re.fullmatch(r"checkpoint \.step-00000002\.\w+\.tmp was not finished: ignored", said[-1])
    checkpoints.save(2, {"x": torch.zeros(1)}, {})
    assert checkpoints.newest().step == 2
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["step-00000001", "step-00000002"]


def test_a_pickle_in_a_checkpoint_is_not_run(tmp_path):
    import pickle

    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    checkpoints = Checkpoints(tmp_path / "c", "run", every_steps=1)
    folder = checkpoints.save(1, {"x": torch.ones(1)}, {})
    bad = pickle.dumps(Payload())
    (folder / MODEL).write_bytes(bad)
    assert checkpoints.newest() is None
    facts = json.loads((folder / "checkpoint.json").read_text())
    del facts["sha256"]
    from models.checkpoint import _digest
    from models.records import sha256_file

    facts["files"][MODEL] = sha256_file(folder / MODEL)  # whoever wrote it can hash too
    (folder / "checkpoint.json").write_text(json.dumps(facts | {"sha256": _digest(facts)}))
    assert checkpoints.newest() is None and not (tmp_path / "ran").exists()


def test_more_ranks_than_wrote_a_checkpoint_is_an_error(tmp_path):
    model, source, _ = setting(tmp_path)
    checkpoints = Checkpoints(tmp_path / "c", "run", every_steps=2)
    trained(model, source, checkpoints=checkpoints)
    state = tmp_path / "c" / "step-00000006" / STATE
    tensors = load_file(state)
    checkpoints.save(8, load_file(state.parent / MODEL), tensors | {"random.cpu.1": tensors["random.cpu.0"].clone()})
    with pytest.raises(CheckpointError, match=r"wanted as many ranks as wrote the checkpoints in .*; found 1"):
        trained(model, source, checkpoints=checkpoints)


def test_a_job_that_is_resumed_at_any_checkpoint_ends_as_one_that_was_not(tmp_path):
    steps = []
    whole = run(job(tmp_path, keep_checkpoints=9), on_step=lambda *at: steps.append(at))
    assert steps == list(enumerate(whole["losses"])) and len(steps) == 12
    for step in (2, 6, 10):
        other = tmp_path / f"at-{step}"
        shutil.copytree(tmp_path / "run" / "checkpoints", other / "checkpoints")
        for later in range(step + 2, 13, 2):
            shutil.rmtree(other / "checkpoints" / f"step-{later:08d}")
        said = []
        again = run(job(tmp_path, other.name), say=said.append)
        assert f"going on after step {step}" in said
        assert again["losses"] == whole["losses"]
        assert furthest(weights(other / "clip"), weights(tmp_path / "run" / "clip")) == 0


def test_a_job_that_is_done_is_not_done_again_and_another_one_is_refused_its_folder(tmp_path):
    said = []
    first = run(job(tmp_path, samples_seen=16))
    assert run(job(tmp_path, samples_seen=16), say=said.append) == first
    assert said == ["up to date"]
    with pytest.raises(CheckpointError, match=r"wanted a folder of this run .*; fix: name another folder"):
        run(job(tmp_path, samples_seen=16, seed=1))
    (tmp_path / "run" / "result.json").unlink()
    assert run(job(tmp_path, samples_seen=16))["losses"] == first["losses"]


def test_seeds_and_recipes_give_other_runs_and_a_fine_tuned_model_loads_with_its_own_version(tmp_path):
    first = run(job(tmp_path, "a", samples_seen=16))
    other = run(job(tmp_path, "b", samples_seen=16, seed=1))
    assert first["losses"] != other["losses"] and first["run"] != other["run"]
    records = [clip.EncoderRecord.read(tmp_path / name) for name in ("encoder", "a/clip", "b/clip")]
    assert len({record.version for record in records}) == 3
    _, record = clip.load(tmp_path / "a" / "clip")
    assert record.model_copy(update={"name": "tiny-trained", "weights_sha256": records[0].weights_sha256}) == records[0]
    assert record.name == "clip"


def test_from_scratch_the_seed_draws_the_first_weights(tmp_path, monkeypatch):
    from models import scales

    tiny_encoder(tmp_path / "encoder")  # makes its architecture known
    scale = scales.SCALES["laptop"].model_copy(update={"architecture": "tiny-trained"})
    monkeypatch.setitem(scales.SCALES, "laptop", scale)
    losses = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        given = job(tmp_path, name, init=None, seed=seed, samples_seen=16)
        losses[name] = run(given)["losses"]
    assert losses["a"] == losses["b"] != losses["c"]

    def first(name, seed):
        return weights(tmp_path / name / f"init-tiny-trained-{seed}")

    same, other = (furthest(first("a", 0), first(n, seed)) for n, seed in (("b", 0), ("c", 1)))
    assert same == 0 and other > 0.01


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{data: x, out: y, stepz: 1}", "stepz: Extra inputs"),
        ("{data: x}", "out: Field required"),
        ("{data: x, out: y, samples_seen: 0}", "samples_seen: .*greater than 0"),
        ("{data: [", "wanted a job in YAML or JSON; found .*"),
    ],
)
def test_a_job_that_does_not_read_says_what_is_wrong(tmp_path, text, says):
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(TrainingError, match=says):
        TrainJob.read(tmp_path / "job.yaml")
    with pytest.raises(TrainingError, match=r"wanted a scale of laptop, debug, .*; found 'huge'"):
        _ = TrainJob(data="x", out=tmp_path, scale="huge").recipe


def test_the_job_goes_over_the_scale():
    recipe = TrainJob(data="x", out=Path("y"), scale="medium", batch_size=8192, accumulate=4, precision="bf16").recipe
    assert (recipe.batch_size, recipe.steps, recipe.lr, recipe.warmup_steps) == (8192, 15_625, 5e-4, 500)
    assert (recipe.accumulate, recipe.precision, recipe.betas, recipe.eps) == (4, "bf16", (0.9, 0.98), 1e-6)


def write_job(path: Path, given: TrainJob) -> Path:
    path.write_text(given.model_dump_json())
    return path


def start(path: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-m", "models.train", str(path)], env=environment, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_kill_9_at_a_random_step_and_the_same_command_again_gives_the_same_bits(tmp_path):
    given = {"samples_seen": 8 * 120, "checkpoint_steps": 5}
    whole = run(job(tmp_path, "whole", **given))
    path = write_job(tmp_path / "job.json", job(tmp_path, "killed", **given))
    step = random.SystemRandom().randrange(5, 90)
    with start(path) as killed:
        while killed.poll() is None:
            done = sorted((tmp_path / "killed" / "checkpoints").glob("step-*"))
            if done and int(done[-1].name[5:]) >= step:
                killed.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        assert killed.wait() == -signal.SIGKILL, killed.stderr.read().decode()
    assert not (tmp_path / "killed" / "result.json").exists()
    with start(path) as again:
        said = again.communicate()[1].decode()
    assert again.returncode == 0 and re.search(r"going on after step [1-9]", said), said
    found = json.loads((tmp_path / "killed" / "result.json").read_text())
    assert found["losses"] == whole["losses"], f"killed at {step}"
    assert furthest(weights(tmp_path / "killed" / "clip"), weights(tmp_path / "whole" / "clip")) == 0


def test_what_a_user_can_mend_is_one_line_and_exit_code_2(tmp_path, capsys):
    given = job(tmp_path, data=str(tmp_path / "none"))
    with pytest.raises(SystemExit) as stop:
        run_rank(given.model_dump_json())
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert re.fullmatch(r"error: wanted .*/none with manifest.json and .*; fix: export again.*\n", said)
    assert said == f"error: {(given.out / ERROR).read_text()}\n"
