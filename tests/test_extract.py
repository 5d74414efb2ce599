"""Poses out of videos: crashing workers, Ctrl-C, memory, silence; the optional backends where they are installed."""

import errno
import hashlib
import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pevl.data.extract import BackendError, extract, open_backend, read_weights, stream_frames
from pevl.data.pose import load_pose, save_pose
from pevl.data.video import read_frames, write_video
from settings import ROOT

PHOTOS = ROOT / "tests" / "photos"


def installed(*names):
    return all(importlib.util.find_spec(n) for n in names)


need_mediapipe = pytest.mark.skipif(not installed("mediapipe"), reason="mediapipe is not installed (make)")


def photo(name="astronaut"):
    return np.asarray(Image.open(PHOTOS / f"{name}.jpg").convert("RGB"))


DETECTORS = """
import os, time
import numpy as np

class Square:
    "Finds the one bright square; misbehaves on frames whose first pixel has a certain red"
    several, layout, install = False, "coco17", "nothing"

    def __init__(self, pause: float = 0.0):
        self.pause = pause

    def __call__(self, frame):
        time.sleep(self.pause)
        if frame[0, 0, 0] > 200:
            os._exit(9)
        if frame[0, 0, 0] > 100:
            raise RuntimeError("no such luck")
        y, x = np.nonzero(frame[8:].min(-1) > 180)
        if not len(x):
            return np.zeros((0, 17, 2)), np.zeros((0, 17))
        at = np.array([x.mean(), y.mean() + 8])
        return (at + 10 * np.stack([np.cos(np.arange(17)), np.sin(np.arange(17))], -1))[None], np.ones((1, 17))
"""


@pytest.fixture
def detectors(tmp_path, monkeypatch):
    "A module with a detector that other processes can import"
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "detectors_of_a_test.py").write_text(DETECTORS)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    yield "detectors_of_a_test:Square"
    sys.modules.pop("detectors_of_a_test", None)


def square(path, frames=6, corner=0, size=(64, 96), fps=30):
    "A white square that moves right; the corner's red tells the detector what to do"
    film = np.zeros((frames, *size, 3), np.uint8)
    for t in range(frames):
        film[t, 24:40, 20 + 2 * t % 40 : 36 + 2 * t % 40] = 255
        film[t, :8, :8, 0] = corner
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, film, fps=fps, crf=5)
    return path


def test_a_worker_that_dies_costs_its_clip_only(tmp_path, detectors):
    clips = tmp_path / "clips"
    for i in range(2):
        square(clips / f"good{i}.mp4")
    square(clips / "deadly.mp4", corner=255)
    square(clips / "raises.mp4", corner=150)
    result = extract(clips, backend=detectors, workers=2, progress=False)
    assert sorted(v.stem for v in result.done) == [f"good{i}" for i in range(2)]
    assert {v.stem: why for v, why in result.failed.items()} == {
        "deadly": "its process died (out of memory, or the detector crashed)",
        "raises": "RuntimeError: no such luck",
    }
    assert result.status == 1
    assert sorted(p.name for p in (clips / "pose").iterdir()) == [f"good{i}.npz" for i in range(2)]
    pose = load_pose(clips / "pose" / "good0.npz")
    assert np.abs(pose.keypoints[:, :, 0].mean(1) - (27.5 + 2 * np.arange(6))).max() < 1.5


