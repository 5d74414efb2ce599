"""Pickles as a breaker would make them: read as data, or refused in one line, and nothing in them is run."""

import copy
import functools
import operator
import os
import pickle
import pickletools
import random
import subprocess
import sys
import textwrap
import time
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch

from pevl.data.pickles import CALLS, run_pickle, safe_load
from pevl.data.pose import Pose, PoseError
from pevl.data.pose_files import convert, open_poses, poses_of


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
from pevl.data.pickles import safe_load
from pevl.data.pose_files import PoseFile, poses_of
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
    import pevl.data.pickles as module

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
            assert f.__module__ == "pevl.data.pickles"


def endless(kind, levels=60):
    "A pickle of a few hundred bytes whose value, written out, would never end: each level holds the one below twice"
    return b")" + {list: b"q\x000](h\x00h\x00e", tuple: b"q\x000h\x00h\x00\x86"}[kind] * levels


@pytest.mark.parametrize("kind", (list, tuple))
def test_what_would_never_end_as_text(kind, tmp_path):
    "It is neither written out for an error nor hashed, wherever it stands"
    x, numbers = endless(kind), name("numpy", "dtype")
    shell = name("numpy.core.multiarray", "_reconstruct") + name("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
    places = {
        "alone": x,
        "a type": numbers + x + b"\x85R",
        "a shape": shell + b"(K\x01" + x + numbers + short("f4") + b"\x85R\x89C\x00tb",
        "a size": shell + b"(K\x01" + x + b"\x85" + numbers + short("f4") + b"\x85R\x89C\x00tb",
        "a coding": name("_codecs", "encode") + short("x") + x + b"\x86R",
        "a module": x + short("ndarray") + b"\x93",
        "a name": short("numpy") + x + b"\x93",
        "bytes": name("builtins", "bytes") + x + b"\x85R",
        "a key": b"}" + x + b"Ns",
        "a member": b"\x8f(" + x + b"\x90",
        "a call": x + b")R",
        "an id": b"](}" + short("frame_dir") + x + b"se",
        "annotations": b"}" + short("annotations") + x + b"s",
        "a split": b"}" + short("annotations") + b"](}" + short("frame_dir") + short("a") + b"se" + b"s",
    }
    places["a split"] += short("split") + b"}" + short("train") + x + b"ss"
    for key, raw in places.items():
        (tmp_path / "a.pkl").write_bytes(b"\x80\x04" + raw + b".")
        start = time.process_time()
        refused(lambda: poses_of(tmp_path / "a.pkl"), "a.pkl: ")
        assert time.process_time() - start < 2, key
    fields = {**good()["annotations"][0], "more": 0}
    for field in fields:
        deep = ()
        for _ in range(60):
            deep = kind((deep, deep))
        (tmp_path / "a.pkl").write_bytes(pickle.dumps([fields | {field: deep}]))
        start = time.process_time()
        if field in ("label", "original_shape", "more"):  # nobody looks at these
            convert(tmp_path / "a.pkl", tmp_path / "a.safetensors")
        else:
            refused(lambda: convert(tmp_path / "a.pkl", tmp_path / "a.safetensors"), field)
        assert time.process_time() - start < 2, field
