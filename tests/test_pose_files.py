"""Foreign pose files as a breaker would make them: read as data, or refused in one line, and nothing in them is run."""

import contextlib
import copy
import functools
import json
import multiprocessing as mp
import operator
import os
import pickle
import pickletools
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch

from pevl.data.pose import Pose, PoseError, save_pose
from pevl.data.pose_files import (
    ARRAYS,
    CALLS,
    START,
    PoseFile,
    convert,
    match_ids,
    open_poses,
    poses_of,
    read_coco,
    read_smarthome_pose,
    run_pickle,
    safe_load,
    what_is,
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


class Call:
    "Pickles as a call of `f`, with a state if one is given"

    def __init__(self, *made):
        self.made = made

    def __reduce__(self):
        f, args, *state = self.made
        return (f, tuple(args), *state)


def short(text):
    return b"\x8c" + bytes([len(text)]) + text.encode()


def name(module, what):
    "STACK_GLOBAL, which allows dotted names"
    return short(module) + short(what) + b"\x93"


def hostile(marker):
    "name -> (bytes, a part of the refusal). Unpickled, each would make the file `marker`, or something else that it should not"
    make = f"open({marker!r}, 'w').close()"
    calls = {
        "os.system": Call(os.system, [f"touch {marker}"]),
        "subprocess": Call(subprocess.call, [["touch", marker]]),
        "eval": Call(eval, [make]),
        "exec": Call(exec, [make]),
        "open": Call(open, [marker, "w"]),
        "getattr": Call(getattr, [Call(__import__, ["os"]), "system"]),
        "partial": Call(functools.partial, [os.mkdir, marker]),
        "methodcaller": Call(
            operator.methodcaller("system", f"touch {marker}"), [os.sys.modules["os"].path.join]
        ),
        "numpy.load": Call(np.load, [marker]),
        "numpy.save": Call(np.save, [marker, 1]),
        "numpy.fromfile": Call(np.fromfile, [marker]),
        "numpy.memmap": Call(np.memmap, [marker, "u1", "w+", 0, (3,)]),
        "type": Call(type, ["X", (), {}]),
        "state": Call(OrderedDict, [], {"__class__": 3}),
        "array of objects": np.array([Call(os.mkdir, [marker])], object),
        "record": np.zeros(2, [("a", "O"), ("b", "f4")]),
        "records": np.zeros(2, [("a", "i4"), ("b", "f4")]),
        "time": np.zeros(2, "M8[s]"),
        "torch": torch.zeros(3),
        "parameter": torch.nn.Parameter(torch.zeros(3)),
        "model": torch.nn.Linear(2, 2),
        "path": textwrap.TextWrapper(),
        "generator": np.random.default_rng(0),
        "factory": defaultdict(operator.attrgetter("x")),
        "exception": ValueError("x"),
        "complex": 1j,
        "range": range(3),
        "slice": Call(slice, [0, 3]),
    }
    out = {}
    for key, value in calls.items():
        for protocol in range(6):
            try:
                raw = pickle.dumps({"annotations": [value]}, protocol)
            except (TypeError, AttributeError, pickle.PicklingError):
                continue
            out[f"{key} {protocol}"] = raw, ""
    reconstruct = (
        name("numpy.core.multiarray", "_reconstruct") + name("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
    )
    text = marker.encode()
    out |= {
        "inst": (b"(V" + text + b"\nios\nmkdir\n.", "os.mkdir"),
        "obj": (b"(cos\nmkdir\nV" + text + b"\no.", "os.mkdir"),
        "obj of ours": (b"(cnumpy\nndarray\nK\x03o.", "makes an object"),
        "inst of ours": (b"(K\x03inumpy\nndarray\n.", "makes an object"),
        "newobj": (name("numpy", "ndarray") + b"K\x03\x85\x81.", "makes an object"),
        "newobj_ex": (name("numpy", "ndarray") + b"K\x03\x85}\x92.", "makes an object"),
        "persid": (b"Pos.mkdir\n.", "persistent"),
        "binpersid": (b"\x80\x04K\x01Q.", "persistent"),
        "ext1": (b"\x82\x01.", "extension"),
        "ext2": (b"\x83\x01\x00.", "extension"),
        "ext4": (b"\x84\x01\x00\x00\x00.", "extension"),
        "next buffer": (b"\x80\x05\x97.", "buffers"),
        "read-only buffer": (b"\x80\x05K\x01\x98.", "buffers"),
        "copyreg": (b"ccopyreg\n_reconstructor\n.", "copyreg._reconstructor"),
        "copy_reg": (b"ccopy_reg\n_reconstructor\n.", "copy_reg._reconstructor"),
        "add_extension": (b"ccopyreg\nadd_extension\n(Vos\nVsystem\nK\x01tR.", "copyreg.add_extension"),
        "f2py": (name("numpy.f2py", "compile") + short("x") + b"\x85R.", "numpy.f2py.compile"),
        "dotted": (name("numpy", "ndarray.tofile") + b".", "numpy.ndarray.tofile"),
        "dotted globals": (name("numpy.core.multiarray", "_reconstruct.__globals__") + b".", "__globals__"),
        "dotted module": (name("numpy.core.multiarray._reconstruct", "__call__") + b".", "__call__"),
        "almost numpy.core": (name("numpy.core2.multiarray", "_reconstruct") + b".", "numpy.core2"),
        "spaces": (name("os ", "system\n; rm") + b".", "os?.system?;?rm"),
        "call of a text": (short("os.system") + short(f"touch {marker}") + b"\x85R.", "calls a str"),
        "call of a list": (b"]" + b")R.", "calls a list"),
        "call of an array class": (name("numpy", "ndarray") + b"(K\x05tR.", "calls a ndarray"),
        "call of int": (name("builtins", "int") + b"(K\x05tR.", "calls a int"),
        "call without a tuple": (name("numpy", "dtype") + short("f4") + b"R.", "calls a dtype"),
        "setstate of a dict": (b"}}b.", "sets the state of a dict"),
        "setstate of a list": (b"](K\x01tb.", "sets the state of a list"),
        "setstate of a function": (name("numpy", "dtype") + b"N}\x86b.", "sets the state of a Name"),
        "a name as a value": (name("numpy", "ndarray") + b".", "holds a name"),
        "a name in a list": (b"]" + name("builtins", "dict") + b"a.", "holds a name"),
        "an array never filled": (reconstruct + b".", "holds a shell"),
        "a state too short": (reconstruct + b"(K\x01tb.", "damaged"),
        "objects by state": (
            reconstruct + b"(K\x01K\x02\x85" + name("numpy", "dtype") + short("O8") + b"\x89\x88\x87R",
            "objects",
        ),
        "dtype of a list": (name("numpy", "dtype") + b"]\x85R.", "type"),
        "dtype of fields": (name("numpy", "dtype") + short("V8") + b"\x85R.", "type 'V8'"),
        "encode rot13": (name("_codecs", "encode") + short("x") + short("rot13") + b"\x86R.", "rot13"),
        "encode 7": (name("_codecs", "encode") + b"K\x07K\x07\x86R.", "expected latin1"),
        "bytes of a number": (name("builtins", "bytes") + b"J\xff\xff\xff\x7f\x85R.", "bytes of a int"),
        "a list as a key": (b"}]Ns.", "a list as a key"),
        "a list in a set": (b"\x8f(]\x90.", "a list as a key"),
        "a dict as a set": (b"}(K\x01\x90.", "puts values into a dict"),
        "append to a tuple": (b")K\x01a.", "puts values into a tuple"),
        "protocol 9": (b"\x80\x09N.", "protocol 9"),
        "not there": (b"\x80\x04h\x07.", "asks for value 7"),
        "nothing": (b"\x80\x04.", "less than one value"),
        "no mark": (b"\x80\x04t.", "damaged"),
        "unknown word": (b"\x80\x04\xfe.", "no word"),
        "two pickles": (b"\x80\x04N.\x80\x04N.", "goes on after its end"),
    }
    return {k: (b"\x80\x04" * (raw[0] not in b"\x80(c]}") + raw, part) for k, (raw, part) in out.items()}


def test_hostile_pickles(tmp_path):
    "Each is refused in one line, alone or in front of good data, and leaves no trace"
    marker, known = tmp_path / "marker", set(sys.modules)
    for key, (raw, part) in hostile(str(marker)).items():
        path = tmp_path / f"{key}.pkl"
        path.write_bytes(raw)
        refused(lambda path=path: safe_load(path), str(path), part)
        refused(lambda path=path: poses_of(path), str(path), part)
        if key != "nothing":
            path.write_bytes(raw[:-1] + pickle.dumps(good()))
            refused(lambda path=path: convert(path, tmp_path), str(path))
        path.unlink()
        assert not list(tmp_path.iterdir()), key
    new = {m for m in set(sys.modules) - known if not m.startswith("encodings.")}
    assert not {m for m in new if not m.startswith("tqdm")}


def test_the_traps_are_traps(tmp_path):
    "At least the first kind would have gone off"
    marker = tmp_path / "marker"
    pickle.loads(hostile(str(marker))["exec 4"][0])
    assert marker.exists()


WATCH = """
import sys, pickle
from pevl.data.pose import PoseError
from pevl.data.pose_files import PoseFile, poses_of, safe_load
seen = None
def hook(event, args):
    if seen is not None:
        seen.append(event)
"ä".encode("raw-unicode-escape").decode("raw-unicode-escape"), "x".encode("latin-1")  # their first use imports them
sys.addaudithook(hook)
for path in sys.argv[1:]:
    seen = []
    try:
        safe_load(path)
    except PoseError as e:
        pass
    found, seen = seen, None
    print(sorted(set(found)))
"""


def test_what_python_sees(tmp_path):
    "Python's own audit: while a pickle is read, files are opened and mapped, and nothing is imported, looked up or called"
    paths = []
    for i, (raw, _) in enumerate(hostile(str(tmp_path / "marker")).values()):
        paths.append(tmp_path / f"{i}.pkl")
        paths[-1].write_bytes(raw)
    done = subprocess.run([sys.executable, "-c", WATCH, *paths], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {e for line in done.stdout.splitlines() for e in eval(line)} <= {
        "open",
        "mmap.__new__",
        "builtins.id",
    }


def good():
    r = np.random.default_rng(0)
    a = dict(frame_dir="a", label=3, img_shape=(240, 320), original_shape=(240, 320), total_frames=5)
    a["keypoint"] = r.uniform(1, 200, (2, 5, 17, 2)).astype(np.float16)
    a["keypoint_score"] = r.uniform(0.1, 1, (2, 5, 17)).astype(np.float16)
    b = copy.deepcopy(a) | {"frame_dir": "b", "keypoint_score": np.asfortranarray(a["keypoint_score"])}
    return {"split": {"train": ["a"], "test": ["b"]}, "annotations": [a, b]}


def equal(a, b):
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return np.array_equal(a, b)


def numpy1(raw):
    "As NumPy 1 writes it"
    raw = raw.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
    raw = raw.replace(b"\x8c\x13numpy._core.numeric", b"\x8c\x12numpy.core.numeric")
    return raw.replace(b"cnumpy._core.", b"cnumpy.core.")


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_of_both_numpys(protocol):
    raw = pickle.dumps(good(), protocol)
    assert b"numpy._core" in raw or b"numpy.core" in raw
    for r in (raw, numpy1(raw), pickletools.optimize(raw), pickle._dumps(good(), protocol)):
        assert equal(run_pickle(r), good())
    assert b"numpy._core" not in numpy1(raw)
    more = [
        OrderedDict(a=1),
        defaultdict(list, a=[1]),
        {1},
        frozenset("ab"),
        bytearray(b"xy"),
        b"",
        np.str_("ä"),
        np.bool_(True),
    ]
    assert run_pickle(pickle.dumps(more, protocol)) == more


def test_python_2():
    "Texts and arrays as Python 2 wrote them"
    state = b"(I1\n(I2\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x00\\x00\\x80?\\x00\\x00\\x00@'\ntb"
    shell = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    found = run_pickle(b"(dS'keypoint'\n" + shell + state + b"sU\x02ab(lL12L\nas.")
    assert found["keypoint"].tolist() == [1.0, 2.0] and found["ab"] == [12]


def bombs():
    array = pickle.dumps(np.zeros((2, 3), np.int8), 4)
    return {
        "tuples": b"\x80\x04)" + b"\x85" * 10**6 + b".",
        "lists": b"\x80\x04" + b"]" * 10**6 + b"a" * (10**6 - 1) + b".",
        "dicts": b"\x80\x04" + b"}K\x01" * 10**5 + b"N" + b"s" * 10**5 + b".",
        "deep key": b"\x80\x04})" + b"\x85" * 10**6 + b"Ns.",
        "bytes": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f" + b"abc.",
        "text": b"\x80\x04X\xff\xff\xff\xffabc.",
        "bytearray": b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.",
        "number": b"\x80\x04\x8b\xff\xff\xff\x7f.",
        "digits": b"L" + b"9" * 10**6 + b"L\n.",
        "shape": array.replace(b"K\x02K\x03\x86", b"J\xff\xff\xff\x7fK\x03\x86"),
        "overflow": array.replace(b"K\x02K\x03\x86", b"\x8a\x0f" + b"\xff" * 14 + b"\x7fK\x03\x86"),
        "negative": array.replace(b"K\x02K\x03\x86", b"J\xff\xff\xff\xffJ\xfa\xff\xff\xff\x86"),
        "wide type": array.replace(b"\x8c\x02i1", b"\x8c\x0aS999999999"),
        "frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
        "frame, then nothing": b"\x80\x04\x95\x00\x00",
    }


LIMITED = """
import resource, sys
from pevl.data.pose import PoseError
from pevl.data.pose_files import PoseFile, safe_load
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
try:
    safe_load(sys.argv[1])
except PoseError as e:
    print(e)
"""


def test_bombs(tmp_path):
    for key, raw in bombs().items():
        (tmp_path / key).write_bytes(raw)
        start = time.process_time()
        refused(lambda key=key: safe_load(tmp_path / key), key)
        assert time.process_time() - start < 20, key
    assert (
        run_pickle(b"\x80\x04Nr\xff\xff\xff\x7f.") is None
    )  # a memory of 16 GB for others, an entry of a dict for us


def test_as_many_words_as_somebody_likes(tmp_path, monkeypatch):
    import pevl.data.pose_files as module

    monkeypatch.setattr(module, "LIMIT", 1000)
    (tmp_path / "a").write_bytes(b"\x80\x04" + b"N" * 10**5)
    refused(lambda: safe_load(tmp_path / "a"), "more than 1,000 words")


def test_a_loop(tmp_path):
    "A list that holds itself"
    value = []
    value.append(value)
    loop = run_pickle(pickle.dumps(value))
    assert loop[0] is loop
    (tmp_path / "a").write_bytes(pickle.dumps(value))
    refused(lambda: poses_of(tmp_path / "a"), "annotation 0")


@pytest.mark.parametrize("protocol", (0, 2, 4, 5))
def test_changed_bytes(protocol, tmp_path):
    "Pickles with random changes, cuts and insertions: data or a PoseError, never anything else"
    raw, r = pickle.dumps(good(), protocol), random.Random(protocol)
    for _ in range(1500):
        x = bytearray(raw)
        for _ in range(r.randint(1, 4)):
            i = r.randrange(len(x))
            kind = r.random()
            if kind < 0.5:
                x[i] = r.randrange(256)
            elif kind < 0.7:
                x[i : i + r.randint(1, 9)] = b""
            elif kind < 0.9:
                x[i:i] = bytes(r.choices(b"cRbio\x81\x93(tN.\x94h\x85", k=r.randint(1, 5)))
            else:
                del x[max(i, 1) :]
            x = x or bytearray(b".")
        try:
            run_pickle(bytes(x))
        except ValueError as e:
            assert len(str(e)) < 300
        path = tmp_path / "a"
        path.write_bytes(x)
        try:
            for p in (poses := poses_of(path)):
                assert isinstance(poses[p], Pose)
        except PoseError:
            pass


def test_other_files(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "torch.pkl")
    torch.save(torch.zeros(2), tmp_path / "old.pkl", _use_new_zipfile_serialization=False)
    np.savez(tmp_path / "a.npz", x=1)
    for key, raw, part in (
        ("empty", b"", "is empty"),
        ("page", b"<!DOCTYPE html><title>Sign in</title>", "a web page"),
        ("lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab", "Git LFS pointer"),
        ("text", b"hello", "text"),
        ("gz", b"\x1f\x8b\x08", "gzip"),
        ("json", b' {"a": 1}', "json"),
    ):
        (tmp_path / key).write_bytes(raw)
        refused(lambda key=key: safe_load(tmp_path / key), key, part)
        refused(lambda key=key: open_poses(tmp_path / key), key)
    refused(lambda: safe_load(tmp_path / "torch.pkl"), "torch.save")
    refused(lambda: safe_load(tmp_path / "old.pkl"), "an old file of torch.save")
    refused(lambda: safe_load(tmp_path / "a.npz"), "zip")
    refused(lambda: safe_load(tmp_path), "is a directory")
    refused(lambda: safe_load(tmp_path / "none"), "no such file")
    refused(lambda: open_poses(tmp_path / "none"), "no such file")
    (tmp_path / "folder").mkdir()
    refused(lambda: open_poses(tmp_path / "folder"), "no *.npz and no *.json")


def test_the_list_of_names_is_short():
    "Whoever makes it longer has to think about it here"
    known = {f"{m}.{n}" for m, names in CALLS.items() for n in names}
    assert known == {
        *(
            f"builtins.{n}"
            for n in ("bytearray", "bytes", "dict", "float", "frozenset", "int", "list", "set", "str")
        ),
        *(
            "collections.OrderedDict",
            "collections.defaultdict",
            "_codecs.encode",
            "numpy.dtype",
            "numpy.ndarray",
        ),
        *(
            "numpy._core.multiarray._reconstruct",
            "numpy._core.multiarray.scalar",
            "numpy._core.numeric._frombuffer",
        ),
    }
    for names in CALLS.values():  # what is called is ours, not Python's and not numpy's
        for f in filter(None, names.values()):
            assert f.__module__ == "pevl.data.pose_files"


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


def test_a_header_that_lies_allocates_nothing(tmp_path):
    path = tmp_path / "p.safetensors"
    write_poses(path, {"a": pose()})
    first = path.read_bytes()
    head = json.loads(first[8:START])
    F = 2**52
    head["joints"].update(shape=[F, 17, 3], data_offsets=[0, F * 17 * 6])
    path.write_bytes(first[:8] + json.dumps(head).encode().ljust(START - 8) + first[START:])
    script = LIMITED.replace("safe_load(sys.argv[1])", "len(PoseFile(sys.argv[1]))")
    done = subprocess.run([sys.executable, "-c", script, path, str(64 << 30)], capture_output=True, text=True)
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
