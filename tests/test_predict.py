"""From a video to labels, windows and features where things go wrong: no network, hostile files, folders with broken videos, kills."""

import errno
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pevl.data.datasets import read_diving48
from pevl.data.pose import Pose, load_pose, save_pose
from pevl.data.simdive import generate
from pevl.data.video import write_video
from pevl.use.features import extract_features, read_features
from pevl.use.predict import (
    GUESS,
    Failure,
    load_any,
    load_on,
    load_predictor,
    open_footage,
    predict,
    predict_folder,
    read_facts,
)
from pevl.use.windows import predict_windows
from settings import ROOT

need_mediapipe = pytest.mark.skipif(
    importlib.util.find_spec("mediapipe") is None, reason="mediapipe is not installed (make)"
)
AB = ["a forward dive", "a back dive"]


@pytest.fixture(scope="module")
def dives(tmp_path_factory):
    root = tmp_path_factory.mktemp("predict") / "dives"
    return generate(root, classes=3, train=1, test=1, seed=11, workers=1, size=64, progress=False)


@pytest.fixture(scope="module")
def model():
    return load_any("simdive48")


@pytest.fixture
def clip(dives, tmp_path):
    "A video and its pose file, to be broken"
    for kind, end in (("rgb", "mp4"), ("pose", "npz")):
        shutil.copy(dives / kind / f"simdive_test_00000.{end}", tmp_path / f"clip.{end}")
    return tmp_path / "clip.mp4"


def everywhere(frame):
    "A detector that finds somebody in the middle of each frame"
    H, W = frame.shape[:2]
    return np.full((1, 17, 2), (W / 2, H / 2)) + np.arange(17)[:, None], np.ones((1, 17))


def run(code, **env):
    "A process of its own"
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=300,
    )


NO_NETWORK = """
import socket

def refuse(*args, **kw):
    raise AssertionError(f"the network was asked for: {args[1:]}")

for name in ("connect", "connect_ex", "sendto", "bind"):
    setattr(socket.socket, name, refuse)
socket.getaddrinfo = socket.create_connection = refuse
"""


@need_mediapipe
def test_the_shipped_model_needs_no_network(clip, tmp_path):
    "With and without a pose file, in a home that holds nothing; and nothing is written beside the video"
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(clip, bare / "clip.mp4")
    home = tmp_path / "home"
    home.mkdir()
    code = NO_NETWORK + textwrap.dedent(f"""
        import sys, pevl
        p = pevl.predict({str(clip)!r})
        assert (len(p), p.found) == (5, "file clip.npz"), p
        assert "mediapipe" not in sys.modules, "loaded although the joints were there"
        p = pevl.predict({str(bare / "clip.mp4")!r}, labels=["a dive", "a soup", "a race"])
        assert (len(p), p.found) == (3, "mediapipe"), p
        print(p.to_json())
    """)
    ran = run(code, HOME=str(home), HF_HOME=str(home / "hf"), MPLCONFIGDIR=str(home / "mpl"))
    assert ran.returncode == 0 and not ran.stderr, ran.stderr[-3000:]
    d = json.loads(ran.stdout)
    assert d["joints"] == "mediapipe" and len(d["ranked"]) == 3
    assert [p.name for p in bare.iterdir()] == ["clip.mp4"]
    assert not list(home.rglob("*.safetensors"))


@need_mediapipe
def test_a_photograph_of_a_person(tmp_path, model):
    "MediaPipe finds the astronaut in each frame; a wrong model still gives probabilities"
    photo = np.asarray(Image.open(ROOT / "tests" / "photos" / "astronaut.jpg").convert("RGB"))[:500, :300]
    write_video(tmp_path / "photo.mp4", np.stack([photo] * 6))
    p = predict(tmp_path / "photo.mp4", AB, model, topk=2)
    assert p.found == "mediapipe" and p.notes == [GUESS] and p.pose.scores.any(1).all()
    assert sum(q for _, q in p) == pytest.approx(1, abs=1e-5)


# --- folders ---


