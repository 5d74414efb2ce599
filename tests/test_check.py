"""A data set is looked at before it is used: large ones quickly, hostile ones without a traceback."""

import json
import os
import shutil
import time

import numpy as np
import pytest

from pevl.data import check as module
from pevl.data.check import check
from pevl.data.miniature import miniature
from pevl.data.pose import load_pose
from pevl.data.simdive import generate
from pevl.data.video import write_video
from pevl.train.learner import MAX_BROKEN


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("check") / "SimDive"
    return generate(root, classes=2, train=2, test=2, size=32, workers=1, progress=False)


def many(small, root, train, test):
    "Many names for one clip, in the format of Diving48"
    (root / "rgb").mkdir(parents=True)
    (root / "pose").mkdir()
    record = json.loads((small / "SimDive_V1_train.json").read_text())[0]
    (root / "SimDive_vocab.json").write_bytes((small / "SimDive_vocab.json").read_bytes())
    for split, n in (("train", train), ("test", test)):
        rows = [record | {"vid_name": f"{split}_{i:05d}", "label": i % 2} for i in range(n)]
        (root / f"SimDive_V1_{split}.json").write_text(json.dumps(rows))
        for row in rows:
            for folder, end in (("rgb", "mp4"), ("pose", "npz")):
                source = small / folder / f"{record['vid_name']}.{end}"
                os.link(source, root / folder / f"{row['vid_name']}.{end}")
    return root


def test_twenty_thousand_clips_take_seconds(small, tmp_path):
    root = many(small, tmp_path / "many", 18_000, 2_000)
    (root / "rgb" / "train_00077.mp4").unlink()
    start = time.perf_counter()
    r = check(root, progress=False)
    seconds = time.perf_counter() - start
    assert r.ok and r.splits["train"]["listed"] == 18_000 and r.splits["train"]["opened"] == module.SAMPLE
    assert r.bad["train"]["missing"] == {"train_00077": "no video"}
    assert seconds < 30, f"{seconds:.1f} s"  # 2 s on a quiet core
    print(f"{seconds:.1f} s")


def test_tolerates_what_a_training_tolerates():
    assert module.TOLERATED == MAX_BROKEN


def test_every_clip_is_opened_on_demand(small, tmp_path):
    root = many(small, tmp_path / "all", 150, 2)
    broken = root / "rgb" / "train_00077.mp4"
    broken.unlink()
    broken.write_bytes(b"<html>404</html>")
    assert not check(root, progress=False, sample=5).bad["train"]["unreadable"]
    r = check(root, progress=False, sample=None)
    assert list(r.bad["train"]["unreadable"]) == ["train_00077"] and r.splits["train"]["opened"] == 150
    assert r.ok  # 1 of 150: less than a training tolerates


def test_damage_in_the_middle_is_found_by_decoding(small, tmp_path):
    root = many(small, tmp_path / "middle", 2, 2)
    video = root / "rgb" / "train_00001.mp4"
    n = len(load_pose(root / "pose/train_00001.npz"))
    noise = np.random.default_rng(0).integers(0, 255, (1, 384, 384, 3), np.uint8)
    frames = np.concatenate(
        [np.roll(noise, 3 * i, 1) for i in range(n)]
    )  # small films are decoded whole anyway
    video.unlink()
    write_video(video, frames)
    assert not check(root, progress=False, decode=True).bad["train"]["unreadable"]
    data = bytearray(video.read_bytes())
    a, b = len(data) * 4 // 10, len(data) * 6 // 10
    data[a:b] = bytes(b - a)
    video.write_bytes(data)
    found = [check(root, progress=False, decode=d).bad["train"]["unreadable"] for d in (False, True)]
    assert [list(f) for f in found] == [[], ["train_00001"]]


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda root: [p.unlink() for p in root.glob("*.json")], "SERIOUS"),
        (lambda root: (root / "SimDive_V1_train.json").write_text("[]"), "SimDive_V1_train.json"),
        (lambda root: (root / "SimDive_V1_train.json").write_bytes(b"\xff\xfe\0\0"), "SimDive_V1_train.json"),
        (lambda root: (root / "SimDive_vocab.json").write_text("{"), "SimDive_vocab.json"),
        (lambda root: [p.unlink() for p in (root / "rgb").iterdir()], "none of the"),
    ],
)
def test_hostile_folders_end_in_a_line(small, tmp_path, damage, says):
    root = many(small, tmp_path / "set", 4, 2)
    damage(root)
    r = check(root, progress=False)
    assert not r.ok and says in r.text()
    assert all("\n" not in p.text for p in r.problems)
    assert json.loads(r.json())["ok"] is False


