"""Foreign pose files as a breaker would make them: read as they were meant, or refused in one line; and our own file."""

import contextlib
import copy
import json
import multiprocessing as mp
import os
import pickle
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from pevl.data.pickles import what_is
from pevl.data.pose import Pose, PoseError, save_pose
from pevl.data.pose_files import (
    ARRAYS,
    START,
    PoseFile,
    convert,
    match_ids,
    poses_of,
    read_coco,
    read_smarthome_pose,
    write_poses,
)


def refused(call, *parts):
    with pytest.raises(PoseError) as e:
        call()
    text = str(e.value)
    assert "\n" not in text and len(text) < 600
    for part in parts:
        assert part in text, text
    return text


def good():
    r = np.random.default_rng(0)
    a = dict(frame_dir="a", label=3, img_shape=(240, 320), original_shape=(240, 320), total_frames=5)
    a["keypoint"] = r.uniform(1, 200, (2, 5, 17, 2)).astype(np.float16)
    a["keypoint_score"] = r.uniform(0.1, 1, (2, 5, 17)).astype(np.float16)
    b = copy.deepcopy(a) | {"frame_dir": "b", "keypoint_score": np.asfortranarray(a["keypoint_score"])}
    return {"split": {"train": ["a"], "test": ["b"]}, "annotations": [a, b]}


# --- JSON ---

JUNK = [
    None,
    "",
    "x",
    -1,
    0,
    10**400,
    1e308,
    float("nan"),
    True,
    [],
    {},
    [[]],
    {"id": 1},
    [None],
    "1" * 50,
    2**31,
    [1, 2, 3],
]


def changed(value, r):
    "The value with one node in it replaced by junk, removed or doubled"
    value = copy.deepcopy(value)
    spots = []

    def walk(v):
        for k in v if isinstance(v, dict) else range(len(v)):
            spots.append((v, k))
            if isinstance(v[k], (dict, list)) and v[k]:
                walk(v[k])

    walk(value)
    v, k = r.choice(spots)
    how = r.random()
    if how < 0.7:
        v[k] = r.choice(JUNK)
    elif how < 0.85:
        del v[k]
    elif isinstance(v, list):
        v.insert(k, copy.deepcopy(v[k]))
    return value


def coco():
    names = ["nose", "left_eye", "right_eye", "left_shoulder", "right_shoulder", "left_hip", "right_hip"]
    return dict(
        images=[dict(id=i, file_name=f"v/{i}.jpg", width=64, height=48, frame_id=i) for i in range(3)],
        annotations=[dict(id=i, image_id=i, category_id=1, keypoints=[9.0, 8.0, 2] * 7) for i in range(3)],
        categories=[dict(id=1, name="person", keypoints=names)],
    )


@pytest.mark.parametrize(
    "value, read",
    [
        (
            dict(K=1, njts=13, frames=[[{"pose2d": [9.0] * 26, "pose3d": [0.0] * 39}], []]),
            read_smarthome_pose,
        ),
        (coco(), read_coco),
        (
            [dict(image_id=f"{i}.jpg", keypoints=[9.0, 8.0, 0.5] * 17, score=1.0) for i in (1, 3)],
            lambda p: read_coco(p, (48, 64)),
        ),
    ],
    ids=("smarthome", "coco", "results"),
)
def test_changed_json(value, read, tmp_path):
    path, r, fine = tmp_path / "a.json", random.Random(0), 0
    path.write_text(json.dumps(value))
    read(path)
    for _ in range(600):
        path.write_text(json.dumps(changed(value, r)))
        try:
            read(path)
            fine += 1
        except PoseError as e:
            assert str(path) in str(e) and "\n" not in str(e) and len(str(e)) < 500
    assert 0 < fine < 600


def test_changed_annotations(tmp_path):
    value = good()
    for a in value["annotations"]:
        for k in ("keypoint", "keypoint_score"):
            a[k] = a[k].tolist()
    path, r = tmp_path / "a.pkl", random.Random(0)
    arrays = [
        np.zeros(s, t)
        for s in ((), (0,), (2, 5), (2, 5, 17), (0, 5, 17, 2), (2, 5, 17, 3), (1, 5, 18, 2))
        for t in ("f2", "f8", "i4", "U3", "?")
    ]
    for _ in range(300):
        v = changed(dict(value), r)
        for a in (
            v.get("annotations") or []
            if isinstance(v, dict) and isinstance(v.get("annotations"), list)
            else []
        ):
            if isinstance(a, dict):
                for k in ("keypoint", "keypoint_score"):
                    if k in a:
                        with (
                            np.errstate(over="ignore"),
                            contextlib.suppress(TypeError, ValueError, OverflowError),
                        ):
                            a[k] = np.array(a[k], np.float16) if r.random() < 0.8 else r.choice(arrays)
        path.write_bytes(pickle.dumps(v))
        try:
            poses = poses_of(path)
        except PoseError as e:
            assert str(path) in str(e)
            continue
        for n in poses:
            try:
                poses[n]
            except PoseError as e:
                assert str(path) in str(e) and f"({n})" in str(e)


