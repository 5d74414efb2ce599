"""The command line from outside: help for everything; a mistake ends with one line on stderr and status 2."""

import os
import re
import subprocess
import sys

import pytest


def pevl(*args, cwd=None, **env):
    cmd = [sys.executable, "-m", "pevl.use.cli", *map(str, args)]
    env = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", **env}
    return subprocess.run(cmd, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)


def refuses(ran, *words):
    "Status 2 and one line, which names `words`"
    lines = [line for line in ran.stderr.splitlines() if line.strip()]
    assert ran.returncode == 2, f"status {ran.returncode}\n{ran.stdout[-1500:]}\n{ran.stderr[-3000:]}"
    assert len(lines) == 1, ran.stderr[-3000:]
    assert "Traceback" not in ran.stderr + ran.stdout
    for word in words:
        assert str(word).lower() in lines[0].lower(), lines[0]


COMMANDS = ["simdive", "train", "evaluate", "predict", "report", "pretrain", "demo"]


def test_help_names_every_command():
    ran = pevl("--help")
    assert ran.returncode == 0 and not ran.stderr, ran.stderr
    assert not [c for c in COMMANDS if not re.search(rf"\b{c}\b", ran.stdout)]


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command):
    ran = pevl(command, "--help")
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) > 5


@pytest.fixture(scope="module")
def dives(tmp_path_factory):
    "A tiny simulated data set"
    from pevl.data.simdive import generate

    return generate(tmp_path_factory.mktemp("cli") / "dives", classes=2, train=1, test=1, workers=1, size=64, progress=False)


@pytest.fixture(scope="module")
def clip(dives):
    return sorted((dives / "rgb").glob("*.mp4"))[0]


def test_predict_says_the_label(clip):
    ran = pevl("predict", clip, "--labels", "a forward dive", "a back dive", "--model", "pevl_nano", "--weights", "clip")
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "a forward dive" in ran.stdout and "a back dive" in ran.stdout


def test_missing_folder(tmp_path):
    refuses(pevl("train", "--data", tmp_path / "nowhere", "--out", tmp_path / "run"), "nowhere")
    assert not (tmp_path / "run").exists(), "a run that cannot start leaves nothing behind"


def test_missing_video(tmp_path):
    refuses(pevl("predict", tmp_path / "nowhere.mp4", "--labels", "a", "b"), "nowhere.mp4")


def test_text_file_as_video(tmp_path):
    path = tmp_path / "notes.mp4"
    path.write_text("this is no video\n" * 100)
    refuses(pevl("predict", path, "--labels", "a", "b"), "notes.mp4")


def test_empty_file_as_video(tmp_path):
    path = tmp_path / "empty.mp4"
    path.touch()
    refuses(pevl("predict", path, "--labels", "a", "b"), "empty.mp4")


def test_unknown_model_names_the_near_ones(clip):
    refuses(pevl("predict", clip, "--labels", "a", "b", "--model", "pevl_nona"), "pevl_nona", "pevl_nano")


def test_video_without_pose(clip, tmp_path):
    lonely = tmp_path / "lonely.mp4"
    lonely.write_bytes(clip.read_bytes())
    refuses(pevl("predict", lonely, "--labels", "a", "b", "--model", "pevl_nano", "--weights", "clip"), "pose")


def test_label_that_the_vocabulary_does_not_cover(dives, tmp_path):
    import json
    import shutil

    wrong = tmp_path / "wrong"
    shutil.copytree(dives, wrong)
    path = wrong / "SimDive_V1_train.json"
    entries = json.loads(path.read_text())
    entries[0]["label"] = 48
    path.write_text(json.dumps(entries))
    refuses(pevl("train", "--data", wrong, "--out", tmp_path / "run"), "SimDive_V1_train.json", "label")


def test_folder_that_cannot_be_written(tmp_path):
    "A file stands where a folder is needed: refused for root too, whom permissions do not stop"
    (tmp_path / "file").touch()
    refuses(pevl("simdive", "--out", tmp_path / "file" / "dives", "--classes", 2, "--train", 1, "--test", 1), "file")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    refuses(pevl("simdive", "--out", tmp_path / "dives", "--classes", 2, "--train", 1, "--test", 1), "permission")
    tmp_path.chmod(0o700)


def test_impossible_number(tmp_path):
    refuses(pevl("simdive", "--out", tmp_path / "dives", "--classes", 1), "classes")