def test_a_pose_file_that_is_none(small, tmp_path):
    root = many(small, tmp_path / "pose", 4, 2)
    for path in (root / "pose").iterdir():
        path.unlink()
        path.write_bytes(b"not a zip")
    r = check(root, progress=False)
    assert len(r.bad["train"]["pose_does_not_fit"]) == 4 and not r.ok


@pytest.mark.parametrize("dataset", ["diving48", "gym99", "haa500", "smarthome", "kinetics400"])
def test_what_goes_wrong_in_real_copies_is_named(tmp_path, dataset):
    root = miniature(dataset, tmp_path / dataset, classes=2, train=4, test=2, size=36, traps=True, pose=False)
    r = check(root, dataset, progress=False)
    train, *others = r.splits.values()
    assert (train["missing"], train["unreadable"], sum(s["missing"] for s in others)) == (1, 1, 1)
    assert train["without_pose"] == train["with_a_video"] == train["opened"]
    assert train["repeated_in_the_list"] == (dataset != "haa500")
    torn = next(iter(r.bad["train"]["unreadable"]))
    assert any(torn in p.text for p in r.problems) and torn in r.text()
    assert not r.ok  # one of eight is more than a training tolerates
    assert r.name != "?" and all(s.keys() == train.keys() for s in others)


def test_a_folder_per_class(small, tmp_path):
    "A set of one's own: no lists, no val, no poses"
    for label in ("jump", "turn"):
        (tmp_path / "own" / label).mkdir(parents=True)
        for i in range(5):
            shutil.copy(next((small / "rgb").iterdir()), tmp_path / "own" / label / f"{label}{i}.mp4")
    r = check(tmp_path / "own", progress=False)
    assert list(r.splits) == ["train", "test"] and r.ok, r.text()
    assert sum(s["listed"] for s in r.splits.values()) == 10


def test_the_page_stays_a_page(small):
    "A reader that had to decide the same thing a hundred times says so once, and hides nothing else"
    r = check(small, progress=False)
    r.notes = [f"label text of 'class {i} it's' was made by rule" for i in range(100)] + [
        "poses.pkl: not read"
    ]
    r.notes += [f"{i} clips of {s} left out" for i, s in enumerate(("train", "val"))]
    text = " ".join(r.text().split())
    assert "'class 2 it's' was made by rule (and 97 like it)" in text and "class 3" not in text
    assert "poses.pkl: not read" in text and "0 clips of train" in text and "1 clips of val" in text
    assert len(json.loads(r.json())["notes"]) == 103


def test_a_clip_that_ends_early_does_not_count_as_long(tmp_path):
    frames = np.zeros((24, 32, 32, 3), np.uint8)
    for name in "abcd":
        write_video(tmp_path / f"{name}.mp4", frames, fps=24)
    rows = ["a.mp4,x,0,1,train", "b.mp4,y,0,99,train", "c.mp4,x,0,1,test", "d.mp4,y,0,1,test"]
    (tmp_path / "clips.csv").write_text("\n".join(["path,label,start,end,split", *rows]))
    r = check(tmp_path, progress=False)
    assert r.splits["train"]["frames_per_clip"] == (24, 24) and r.splits["train"]["ends_early"] == 1
