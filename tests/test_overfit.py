"""The oldest test of a training loop: eight clips, learned by heart. A dead branch, a swapped label or a lost gradient fails it."""

from dataclasses import replace

import pytest
import torch

from pevl.data.datasets import read_diving48
from pevl.data.simdive import generate
from pevl.model.pevl import create_model
from pevl.train.learner import Learner
from pevl.train.recipe import preset


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    "One clip of each of the demo's eight classes"
    root = generate(
        tmp_path_factory.mktemp("eight") / "dives", classes=8, train=1, test=1, workers=1, progress=False
    )
    return read_diving48(root, "train")


# the guided loss pushes neighbouring texts apart more slowly: after 80 epochs PeVL knows seven of the eight
@pytest.mark.parametrize("variant, epochs", [("table4.pevl", 130), ("table7.v_t", 80)])
def test_eight_clips_by_heart(eight, variant, epochs, tmp_path):
    c = preset("nano")
    c = replace(
        c,
        amp="no",
        eval_every=0,
        tensorboard=False,
        model=replace(c.model, variant=variant),
    )
    c = replace(
        c, data=replace(c.data, batch_size=8, crop=1.0), optim=replace(c.optim, epochs=epochs, lr=3e-3)
    )
    torch.manual_seed(0)
    model = create_model(c.model.name, "clip", **c.model.overrides())
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    summary = Learner(model, eight, eight, c, tmp_path / "run", progress=False).fit()
    assert summary["result"]["top1"] == 1.0
    assert frozen and all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