@pytest.fixture
def mess(clip, tmp_path):
    "What lies in people's folders"
    folder = tmp_path / "folder"
    (folder / "in" / "side").mkdir(parents=True)
    data = clip.read_bytes()
    names = ["a good one.mp4", "in/side/deep & <b>.mp4", "ünï.mp4", "$(touch hacked).mp4", "100%s.mp4"]
    for name in names:
        (folder / name).write_bytes(data)
        shutil.copy(clip.with_suffix(".npz"), (folder / name).with_suffix(".npz"))
    (folder / "torn.mp4").write_bytes(data[:-40])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("not a video\n" * 50)
    (folder / "._mac.mp4").write_bytes(b"hidden")
    (folder / "notes.txt").write_text("no video at all")
    (folder / "loop").symlink_to(folder)
    (folder / "gone.mp4").symlink_to(folder / "nowhere.mp4")
    return folder, names


def test_a_folder_with_broken_videos(mess, model):
    folder, names = mess
    before = sorted(p.relative_to(folder) for p in folder.rglob("*"))
    answers = list(predict_folder(folder, AB, model, progress=False))
    good, bad = [a for a in answers if a], [a for a in answers if not a]
    assert sorted(str(a.video.relative_to(folder)) for a in good) == sorted(names)
    assert {a.video.name for a in bad} == {"torn.mp4", "empty.mp4", "text.mp4", "gone.mp4"}
    assert all(isinstance(a, Failure) and a.error and "\n" not in a.error for a in bad)
    assert len({a.probability for a in good}) == 1, "the same film"
    for a in answers:
        assert json.loads(a.to_json()) == a.to_dict()
    deep = next(a for a in good if "deep" in a.video.name)
    assert "<b>" not in deep._repr_html_()
    assert sorted(p.relative_to(folder) for p in folder.rglob("*")) == before, "nothing is written"
    flat = [a.video.name for a in predict_folder(folder, AB, model, recursive=False, progress=False)]
    assert "deep & <b>.mp4" not in flat and "torn.mp4" in flat


