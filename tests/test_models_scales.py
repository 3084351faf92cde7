"""The dial is DataComp's."""

import open_clip
import pytest

from models.scales import LAPTOP, SCALES, register_laptop


def test_the_scales_are_those_of_datacomp():
    """batch, learning rate, samples seen, warmup, model and beta2 of mlfoundations/datacomp, scale_configs.py."""
    found = {
        name: (s.batch_size, s.lr, s.samples_seen, s.warmup_steps, s.architecture, s.betas[1])
        for name, s in SCALES.items()
    }
    assert found.pop("laptop")[4] == LAPTOP
    assert found == {
        "debug": (1024, 1e-4, 128_000, 500, "ViT-B-32", 0.98),
        "small": (4096, 5e-4, 12_800_000, 500, "ViT-B-32", 0.98),
        "medium": (4096, 5e-4, 128_000_000, 500, "ViT-B-32", 0.98),
        "large": (8192, 5e-4, 1_280_000_000, 500, "ViT-B-16", 0.98),
        "xlarge": (90_112, 1e-3, 12_800_000_000, 10_000, "ViT-L-14", 0.95),
    }
    assert [scale.steps for scale in SCALES.values()] == [200, 125, 3125, 31_250, 156_250, 142_046]


def test_what_datacomp_leaves_open_is_what_open_clip_takes():
    from open_clip_train.params import parse_args

    given = parse_args(["--model", "ViT-B-32"])
    theirs = (given.beta1, given.beta2, given.eps, given.wd)
    assert {(*s.betas, s.eps, s.weight_decay) for name, s in SCALES.items() if name != "xlarge"} == {theirs}


def test_open_clip_builds_every_architecture():
    register_laptop()
    assert all(open_clip.get_model_config(scale.architecture) for scale in SCALES.values())
    model = open_clip.create_model(LAPTOP)
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(8.0e6, rel=0.1)