def test_options_reach_the_workers_and_wrong_ones_are_refused(tmp_path, detectors):
    square(tmp_path / "a.mp4")
    with pytest.raises(BackendError, match="its options: pause"):
        extract(tmp_path / "a.mp4", backend=detectors, wait=1)
    with pytest.raises(BackendError, match="has no attribute 'Circle'"):
        extract(tmp_path / "a.mp4", backend="detectors_of_a_test:Circle")
    assert not (tmp_path / "pose").exists() or not list((tmp_path / "pose").iterdir())


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("workers", [1, 2])
def test_interrupt_leaves_no_process_and_no_half_file(tmp_path, detectors, workers):
    clips = tmp_path / "clips"
    for i in range(4):
        square(clips / f"slow{i}.mp4", frames=200 if i else 4)  # 10 s each, but for the first
    code = f"""
        import signal
        from pevl.data.extract import extract
        if __name__ == "__main__":
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without it
            r = extract({str(clips)!r}, backend={detectors!r}, workers={workers}, overlay={str(tmp_path / "look")!r}, pause=0.05)
            raise SystemExit(r.status)
    """
    (tmp_path / "run.py").write_text(textwrap.dedent(code))
    run = subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py")], stderr=subprocess.PIPE, start_new_session=True, text=True
    )
    deadline = time.time() + 90
    while not (clips / "pose" / "slow0.npz").exists() and time.time() < deadline:
        time.sleep(0.2)
    time.sleep(1)
    start = time.time()
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to all processes
    _, err = run.communicate(timeout=30)
    assert run.returncode == 130, err
    assert "Traceback" not in err
    assert time.time() - start < 15
    assert [p.name for p in (clips / "pose").iterdir()] == ["slow0.npz"]
    assert [p.name for p in (tmp_path / "look").iterdir()] == ["slow0.overlay.mp4"]
    with pytest.raises(ProcessLookupError):  # nobody of the group is left
        for _ in range(50):
            os.killpg(run.pid, 0)
            time.sleep(0.1)
    again = extract(clips / "slow0.mp4", backend=detectors, progress=False)
    assert again.kept and not again.done


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in KiB")
def test_memory_does_not_grow_with_the_frames(tmp_path, detectors):
    for frames in (12, 120):  # 120 frames are 83 MB
        square(tmp_path / f"{frames}.mp4", frames=frames, size=(360, 640))
    code = f"""
        import resource
        from pevl.data.extract import extract
        if __name__ == "__main__":
            for frames in (12, 120):
                how = dict(backend={detectors!r}, overlay={str(tmp_path / "look")!r}, progress=False)
                r = extract({str(tmp_path)!r} + f"/{{frames}}.mp4", **how)
                assert r.status == 0, r
                print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    (tmp_path / "run.py").write_text(textwrap.dedent(code))
    out = subprocess.run(
        [sys.executable, str(tmp_path / "run.py")], capture_output=True, text=True, timeout=300
    )
    assert out.returncode == 0, out.stderr
    short, long = (int(n) / 1024 for n in out.stdout.split())
    assert long < short + 30, (short, long)  # MiB


def test_a_full_disk_ends_the_run(tmp_path, detectors, monkeypatch):
    "At the first clip that cannot be written, and with the name of the file"
    for name in "abc":
        square(tmp_path / f"{name}.mp4")

    def full(path, pose):
        if Path(path).stem == "b":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save(path, pose)

    save = save_pose
    monkeypatch.setattr("pevl.data.extract.save_pose", full)
    with pytest.raises(OSError, match=r"b\.npz") as e:
        extract(tmp_path, backend=detectors, progress=False)
    assert e.value.errno == errno.ENOSPC
    assert [p.name for p in (tmp_path / "pose").iterdir()] == ["a.npz"]
    monkeypatch.undo()  # space was made; the path to the detectors goes, too
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    again = extract(tmp_path, backend=detectors, progress=False)
    assert [len(again.kept), len(again.done)] == [1, 2]
    assert "1 from before kept as they are (--force makes them again)" in again.summary()


def test_the_pose_stays_when_its_overlay_fails(tmp_path, detectors, monkeypatch):
    "And the next run makes the overlay; an old one that shows another pose does not stay"
    square(tmp_path / "a.mp4")
    look = tmp_path / "look" / "a.overlay.mp4"
    look.parent.mkdir()
    look.write_bytes(b"of another pose")

    def refuse(*args):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(look))

    with monkeypatch.context() as m:
        m.setattr("pevl.data.extract.write_overlay", refuse)
        result = extract(
            tmp_path / "a.mp4", backend=detectors, overlay=look.parent, force=True, progress=False
        )
    assert list(result.failed.values()) == [f"{look}: permission denied"]
    assert len(load_pose(tmp_path / "pose" / "a.npz")) == 6 and not look.exists()
    result = extract(tmp_path / "a.mp4", backend=detectors, overlay=look.parent, progress=False)
    assert result.status == 0 and len(list(stream_frames(look))) == 6


@pytest.mark.parametrize("name", ["rtmlib", "mmpose", "no_such_module:Detector"])
def test_a_backend_that_is_not_there(tmp_path, monkeypatch, name):
    "One line, before anything is made"
    for package in ("rtmlib", "mmpose", "mmcv"):
        monkeypatch.setitem(sys.modules, package, None)
    square(tmp_path / "a.mp4")
    options = dict(weights="random") if name == "mmpose" else {}
    with pytest.raises(BackendError, match=f"backend '?{name}'?: ") as e:
        extract(tmp_path, backend=name, progress=False, **options)
    assert "\n" not in str(e.value) and ("pip install" in str(e.value)) == (":" not in name)
    assert not (tmp_path / "pose").exists()


def test_the_bar_of_many_clips_names_the_one_under_way(tmp_path, detectors, capsys):
    for name, frames in dict(first=10, second=20).items():
        square(tmp_path / f"{name}.mp4", frames=frames)
    extract(tmp_path, backend=detectors)
    err = capsys.readouterr().err
    assert "frame 10 of first.mp4" in err and "frame 20 of second.mp4" in err and "2/2" in err


def test_frames_of_a_turned_film(tmp_path):
    "A phone notes a quarter turn in its file; poses are in pixels of what is shown"
    film = np.zeros((4, 48, 96, 3), np.uint8)
    film[:, :, :48, 0] = 255  # red on the left
    write_video(tmp_path / "plain.mp4", film, crf=5)
    data = (tmp_path / "plain.mp4").read_bytes()
    one = (0x10000).to_bytes(4, "big")
    matrix = one + bytes(12) + one + bytes(12) + (0x40000000).to_bytes(4, "big")
    turned = bytes(4) + one + bytes(4) + (2**32 - 0x10000).to_bytes(4, "big") + bytes(16) + matrix[-4:]
    at = data.index(matrix, data.index(b"tkhd"))
    (tmp_path / "turned.mp4").write_bytes(data[:at] + turned + data[at + 36 :])
    frames = list(stream_frames(tmp_path / "turned.mp4"))
    assert [f.shape for f in frames] == [(96, 48, 3)] * 4
    assert np.array_equal(
        np.stack(frames), read_frames(tmp_path / "turned.mp4", range(4)).permute(0, 2, 3, 1)
    )
    red = frames[0][..., 0] > 128
    assert red[:40].all() != red[-40:].all()  # above or below, no longer on the left


@need_mediapipe
def test_mediapipe_is_silent(tmp_path):
    "Nothing on stderr: neither from Python nor from compiled code"
    write_video(tmp_path / "a.mp4", np.stack([photo()[:500, :300]] * 3))
    code = f"""
        from pevl.data.extract import extract
        if __name__ == "__main__":
            for tracking in (False, True):
                r = extract({str(tmp_path / "a.mp4")!r}, force=True, progress=False, tracking=tracking)
                assert r.status == 0 and not r.nobody
    """
    (tmp_path / "run.py").write_text(textwrap.dedent(code))
    cmd = [sys.executable, str(tmp_path / "run.py")]
    out = subprocess.run(cmd, capture_output=True, text=True, timeout=300)
    assert (out.returncode, out.stdout, out.stderr) == (0, "", "")


@need_mediapipe
def test_two_copies_side_by_side(tmp_path):
    "One person only is found: all joints are on one of the two"
    pair = np.concatenate([photo()[:, 60:380], photo()[:, 60:380]], 1)
    write_video(tmp_path / "pair.mp4", np.stack([pair] * 3), crf=18)
    result = extract(tmp_path / "pair.mp4", progress=False)
    assert next(iter(result.done.values()))["people"] == 1
    pose = load_pose(tmp_path / "pose" / "pair.npz")
    for points, scores in zip(pose.keypoints, pose.scores, strict=True):
        x = points[scores > 0.5, 0]
        assert len(x) > 6 and (x < 320).mean() in (0, 1)


@need_mediapipe
@pytest.mark.parametrize("shape", [(97, 131), (720, 1280), (64, 400)])
def test_any_shape_of_picture(shape):
    detector = open_backend("mediapipe")
    points, scores = detector(np.zeros((*shape, 3), np.uint8))
    assert points.shape == (0, 17, 2) and scores.shape == (0, 17)
    detector.close()


@pytest.mark.skipif(
    not installed("rtmlib", "onnxruntime", "onnx"), reason="rtmlib, onnxruntime and onnx are not installed"
)
def test_rtmlib_with_its_real_code(tmp_path, monkeypatch):
    "Small networks of ours in the place of the downloaded ones: boxes where it is red first, joints that depend on the colours"
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    def model(name, shape, nodes, outputs, constants):
        graph = helper.make_graph(
            nodes,
            name,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs],
            [numpy_helper.from_array(v, k) for k, v in constants.items()],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.save(made, tmp_path / name)
        return str(tmp_path / name)

    # YOLOX with its NMS inside gives (1, n, 5): here two boxes, whose score is the mean of the last channel, red in BGR
    boxes = np.array([[[10, 20, 110, 220, 0], [300, 20, 400, 220, 0]]], np.float32)
    where = np.array([[[0, 0, 0, 0, 1 / 255], [0, 0, 0, 0, 1 / 255]]], np.float32)
    find = model(
        "find.onnx",
        [1, 3, 640, 640],
        [
            helper.make_node("Slice", ["input", "from", "to", "axis"], ["red"]),
            helper.make_node("ReduceMax", ["red"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["where", "mean"], ["score"]),
            helper.make_node("Add", ["boxes", "score"], ["dets"]),
        ],
        [("dets", [1, 2, 5])],
        {
            "boxes": boxes,
            "where": where,
            "from": np.array([2]),
            "to": np.array([3]),
            "axis": np.array([1]),
        },
    )
    # RTMPose gives two sets of curves; the highest point of each is the joint: the middle of the crop. Its height tells the first colour
    x, y = np.zeros((1, 17, 384), np.float32), np.zeros((1, 17, 512), np.float32)
    x[..., 192], y[..., 256] = 1, 1
    estimate = model(
        "estimate.onnx",
        [1, 3, 256, 192],
        [
            helper.make_node("Slice", ["input", "from", "to", "axis"], ["red"]),
            helper.make_node("ReduceMax", ["red"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["x", "mean"], ["simcc_x"]),
            helper.make_node("Mul", ["y", "mean"], ["simcc_y"]),
        ],
        [("simcc_x", [1, 17, 384]), ("simcc_y", [1, 17, 512])],
        {"x": x, "y": y, "from": np.array([0]), "to": np.array([1]), "axis": np.array([1])},
    )
    d = open_backend("rtmlib", detector=find, estimator=estimate)
    red = np.zeros((640, 640, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    points, scores = d(red)
    assert points.shape == (2, 17, 2) and (scores > 0.9).all() and (scores <= 1).all()
    assert np.abs(points - np.array([[60, 120], [350, 120]])[:, None]).max() < 2
    assert d(red[..., ::-1])[0].shape == (
        0,
        17,
        2,
    )  # blue: the detector finds nobody, and nobody is estimated
    write_video(tmp_path / "red.mp4", np.stack([red] * 3), crf=5)
    result = extract(
        tmp_path / "red.mp4", backend="rtmlib", detector=find, estimator=estimate, progress=False
    )
    assert next(iter(result.done.values()))["people"] == 2


@pytest.mark.skipif(not installed("mmpose", "mmcv", "mmengine"), reason="mmpose is not installed")
def test_mmpose_with_random_weights(tmp_path):
    import torch

    torch.manual_seed(0)
    d = open_backend("mmpose", weights="random", least=0.0)
    assert sum(p.numel() for p in d.model.parameters()) == 28_536_113
    points, scores = d(photo()[:300, :400])
    assert points.shape == (1, 17, 2) and scores.shape == (1, 17)
    assert (points[..., 0] < 400).all() and (points[..., 1] < 300).all() and (points >= 0).all()
    heat = (
        d.model.data_preprocessor.mean.flatten().tolist()
    )  # red first: the configuration turns the colours round
    assert [round(v, 1) for v in heat] == [123.7, 116.3, 103.5]
    # its own weights, saved as OpenMMLab does, come back
    torch.save(dict(state_dict=d.model.state_dict(), meta=dict(epoch=210)), tmp_path / "w.pth")
    digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    named = Path(tmp_path, f"hrnet-{digest[:8]}_20220909.pth")
    (tmp_path / "w.pth").rename(named)
    again, scores2 = open_backend("mmpose", weights=str(named), least=0.0)(photo()[:300, :400])
    assert np.array_equal(points, again) and np.array_equal(scores, scores2)
    state = read_weights(named)
    state.pop(next(iter(state)))
    torch.save(state, tmp_path / "w.pth")
    digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    with pytest.raises(BackendError, match="does not fit td-hm_hrnet-w32"):
        open_backend("mmpose", weights=str(tmp_path / "w.pth"), sha256=digest)
    with pytest.raises(BackendError, match="no config 'hrnet'"):
        open_backend("mmpose", weights="random", config="hrnet")
