"""Two processes with half of the batch each, or one in portions: the same training as one process with the whole batch."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

DRIVER = """
import sys
from pevl.train import learner
from pevl.use.cli import main
if sys.argv[1] == "stop":  # every process leaves after its fourth step
    learner.Learner.after_step = lambda self: sys.exit(7) if self.state.step == 4 else None
sys.exit(main(sys.argv[2:]))
"""
RECIPE = "--preset nano --epochs 2 --amp no --save-every 1 --max-minutes 50".split()
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.fixture(scope="module")
def dives(tmp_path_factory):
    from pevl.data.simdive import generate

    folder = tmp_path_factory.mktemp("distributed")
    (folder / "driver.py").write_text(DRIVER)
    generate(
        folder / "dives", 3, 5, 1, size=128, workers=2, progress=False
    )  # three clips a process: one is left over
    return folder / "dives"


def train(dives, out, *more, processes=1, how="go"):
    "One run of the command line; returns its exit status and what it said"
    launcher = TWO if processes == 2 else []
    args = [str(dives.parent / "driver.py"), how, "train", "--data", str(dives), "--out", str(out), *RECIPE]
    done = subprocess.run(
        [sys.executable, *launcher, *args, *map(str, more)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | dict(OMP_NUM_THREADS="1"),
    )
    said = done.stdout.count("top-1")
    assert done.returncode or said == 1, f"the result was said {said} times"
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def alone(dives):
    code, said = train(dives, dives.parent / "alone", "--batch-size", 6)
    assert code == 0, said
    return dives.parent / "alone"


def table(out):
    with open(out / "log.csv") as f:
        return list(csv.DictReader(f))


def close(a, b):
    "The same training: losses to five digits, the same test result, and weights that went the same way"
    for x, y in zip(table(a), table(b), strict=True):
        assert float(x["loss"]) == pytest.approx(float(y["loss"]), abs=2e-5)
        assert x["accuracy"] == y["accuracy"]
        assert x["test_top1"] == y["test_top1"]
    p, q = (json.loads((f / "result.json").read_text()) for f in (a, b))
    assert p["names"] == q["names"] and p["labels"] == q["labels"]
    assert torch.tensor(p["probs"]).sub(torch.tensor(q["probs"])).abs().max() < 1e-3
    v, w = (load_file(f / "model.safetensors") for f in (a, b))
    assert v.keys() == w.keys()
    moved = [(v[n] - w[n]).abs().max() for n in v]
    assert max(moved) < 2e-3  # of a step of 1e-3 each: AdamW may turn over where a gradient is nearly zero
    assert torch.stack(moved).median() < 1e-4


def test_portions(dives, alone, tmp_path):
    code, said = train(dives, tmp_path / "run", "--batch-size", 6, "--micro-batch", 4)
    assert code == 0, said
    close(tmp_path / "run", alone)


@pytest.mark.parametrize("how", [[], ["--micro-batch", 2]])
def test_two_processes(dives, alone, tmp_path, how):
    code, said = train(dives, tmp_path / "run", "--batch-size", 3, *how, processes=2)
    assert code == 0, said
    close(tmp_path / "run", alone)
    assert (
        len((tmp_path / "run" / "results.csv").read_text().splitlines()) == 2
    )  # head, one row: the first process writes


def test_shared_weights(dives, alone, tmp_path):
    "FSDP: the same training; its checkpoints are whole, and a run that stopped ends as one that did not"
    code, said = train(dives, tmp_path / "run", "--batch-size", 3, "--shard", processes=2)
    assert code == 0, said
    close(tmp_path / "run", alone)
    cut = tmp_path / "cut"
    assert train(dives, cut, "--batch-size", 3, "--shard", processes=2, how="stop")[0] != 0
    held = load_file(sorted((cut / "checkpoints").iterdir())[-1])
    other = load_file(sorted((tmp_path / "run" / "checkpoints").iterdir())[-1])
    assert {n: t.shape for n, t in held.items()} == {n: t.shape for n, t in other.items()}
    code, said = train(dives, cut, "--batch-size", 3, "--shard", "--resume", processes=2)
    assert code == 0, said
    assert (cut / "model.safetensors").read_bytes() == (tmp_path / "run" / "model.safetensors").read_bytes()


def test_nobody_to_share_with(dives, tmp_path):
    code, said = train(dives, tmp_path / "run", "--batch-size", 6, "--shard")
    assert code == 2 and "expected accelerate launch or torchrun" in said
    assert "Traceback" not in said
