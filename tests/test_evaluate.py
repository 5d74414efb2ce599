"""An evaluation from outside: wide videos in six views, rows that many processes write, and the command line."""

import csv
import json
import multiprocessing
import resource
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import results
from pevl.data.datasets import ClipDataset, collate, read_diving48
from pevl.data.pose import load_pose, save_pose
from pevl.data.simdive import generate
from pevl.data.text import prompt
from pevl.data.video import read_frames, write_video
from pevl.loss.association import similarity
from pevl.model.pevl import create_model
from pevl.train.evaluate import COLUMNS, append_row, evaluate, read_table
from pevl.use.cli import main
from settings import ROOT

FORK = multiprocessing.get_context("forkserver")
SIZE = dict(T=24, Tv=8, size=112)
FREE = ("date", "threads", "hardware", "commit")  # may differ between two evaluations of the same weights


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    "Dives in front of a wide background, so that left, centre and right crops differ"
    root = generate(
        tmp_path_factory.mktemp("evaluate") / "dives",
        classes=4,
        train=2,
        test=1,
        workers=1,
        size=64,
        progress=False,
    )
    for path in root.glob("rgb/*_test_*.mp4"):
        frames = read_frames(path, range(len(load_pose(root / "pose" / f"{path.stem}.npz"))))
        write_video(path, torch.cat([frames.flip(-1), frames], -1))
        pose = load_pose(root / "pose" / f"{path.stem}.npz")
        there = (pose.scores > 0)[..., None]
        pose = replace(pose, keypoints=pose.keypoints + [[[64.0, 0.0]]] * there, image_size=(64, 128))
        save_pose(root / "pose" / f"{path.stem}.npz", pose)
    return root


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("pevl_nano", "clip")


# --- views ---


def test_six_views_are_a_loop_over_crops_and_moments(wide, model):
    clips = read_diving48(wide, "test")
    texts = [prompt(t, "diving") for t in clips.classes]
    found = evaluate(model, ClipDataset(clips, **SIZE, views=3, temporal_views=2), texts, batch_size=5)
    assert found.names == [c.name for c in clips.clips]
    several = []
    for i, probs in enumerate(found.probs):
        views = []
        for moment in range(2):
            for crop in range(3):
                data = ClipDataset(clips, **SIZE, views=3, temporal_views=2)  # reads anew
                with torch.no_grad():
                    f = model(collate([data[6 * i + 3 * moment + crop]]), texts)
                    views.append(similarity(f, ("vs", "ps", "fw"), temperature=0.1)[0])
        assert torch.allclose(probs, (model.scale * torch.stack(views).mean(0)).softmax(0), atol=1e-5)
        several.append(torch.stack(views).std(0).max())
    assert min(several) > 1e-3, "the views are different pictures"


def test_the_crops_of_a_moment_are_read_once(wide, monkeypatch):
    from pevl.data import datasets

    read, count = datasets.read_clip, []
    monkeypatch.setattr(datasets, "read_clip", lambda *a, **kw: count.append(1) or read(*a, **kw))
    data = ClipDataset(read_diving48(wide, "test"), **SIZE, views=3, temporal_views=2)
    samples = [data[i] for i in range(len(data))]
    assert len(samples) == 24 and len(count) == 8
    assert not torch.equal(samples[0].frames, samples[1].frames)
    assert not torch.equal(samples[0].frames, samples[3].frames)


def test_neither_order_nor_batches_nor_workers_count(wide, model):
    clips = read_diving48(wide, "test")
    texts = [prompt(t, "diving") for t in clips.classes]

    def make(order):
        shuffled = replace(clips, clips=[clips.clips[i] for i in order])
        return ClipDataset(shuffled, **SIZE, views=3, temporal_views=2)

    first = evaluate(model, make(range(4)), texts)
    for order, batch, workers in (((2, 0, 3, 1), 7, 0), ((3, 2, 1, 0), 1, 0), ((1, 3, 0, 2), 5, 2)):
        other = evaluate(model, make(order), texts, batch, workers)
        assert sorted(other.names) == sorted(first.names)
        for name, p in zip(other.names, other.probs, strict=True):
            assert torch.allclose(p, first.probs[first.names.index(name)], atol=1e-5)


# --- rows ---

ROW = dict.fromkeys(COLUMNS) | dict(model="pevl_nano", kind='a "kind", with, commas', top1=0.5)


def add(path, process):
    for i in range(20):
        append_row(path, ROW | dict(seed=100 * process + i))


def test_no_row_is_lost_between_processes(tmp_path):
    path = tmp_path / "results.csv"
    workers = [FORK.Process(target=add, args=(path, p)) for p in range(6)]
    [p.start() for p in workers]
    [p.join(120) for p in workers]
    assert [p.exitcode for p in workers] == [0] * 6
    rows = read_table(path)
    assert sorted(r["seed"] for r in rows) == sorted(100 * p + i for p in range(6) for i in range(20))
    assert {r["kind"] for r in rows} == {ROW["kind"]}