def test_a_name_that_is_no_text(clip, model):
    odd = Path(os.fsdecode(os.fsencode(clip.parent) + b"/caf\xe9.mp4"))
    try:
        shutil.copy(clip, odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    p = predict(odd, AB, model, pose=clip.with_suffix(".npz"))
    p.to_json().encode()  # no lone surrogates
    assert "caf\\xe9.mp4" in repr(p) and "caf\\xe9.mp4" in p._repr_html_()
    extract_features([odd], clip.parent / "odd.safetensors", model, extract=False)
    assert read_features(clip.parent / "odd.safetensors").names == ["caf\\xe9"]


def test_an_empty_folder_and_no_folder(tmp_path):
    with pytest.raises(ValueError, match="no videos in it"):
        predict_folder(tmp_path, AB)
    with pytest.raises(NotADirectoryError, match="none: no such folder"):
        predict_folder(tmp_path / "none", AB)


def test_a_detector_that_fails_and_a_full_disk(clip, tmp_path, model, monkeypatch):
    "An error of the detector is one failure; a full disk stops all"
    clip.with_suffix(".npz").unlink()
    shutil.copy(clip, tmp_path / "second.mp4")
    calls = []

    def detector(frame):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("graph\nfell over")
        return everywhere(frame)

    answers = list(predict_folder(tmp_path, AB, model, backend=detector, progress=False))
    assert [bool(a) for a in answers] == [False, True]
    assert "graph fell over" in answers[0].error and answers[0].video.name == "clip.mp4"

    def full(path, pose):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("pevl.use.predict.write_pose", full)
    with pytest.raises(OSError, match="clip.npz"):
        list(predict_folder(tmp_path, AB, model, backend=everywhere, save_pose=True, progress=False))
    monkeypatch.undo()
    list(predict_folder(tmp_path, AB, model, backend=everywhere, save_pose=True, progress=False))
    assert {a.found for a in predict_folder(tmp_path, AB, model, extract=False, progress=False)} == {
        "file clip.npz",
        "file second.npz",
    }


# --- poses and texts ---


class Bomb:
    "Unpickling it makes a file"

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pose_file_is_not_unpickled(clip, tmp_path, model):
    path, mark = clip.with_suffix(".npz"), tmp_path / "unpickled"
    fields = dict(np.load(path))
    np.savez(path, **fields | dict(keypoints=np.array([Bomb(mark)], dtype=object)))
    with pytest.raises(ValueError, match="clip.npz: keypoints: holds Python objects"):
        predict(clip, AB, model)
    assert not mark.exists()


def test_poses_that_do_not_fit(clip, model):
    pose = load_pose(clip.with_suffix(".npz"))
    with pytest.raises(ValueError, match="given pose: has 9 frames, expected"):
        predict(clip, AB, model, pose=pose.select(range(9)))
    wide = Pose(pose.keypoints, pose.scores, (64, 200))
    with pytest.raises(ValueError, match=r"pictures of \(64, 200\)"):
        predict(clip, AB, model, pose=wide)
    nan = Pose(np.full_like(pose.keypoints, np.nan), pose.scores, pose.image_size)
    p = predict(clip, AB, model, pose=nan)
    assert p.notes == ["nobody was found: the picture alone decides", GUESS] and not p.phrases
    save_pose(clip.with_suffix(".npz"), nan)
    assert list(predict(clip, AB, model)) == list(p)


def test_texts_of_every_kind(clip, model):
    "Any letters; nothing but signs; many at once; too long"
    odd = [
        "向前跳水，两周半",
        "\u202eevil\u0000",
        "🤸 🤸",
        "...",
        "a" * 60,
        "<script>alert(1)</script>",
        "and",
    ]
    p = predict(clip, odd, model, topk=99)
    assert sorted(l for l, _ in p) == sorted(odd)
    assert "<script>" not in p._repr_html_() and json.loads(p.to_json())
    for label in odd:  # the phrases of each of them
        predict(clip, {label: None, "a dive": None}, model)
    many = [f"dive number {i}" for i in range(700)]
    assert len(predict(clip, many, model, topk=700)) == 700
    with pytest.raises(ValueError, match="tokens, expected at most 77"):
        predict(clip, ["somersault " * 100, "b"], model)


def test_a_model_of_simulated_clips_says_when_it_guesses(clip, model):
    "Of texts that it was not trained with, and of videos whose joints somebody else has to find"
    own = read_facts("simdive48")["classes"]
    assert not predict(clip, model=model).notes and not predict(clip, own[:2], model).notes
    assert predict(clip, AB, model).notes == [GUESS]
    assert predict_windows(clip, [*own[:3], "a soup"], model).notes == [GUESS]
    clip.with_suffix(".npz").unlink()
    assert GUESS in predict(clip, model=model, backend=everywhere).notes


def test_where_the_model_runs(clip, tmp_path, model, monkeypatch):
    "A GPU if there is one; a model in memory stays; a device that is not there is an error in one line"
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: asked.append(1) or False)
    assert load_on("simdive48").device.type == "cpu" and asked
    assert load_on(model).device == model.device
    assert predict(clip, model=model, device="cpu") and load_on(model, "cpu:0") is model
    for device, why in dict(meta="the model is on cpu", gpu="not on this machine").items():
        with pytest.raises(ValueError, match=f"device {device}: {why}"):
            load_on(model, device)
    for device in ("gpu", "cuda:99"):
        for call in (predict, predict_windows):
            with pytest.raises(ValueError, match=f"device {device}: not on this machine"):
                call(clip, AB, device=device)
        with pytest.raises(ValueError, match=f"device {device}: not on this machine"):
            extract_features([clip], tmp_path / "f.safetensors", device=device)


def test_a_model_without_text_knows_its_classes(clip, tmp_path):
    from pevl.model.pevl import create_model, save_model

    net = create_model("pevl_nano", modalities=("video", "pose"), classes=3, associations=())
    p = predict(clip, ["x", "y", "z"], net)
    assert (len(p), p.similarity, p.phrases) == (3, [None] * 3, []) and json.loads(p.to_json())
    with pytest.raises(ValueError, match="knows only its own 3 classes"):
        predict(clip, ["x", "y"], net)
    save_model(net, tmp_path / "m.safetensors", classes=["x", "y", "z"])
    assert list(predict(clip, None, tmp_path / "m.safetensors")) == list(p)


def test_parts_of_a_film_leave_gradients_as_they_were(clip, model):
    "Between two answers the caller's code runs: nothing of ours may be switched on or off there"
    with load_predictor(model, AB) as predictor:
        footage = open_footage(clip, model.config)
        for _, p, probs in predictor.look(
            footage, [(0, 20), (10, 30), (0, footage.num_frames)], batch_size=1
        ):
            assert torch.is_grad_enabled() and not probs.requires_grad and p.alignment is not None
        assert p == predict(clip, AB, model)