# --- our own file ---


def pose(F=5, J=17, seed=0, size=(240, 320)):
    r = np.random.default_rng(seed)
    layout = {17: "coco17", 13: "smarthome13"}[J]
    return Pose(
        r.uniform(0, 240, (F, J, 2)).astype(np.float32),
        r.uniform(0, 1, (F, J)).astype(np.float32),
        size,
        layout,
    )


@pytest.mark.parametrize("J", (17, 13))
@pytest.mark.parametrize("F", (1, 2, 3, 4, 5))
def test_round_trip(F, J, tmp_path):
    poses = {f"a/{i} ü": pose(F + i, J, i) for i in range(3)}
    write_poses(tmp_path / "p.safetensors", poses)
    assert (tmp_path / "p.safetensors").stat().st_size % 2 == 0
    held = PoseFile(tmp_path / "p.safetensors")
    for n in poses:
        assert np.abs(held[n].keypoints - poses[n].keypoints).max() <= 1 / 32 + 1e-6
        assert len(held[n]) == len(poses[n]) == held.frames(n)
        held[n].keypoints[:] = 0  # a copy of one's own
        assert held[n].keypoints.any()
    from safetensors import safe_open

    with safe_open(tmp_path / "p.safetensors", "np") as f:
        assert set(f.keys()) == set(ARRAYS)
        assert f.metadata()["layout"] == held.layout
        a, b = f.get_tensor("offsets")[:2]
        assert f.get_slice("joints")[a:b].shape == (F, J, 3)


def test_every_byte_of_the_header(tmp_path):
    "Changed in turn: refused, or no difference to the poses"
    path = tmp_path / "p.safetensors"
    write_poses(path, {"a": pose(), "b": pose(3, seed=1)})
    first, r = path.read_bytes(), random.Random(0)
    truth = {n: PoseFile(path)[n].keypoints for n in "ab"}
    used = len(first[:START].rstrip())
    for i in [*range(used), *range(START + 8 * 17 * 6, len(first))]:
        for value in {first[i] ^ 1, first[i] ^ 0x80, r.randrange(256), ord("9"), ord(" ")} - {first[i]}:
            path.write_bytes(first[:i] + bytes([value]) + first[i + 1 :])
            try:
                held = PoseFile(path)
                for n in held:
                    assert np.array_equal(held[n].keypoints, truth[n])
            except PoseError as e:
                assert str(path) in str(e) and "\n" not in str(e)
    for n in [0, 1, 7, 8, 9, 100, START - 1, START, START + 10, len(first) - 1]:
        path.write_bytes(first[:n])
        refused(lambda: len(PoseFile(path)), str(path))


LIMITED = """
import resource, sys
from pevl.data.pose import PoseError
from pevl.data.pose_files import PoseFile
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
try:
    len(PoseFile(sys.argv[1]))
except PoseError as e:
    print(e)
"""


def test_a_header_that_lies_allocates_nothing(tmp_path):
    path = tmp_path / "p.safetensors"
    write_poses(path, {"a": pose()})
    first = path.read_bytes()
    head = json.loads(first[8:START])
    F = 2**52
    head["joints"].update(shape=[F, 17, 3], data_offsets=[0, F * 17 * 6])
    path.write_bytes(first[:8] + json.dumps(head).encode().ljust(START - 8) + first[START:])
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, path, str(64 << 30)], capture_output=True, text=True
    )
    assert "offsets: lies at" in done.stdout or "joints: " in done.stdout, done


def test_a_foreign_safetensors(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(3)}, tmp_path / "p.safetensors")
    refused(lambda: PoseFile(tmp_path / "p.safetensors").names, "not of poses")
    refused(lambda: convert(tmp_path / "p.safetensors", tmp_path / "q.safetensors"), "not of poses")
    assert what_is((tmp_path / "p.safetensors").read_bytes()) == "safetensors"


def load_sum(at):
    return float(at.load().keypoints.sum())


