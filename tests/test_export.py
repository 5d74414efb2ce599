"""Exported graphs: variants of the small model in ONNX Runtime, and ranking where neither torch nor pevl can be imported."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from pevl.data.text import prompt
from pevl.loss.total import logits
from pevl.model.pevl import PeVL, get_config
from pevl.use.export import (
    ClipRanker,
    export_clip_encoder,
    open_exported,
    parity,
    random_inputs,
    save_labels,
    signature,
    trace,
    write_runner,
)

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
VARIED = {  # few moments: the graph is the same, and it is quick
    "whole": (dict(v2p_grouping="hard"), 7),
    "video": (dict(modalities=("video", "text"), mask_mode="log"), 2),
    "heatmaps": (dict(pose_input="heatmaps", pose_token="plain", ucmr=(), associations=()), 4),
    "without text": (dict(modalities=("pose",), classes=5), 2),
}


def awake(**change):
    "A small variant in which nothing is zero, so that nothing can be lost unseen"
    torch.manual_seed(0)
    model = PeVL(get_config("pevl_nano", **(dict(T=6, Tv=2) | change))).eval()
    for w in model.parameters():
        if w.ndim > 1 and not w.any():
            nn.init.normal_(w.data, std=0.05)
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    "Function: name of a variant -> model, its file; each exported once"
    made = {}

    def get(name):
        if name not in made:
            model, folder = awake(**VARIED[name][0]), tmp_path_factory.mktemp("exported")
            found = export_clip_encoder(model, folder / "clip.onnx", tolerance=5e-4)
            assert "logits" in found and max(found.values()) < 5e-4
            assert [p.name for p in folder.iterdir()] == ["clip.onnx"]
            made[name] = model, folder / "clip.onnx"
        return made[name]

    return get


@pytest.mark.parametrize("name", VARIED)
def test_variant(name, exported):
    model, path = exported(name)
    assert len(signature(model)) == VARIED[name][1]
    x = random_inputs(model, 7, 11, 13, seed=9)  # sizes that no comparison has had
    out = open_exported(path)(**{k: v.numpy() for k, v in x.items()})
    with torch.no_grad():
        expected = ClipRanker(model)(**x)["logits"]
    assert np.abs(out["logits"] - expected.numpy()).max() < 5e-4


def test_a_wrong_graph_is_not_written(tmp_path):
    model = awake(modalities=("pose", "text"))
    program = trace(model)
    assert export_clip_encoder(model, tmp_path / "clip.pt2", program=program)["logits"] < 1e-4
    other = awake(modalities=("pose", "text"))
    other.pose.embed.point.weight.data.mul_(1.5)
    with pytest.raises(ValueError, match="not written, it differs from the model"):
        export_clip_encoder(other, tmp_path / "other.pt2", program=program)
    assert [p.name for p in tmp_path.iterdir()] == ["clip.pt2"]
    assert parity(other, open_exported(tmp_path / "clip.pt2"), [(2, 3, 9)])["logits"] > 1e-3


def test_rank_without_torch(exported, tmp_path):
    "NumPy and ONNX Runtime give the labels in the model's order, for a clip with and without anybody"
    (model, path), labels = (
        exported("whole"),
        ["a back dive", "a forward dive", "an inward dive", "a reverse dive"],
    )
    shutil.copy(path, tmp_path)
    save_labels(model, tmp_path / "labels.safetensors", labels)
    write_runner(tmp_path / "rank.py")
    rng, c = np.random.default_rng(0), model.config
    frames = rng.integers(0, 256, (20, c.size, c.size, 3), dtype=np.uint8)
    keypoints = (rng.random((20, 17, 2)) * c.size).astype(np.float32)
    code = "import sys, runpy\nfor n in ('torch', 'pevl', 'safetensors', 'onnx'): sys.modules[n] = None\n"
    code += "sys.argv = ['rank.py', 'clip.onnx', 'labels.safetensors', 'clip.npz']\n"
    code += "runpy.run_path('rank.py', run_name='__main__')"
    for seen in (1, 0):
        scores = np.full((20, 17), seen, np.float32)
        np.savez(tmp_path / "clip.npz", frames=frames, keypoints=keypoints, scores=scores)
        ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        index = ((np.arange(c.T) + 0.5) * 20 / c.T).astype(int)
        with safe_open(tmp_path / "labels.safetensors", "pt") as held:
            note = json.loads(held.metadata()["pevl"])
        slots = torch.tensor([[1, 4]])
        with torch.no_grad():
            f = model.encode_clip(
                torch.from_numpy(frames[index[slots[0]]]).permute(0, 3, 1, 2)[None],
                torch.from_numpy(keypoints[index])[None],
                torch.from_numpy(scores[index])[None],
                slots,
            )
            texts = model.encode_text([prompt(t, note["kind"], note["template"]) for t in labels])
            p = logits(model, f | texts)[0].softmax(0)
        lines = [line.split("%  ") for line in ran.stdout.splitlines()]
        assert [name for _, name in lines] == [labels[i] for i in p.argsort(descending=True)]
        assert [float(v) for v, _ in lines] == pytest.approx(
            [100 * v for v in p.sort(descending=True)[0].tolist()], abs=0.06
        )