def test_a_predictor_serves_many_videos(dives, model):
    "Loaded once, and each answer is that of `predict`; one view or three"
    videos = sorted((dives / "rgb").glob("*test*.mp4"))
    classes = read_facts("simdive48")["classes"]
    with load_predictor(model, classes) as predictor:
        for views in (1, 3):
            assert [predictor(v, views=views) for v in videos] == [
                predict(v, classes, model, views=views) for v in videos
            ]


# --- windows ---


def noise(path, frames, size=64, fps=30):
    "A film whose frames cannot be guessed from their neighbours"
    rng = np.random.default_rng(0)
    write_video(path, rng.integers(0, 255, (frames, size, size, 3), np.uint8), fps=fps, crf=30, gop=10)


def test_a_film_that_is_damaged_in_the_middle(tmp_path, model):
    "The windows that can be read are kept, the others are named"
    noise(tmp_path / "film.mp4", 300)
    data = bytearray((tmp_path / "film.mp4").read_bytes())
    a, b = int(0.45 * len(data)), int(0.55 * len(data))
    data[a:b] = random.Random(0).randbytes(b - a)
    (tmp_path / "film.mp4").write_bytes(data)
    line = predict_windows(
        tmp_path / "film.mp4", AB, model, window=1.0, backend=everywhere, extract=False, pose=whole(300)
    )
    assert json.loads(line.to_json()) == line.to_dict()
    assert 3 <= len(line.broken) <= 6 and len(line) + len(line.broken) == 19
    assert "windows cannot be read" in line.notes[-1] and "\n" not in line.notes[-1]
    assert all(3.4 < (a + b) / 2 < 6.6 for a, b, _ in line.broken)
    assert line.at(5.0) is None and line.at(1.0) and line.at(9.0), "a gap stays a gap"


def whole(frames, size=64):
    rng = np.random.default_rng(1)
    return Pose(
        rng.uniform(9, size - 9, (frames, 17, 2)).astype(np.float32),
        np.ones((frames, 17), np.float32),
        (size, size),
    )


@pytest.mark.parametrize(
    "frames, fps, windows", [(1, 30, 1), (7, 30, 1), (130, 30, 1), (180, 30, 2), (30, 5, 2)]
)
def test_films_of_any_length(tmp_path, model, frames, fps, windows):
    noise(tmp_path / "film.mp4", frames, fps=fps)
    line = predict_windows(tmp_path / "film.mp4", AB, model, pose=whole(frames))
    assert len(line) == windows and line.windows[0].start == 0
    assert line.windows[-1].end == line.seconds[1] == pytest.approx(frames / fps)
    assert line.segments()[-1].end == line.seconds[1]


def test_memory_does_not_grow_with_the_film(tmp_path):
    "Twelve times as many windows, the same peak"
    noise(tmp_path / "film.mp4", 1500, 128)
    code = """
        import resource, sys, numpy as np, torch
        torch.set_num_threads(1)
        from pevl.data.pose import Pose
        from pevl.use.predict import load_predictor, open_footage
        p = load_predictor("simdive48", ["a", "b"])
        pose = Pose(np.full((1500, 17, 2), 60, np.float32), np.ones((1500, 17), np.float32), (128, 128))
        film = open_footage(sys.argv[1], p.model.config, pose)
        n = int(sys.argv[2])
        assert len(list(p.look(film, [(24 * i, 24 * i + 24) for i in range(n)]))) == n
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    peak = []
    for n in (5, 60):
        cmd = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "film.mp4"), str(n)]
        ran = subprocess.run(cmd, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr[-2000:]
        peak.append(int(ran.stdout) / 1024)
    assert peak[1] < peak[0] + 40, peak  # MiB


# --- features ---

WORK = """
    import sys, torch
    torch.set_num_threads(1)
    from pevl.data.datasets import read_diving48
    from pevl.use.features import extract_features
    extract_features(read_diving48(sys.argv[1], "train"), sys.argv[2], batch_size=1, every=2, progress=False)