@pytest.mark.parametrize("how", ("fork", "spawn"))
@pytest.mark.parametrize("opened", (False, True))
def test_other_processes(how, opened, tmp_path):
    write_poses(tmp_path / "p.safetensors", {f"{i}": pose(seed=i) for i in range(20)})
    held = PoseFile(tmp_path / "p.safetensors")
    clips = [held.at(n) for n in PoseFile(held.path)]
    if opened:
        load_sum(clips[3])
    with mp.get_context(how).Pool(2) as pool:
        assert pool.map(load_sum, clips) == [load_sum(c) for c in clips]
    assert len(pickle.dumps(clips)) < 4000  # a path, not the poses


def test_one_clip_is_read_without_the_rest(tmp_path):
    "A damaged clip in a file of many; and the memory that a reader takes"
    big = {f"{i}": pose(2000, seed=i) for i in range(50)}
    write_poses(tmp_path / "p.safetensors", big)  # 10 MB
    script = """
import resource, sys
from pevl.data.pose_files import PoseFile
import numpy as np
f = PoseFile(sys.argv[1])
before = int(open("/proc/self/statm").read().split()[1])
f["25"]
print((int(open("/proc/self/statm").read().split()[1]) - before) * resource.getpagesize())
"""
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("needs /proc")
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "p.safetensors"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 4 << 20


def test_a_full_disk(tmp_path):
    path = tmp_path / "p.safetensors"
    write_poses(path, {"old": pose()})
    first = path.read_bytes()
    script = """
import resource, signal, sys
import numpy as np
from pevl.data.pose import Pose
from pevl.data.pose_files import write_poses
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
one = Pose(np.ones((100, 17, 2), "f4"), np.ones((100, 17), "f4"), (240, 320))
try:
    write_poses(sys.argv[1], ((str(i), one) for i in range(100)))
except OSError as e:
    print(e)
"""
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert str(path) in done.stdout and ".part" not in done.stdout and "too large" in done.stdout
    assert path.read_bytes() == first and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_killed_while_converting(tmp_path):
    source, out = tmp_path / "npz", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    for i in range(300):
        save_pose(source / f"{i}.npz", pose(50, seed=i))
    convert(source, out, ids=["7"])
    first = (out / "poses.safetensors").read_bytes()
    script = "import sys; from pevl.data.pose_files import convert\nwhile True: print(flush=True); convert(*sys.argv[1:])"
    p = subprocess.Popen(
        [sys.executable, "-c", script, source, out / "new.safetensors"], stdout=subprocess.PIPE
    )
    p.stdout.readline()
    time.sleep(0.05)
    p.send_signal(signal.SIGKILL)
    p.communicate()
    assert (out / "poses.safetensors").read_bytes() == first
    if (out / "new.safetensors").exists():
        assert len(PoseFile(out / "new.safetensors")) == 300
    assert convert(source, out).poses == 300  # what is left of the killed one disturbs nobody
    assert len(PoseFile(out / "poses.safetensors")) == 300


def test_broken_clips_are_named(tmp_path):
    source = tmp_path / "pose"
    source.mkdir()
    for i in range(4):
        save_pose(source / f"{i}.npz", pose(seed=i))
    (source / "1.npz").write_bytes(b"torn")
    (source / "2.npz").write_bytes((source / "3.npz").read_bytes()[:200])
    done = convert(source, tmp_path)
    assert done.poses == 2 and PoseFile(done.path).names == ["0", "3"]
    assert set(done.broken) == {"1", "2"} and all(str(source) in why for why in done.broken.values())
    assert "2 poses, 10 frames, 2 broken" in str(done)


def test_mixed_layouts(tmp_path):
    source = tmp_path / "pose"
    source.mkdir()
    save_pose(source / "a.npz", pose())
    save_pose(source / "b.npz", pose(J=13))
    with pytest.raises(ValueError, match="b has the layout smarthome13, the one before coco17"):
        convert(source, tmp_path)
    assert not (tmp_path / "poses.safetensors").exists()
    assert PoseFile(convert(source, tmp_path, layout="smarthome13").path).layout == "smarthome13"
    done = convert(source, tmp_path, layout="coco17")
    assert done.poses == 1 and "cannot become coco17" in done.broken["b"]


def test_ids_of_a_whole_set():
    "Gym288's ids without their letters, with YouTube ids of all kinds"
    r = random.Random(0)
    letters = "abcXYZ0129_-"
    videos = ["".join(r.choices(letters, k=11)) for _ in range(500)]
    videos += [f"{''.join(r.choices('0123456789', k=5))}_{r.randrange(10**5):05d}" for _ in range(100)]
    videos += ["_".join(r.choices("0123456789EA", k=6)) for _ in range(200)]
    wanted, held = [], []
    for v in dict.fromkeys(videos):
        for _ in range(3):
            a, b, c, d = (r.randrange(10**6) for _ in range(4))
            wanted.append(f"{v}_E_{a:06d}_{b:06d}_A_{c % 10000:04d}_{d % 10000:04d}")
            held.append(wanted[-1].removeprefix(v).replace("_E_", "_").replace("_A_", "_").join([v, ""]))
    r.shuffle(pairs := list(zip(wanted, held, strict=True)))
    assert match_ids(wanted, [h for _, h in pairs]) == dict(zip(wanted, held, strict=True))
    assert match_ids(wanted, wanted) == {w: w for w in wanted}