def add_on_a_full_disk(path, limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        append_row(path, ROW)
    except OSError:
        sys.exit(7)


def test_full_disk_leaves_no_half_row(tmp_path):
    path = tmp_path / "results.csv"
    p = FORK.Process(target=add_on_a_full_disk, args=(path, 100))
    p.start(), p.join(60)
    assert p.exitcode == 7 and not path.exists()
    append_row(path, ROW)
    held = path.read_bytes()
    p = FORK.Process(target=add_on_a_full_disk, args=(path, len(held) + 5))
    p.start(), p.join(60)
    assert p.exitcode == 7 and path.read_bytes() == held


# --- the command line ---


@pytest.fixture(scope="module")
def run(wide, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluate") / "run"
    args = ["--preset", "nano", "--epochs", 1, "--batch-size", 4, "--amp", "no", "--seed", 3]
    assert main(["train", "--data", wide, "--out", out, *args]) == 0
    return out


def test_the_row_of_a_training_is_found_again_from_its_weights(wide, run, tmp_path):
    (trained,) = read_table(run / "results.csv")
    assert json.loads((run / "result.json").read_text())["row"] == trained
    assert json.loads((run / "summary.json").read_text())["row"] == trained
    assert (trained["seed"], trained["clips"], trained["evaluated"], trained["simulated"]) == (3, 4, 4, True)
    out = tmp_path / "page"
    for _ in range(2):
        assert main(["evaluate", "--data", wide, "--weights", run / "model.safetensors", "--out", out]) == 0
    again = read_table(out / "results.csv")
    assert len(again) == 2, "a line for every evaluation"
    same = [{k: v for k, v in r.items() if k not in FREE} for r in (trained, *again)]
    assert same[0] == same[1] == same[2]
    many = ["--views", 3, "--temporal-views", 2, "--average", "probabilities"]
    assert main(["evaluate", "--data", wide, "--weights", run, "--out", out, *many]) == 0
    row = read_table(out / "results.csv")[-1]
    assert (row["views"], row["temporal_views"], row["average"]) == (3, 2, "probabilities")
    assert row["configuration"] == trained["configuration"] and row["weights"] == trained["weights"]


def test_missing_and_broken_clips_are_counted(wide, run, tmp_path, monkeypatch):
    import shutil

    from pevl.train import learner

    data = shutil.copytree(wide, tmp_path / "dives")
    first, second = sorted(data.glob("rgb/*_test_*"))[:2]
    first.unlink(), second.write_bytes(b"no video")
    monkeypatch.setattr(learner, "MAX_BROKEN", 0.5)
    assert main(["evaluate", "--data", data, "--weights", run, "--out", tmp_path / "page"]) == 0
    (row,) = read_table(tmp_path / "page" / "results.csv")
    assert [row[k] for k in ("clips", "missing", "evaluated", "broken", "partial")] == [3, 1, 2, 1, 0]


@pytest.mark.parametrize("held", [b"a,b\n1,2\n", b"torn,", b"\xff\xfe", b"\n"])
def test_a_file_with_other_columns_is_refused_before_the_work(held, wide, run, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("pevl.train.evaluate.evaluate", lambda *a, **kw: pytest.fail("evaluated"))
    (tmp_path / "results.csv").write_bytes(held)
    assert main(["evaluate", "--data", wide, "--weights", run, "--out", tmp_path]) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "results.csv: line 1: " in lines[0], lines
    assert [p.name for p in tmp_path.iterdir()] == ["results.csv"]
    assert (tmp_path / "results.csv").read_bytes() == held


# --- the tables ---


def test_committed_tables_come_from_the_file():
    "The book's table, as its notebook shows it, and the README's; the paper's numbers are marked"
    from pevl.train.ablate import ablation_table, read_rows

    text = ablation_table(read_rows(results.RESULTS / "ablate.csv"))
    book = json.loads((ROOT / "nbs/train/08_ablate.ipynb").read_text(encoding="utf-8"))
    shown = [
        "".join(o["data"].get("text/markdown", []))
        for c in book["cells"]
        for o in c.get("outputs", [])
        if "data" in o
    ]
    assert text.strip() in [s.strip() for s in shown], "run nbs/train/08_ablate.ipynb"
    for table in (text, results.table()):
        lines = [line.split("|")[-2].strip() for line in table.splitlines() if line.startswith("| ")]
        assert lines[0].startswith("*the paper's")
        assert all(not x or (x[0], x[-1]) == ("*", "*") for x in lines), lines
        assert sum(bool(x) for x in lines) > 4


def test_what_was_not_recorded_is_empty():
    with open(results.RESULTS / "ablate.csv", encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) >= 15
    for r in rows:
        recorded = [bool(r[k]) for k in ("weights", "commit", "date", "configuration")]
        assert all(recorded) or not any(recorded), "a row is from before these columns, or after"


def test_results_show():
    ran = subprocess.run(
        [sys.executable, ROOT / "tools/results.py", "show"], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0 and results.table() in ran.stdout, ran.stderr