"""


def test_features_after_sigkill(tmp_path):
    "Killed again and again, then left in peace: the file is the one that nobody disturbed"
    root = generate(
        tmp_path / "more", classes=3, train=4, test=1, seed=12, workers=1, size=64, progress=False
    )
    out = tmp_path / "features.safetensors"
    cmd = [sys.executable, "-c", textwrap.dedent(WORK), str(root)]
    parts, seen = out.with_name(out.name + ".parts"), 0
    for _ in range(2):
        p = subprocess.Popen([*cmd, str(out)], stderr=subprocess.DEVNULL)
        end = time.time() + 120
        while time.time() < end and p.poll() is None and len(list(parts.glob("[!.]*"))) <= seen:
            time.sleep(0.005)
        p.send_signal(signal.SIGKILL)
        p.wait()
        if out.exists():
            break
        seen = len(list(parts.glob("[!.]*")))
        assert seen
    subprocess.run([*cmd, str(out)], check=True, timeout=300)
    how = dict(batch_size=1, every=2, progress=False)
    extract_features(read_diving48(root, "train"), tmp_path / "whole.safetensors", **how)
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["features.safetensors", "more", "whole.safetensors"]


def rewritten(path, change):
    "The file with another header"
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(path, "pt") as f:
        held = json.loads(f.metadata()["pevl_features"])
    change(held)
    save_file(load_file(path), path, {"pevl_features": json.dumps(held)})


HEADERS = {
    "names are no list": lambda h: h.update(names="abc"),
    "a name comes twice": lambda h: h.update(names=[h["names"][0]] * len(h["names"])),
    "names are no texts": lambda h: h.update(names=list(range(len(h["names"])))),
    "too few names": lambda h: h["names"].pop(),
    "too few stamps": lambda h: h["stamps"].pop(),
    "too few labels": lambda h: h["facts"]["labels"].pop(),
    "no facts": lambda h: h.pop("facts"),
}


@pytest.mark.parametrize("what", HEADERS)
def test_feature_files_with_wrong_headers(what, dives, tmp_path, model):
    out = tmp_path / "f.safetensors"
    extract_features(read_diving48(dives, "train"), out, model)
    rewritten(out, HEADERS[what])
    with pytest.raises(ValueError, match="f.safetensors: ") as e:
        read_features(out)
    assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match="f.safetensors: "):  # and it is not overwritten by accident
        extract_features(read_diving48(dives, "train"), out, model)
    assert extract_features(read_diving48(dives, "train"), out, model, force=True) == 3


@pytest.mark.parametrize("data", [b"", b"\x80\x04text", b"\xff" * 64, b"x" * 5000])
def test_feature_files_that_are_none(data, tmp_path):
    (tmp_path / "f.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="holds no features"):
        read_features(tmp_path / "f.safetensors")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_features(tmp_path / "none.safetensors")


def test_features_of_a_folder_with_broken_videos(mess, tmp_path, model):
    "They are named, the others are kept, and everybody may read the file as any other"
    (folder, names), out = mess, tmp_path / "f.safetensors"
    assert extract_features(folder, out, model, extract=False) == len(names)
    assert {"gone", "empty", "text"} <= set(read_features(out).facts["failed"])
    (tmp_path / "any").touch()
    assert out.stat().st_mode == (tmp_path / "any").stat().st_mode


def test_features_on_a_full_disk(dives, tmp_path, model, monkeypatch):
    "The error names the file, nothing is half-written, and the parts are there for the next time"
    import pevl.use.features as module

    clips, out, write = read_diving48(dives, "train"), tmp_path / "f.safetensors", module.write_features

    def full(path, s):
        if path == out:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, s)

    monkeypatch.setattr(module, "write_features", full)
    with pytest.raises(OSError, match="f.safetensors"):
        extract_features(clips, out, model)
    assert not out.exists() and len(list(tmp_path.glob("f.safetensors.parts/*"))) == 1
    monkeypatch.undo()
    monkeypatch.setattr(type(model), "encode_clip", None)  # nothing is left to encode
    assert extract_features(clips, out, model) == 3
    assert torch.isfinite(read_features(out)["video"]).all()
    for place, words in ((tmp_path / "no" / "f.safetensors", "its folder"), (tmp_path / "f.pt", "ends in")):
        with pytest.raises((ValueError, OSError), match=words):
            extract_features(clips, place, model)