# --- the command line ---


def an(name="v", M=1, T=6, V=17, **change):
    "An annotation as PYSKL writes it; a field that is changed to ... is left out"
    r = np.random.default_rng(0)
    a = dict(frame_dir=name, label=np.int64(3), img_shape=(720, 1280), original_shape=(720, 1280))
    a |= dict(total_frames=T, keypoint=r.uniform(100, 600, (M, T, V, 2)).astype(np.float16))
    a |= dict(keypoint_score=r.uniform(0.3, 1, (M, T, V)).astype(np.float16)) | change
    return {k: v for k, v in a.items() if v is not ...}


def official_like():
    "name -> (what is pickled, poses that are written, a part of what is printed)"
    three = np.random.default_rng(0).uniform(0.1, 300, (1, 6, 17, 3)).astype(np.float32)
    ntu = dict(frame_dir="S001C001P001R001A001", label=0, total_frames=6)
    return {
        "sizes": ([an("a", img_shape=[720, 1280]), an("b", img_shape=np.array([720, 1280]))], 2, ""),
        "numpy sizes": ([an(img_shape=(np.int64(720), np.int32(1280)), original_shape=...)], 1, ""),
        "original size": ([an(img_shape=...)], 1, ""),
        "folder": ([an("train/v1"), an("train/v2")], 2, ""),
        "numpy text": ([an(np.str_("v"))], 1, ""),
        "more keys": ([an(bbox=np.ones((6, 4)), keypoint_3d=np.ones((1, 6, 17, 3)), modality="Pose")], 1, ""),
        "other numbers": ([an(keypoint=np.full((1, 6, 17, 2), 9, np.int16), keypoint_score=...)], 1, ""),
        "big-endian": ([an(keypoint=np.full((1, 6, 17, 2), 9, ">f4"))], 1, ""),
        "nobody": ([an("a", M=0), an("b")], 2, "a: nobody in any frame"),
        "frames": ([an("a", total_frames=9), an("b")], 1, "left out: a: annotation 0 (a): total_frames is 9"),
        "mixed": ([an("a"), an("b", V=13)], 1, "expected (M, T, 17, 2)"),
        "openpose": ([an(V=18)], 0, "(1, 6, 18, 2), expected (M, T, 17, 2)"),
        "scores inside": ([an(keypoint=three, keypoint_score=...)], 0, "three numbers for each joint"),
        "ntu": ([ntu | {"keypoint": np.ones((2, 6, 25, 3), np.float16)}], 0, "three numbers for each joint"),
        "no size": ([an(img_shape=..., original_shape=...)], 0, "img_shape is missing"),
        "no frames": ([an(T=0)], 0, "total_frames is int '0'"),
        "torch size": ([an(img_shape=torch.Size([720, 1280]))], 0, "torch.Size"),
        "weights": (torch.nn.Linear(2, 2).state_dict(), 0, "holds torch tensors"),
        "features": (["a", "b"], 0, "annotation 0: is str"),
    }


@pytest.mark.parametrize("protocol", (2, 5))
def test_the_command(protocol, tmp_path, capsys):
    "Right, or one line with the file's name, status 2 and nothing written"
    from pevl.use.cli import main

    for key, (value, written, part) in official_like().items():
        source, out = tmp_path / "x.pkl", tmp_path / "out"
        source.write_bytes(pickle.dumps(value, protocol))
        out.mkdir()
        status = main(["pose", str(source), "--out", str(out)])
        text = capsys.readouterr()
        assert part in text.out + text.err, (key, text)
        if not written:
            assert status == 2 and not list(out.iterdir()), key
            assert text.err.startswith(f"pevl: {source}: ") and text.err.count("\n") == 1 and not text.out, (
                text
            )
        else:
            assert status == (1 if written < len(value) else 0), key
            held = PoseFile(out / "poses.safetensors")
            assert len(held) == written, key
            for a in value:
                if a["frame_dir"] in held and len(a["keypoint"]):
                    found = held[a["frame_dir"]]
                    assert np.abs(found.keypoints - a["keypoint"][0]).max() <= 1 / 16, key
                    assert found.image_size == (720, 1280), key
            (out / "poses.safetensors").unlink()
        assert not list(out.iterdir())
        out.rmdir()
