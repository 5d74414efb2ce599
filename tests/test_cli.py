"""The command line from outside: help for everything; a mistake ends with one line on stderr and status 2, and leaves nothing behind."""

import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pevl.use.cli import COMMANDS, main
from settings import ROOT

ENV = {"COLUMNS": "100", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
POSITIONAL = (
    "predict videos",
    "ablate rows",
    "check dataset",
    "check data",
    "pose source",
    "features videos",
    "export weights",
    "share weights",
)


def command(*args):
    return [sys.executable, "-m", "pevl.use.cli", *map(str, args)]


def pevl(*args, **env):
    "As a process of its own"
    return subprocess.run(
        command(*args),
        env={**os.environ, **ENV, **env},
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )


def one_line(err, *words):
    "One line, which names `words`"
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("pevl: "), err[-3000:]
    for word in words:
        assert str(word).lower() in lines[0].lower(), lines[0]


@pytest.fixture
def refuses(capfd, monkeypatch):
    "Run in this process: status 2 and one line on stderr, which names `words`"
    monkeypatch.delenv("PEVL_DEBUG", raising=False)

    def refuses(args, *words):
        capfd.readouterr()
        status = main(args)
        out, err = capfd.readouterr()
        assert status == 2, f"status {status}\n{out[-1500:]}\n{err[-3000:]}"
        one_line(err, *words)

    return refuses


@pytest.fixture
def says(capfd):
    "Run in this process: status 0; returns what was printed"

    def says(*args):
        capfd.readouterr()
        status = main(args)
        out, err = capfd.readouterr()
        assert status == 0, err[-3000:]
        return out

    return says


def tree(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


@pytest.fixture(scope="module")
def dives(tmp_path_factory):
    "A tiny simulated data set"
    from pevl.data.simdive import generate

    return generate(
        tmp_path_factory.mktemp("cli") / "dives",
        classes=2,
        train=2,
        test=1,
        workers=1,
        size=64,
        progress=False,
    )


@pytest.fixture(scope="module")
def run(dives, tmp_path_factory):
    "The folder of a training run whose prompts are not the default ones"
    out = tmp_path_factory.mktemp("cli") / "run"
    args = [
        "--preset",
        "nano",
        "--epochs",
        1,
        "--batch-size",
        4,
        "--kind",
        "gymnastic",
        "--template",
        "doing",
        "--amp",
        "no",
    ]
    assert main(["train", "--data", dives, "--out", out, *args]) == 0
    return out


@pytest.fixture
def copy(dives, tmp_path):
    "The data set, to be broken"
    return shutil.copytree(dives, tmp_path / "dives")


@pytest.fixture
def clip(copy):
    return sorted((copy / "rgb").glob("*_test_*.mp4"))[0]


# --- help ---


def test_help_names_every_command_and_is_quick():
    ran = pevl("--help", PYTHONPROFILEIMPORTTIME="1")
    assert ran.returncode == 0
    assert not [c for c in COMMANDS if not re.search(rf"\b{c}\b", ran.stdout)]
    loaded = {line.split("|")[-1].strip() for line in ran.stderr.splitlines()}
    assert "tyro" in loaded and not loaded & {"torch", "numpy", "av", "matplotlib"}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(name, capfd):
    with pytest.raises(SystemExit) as e:
        main([name, "--help"])
    assert e.value.code == 0
    text = capfd.readouterr().out
    options = re.findall(r"^\W*(--[\w-]+|PATH|ROW|MODEL|auto)\b", text, re.M)
    assert len(options) == len(COMMANDS[name].__dataclass_fields__), text
    for field in COMMANDS[name].__dataclass_fields__:
        assert f"--{field.replace('_', '-')} " in text or f"{name} {field}" in POSITIONAL, field
    plain = " ".join(re.sub(r"[^\w\s(:,.-]", " ", text).split())
    bare = re.findall(r"(?:--[\w-]+) (?:[A-Z]+ )?\((?:required|default)", plain)
    assert not bare, f"options without a word about them: {bare}"


def test_every_example_of_the_help_can_be_parsed(capfd):
    from pevl.use.cli import ABOUT, parse

    lines = re.findall(r"^  pevl (.*)$", ABOUT, re.M)
    assert len(lines) >= 5
    for line in lines:
        assert parse(line.split()) is not None


def pages():
    "What the README and the pages of the book say: name -> text, of a notebook its prose"
    book = sorted(p for p in (ROOT / "nbs").rglob("*") if p.suffix in (".md", ".ipynb"))
    for path in [ROOT / "README.md", *book]:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            cells = json.loads(text)["cells"]
            text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        yield path.relative_to(ROOT), text


def test_every_command_in_the_book_can_be_parsed(capfd):
    from pevl.use.cli import parse

    told = []
    for name, text in pages():
        for block in re.findall(r"```sh\n(.*?)```", text, re.S):
            lines = block.replace("\\\n", " ").splitlines()
            told += [(name, m[1]) for x in lines if (m := re.search(r"^(?:.*-m pevl.use.cli|pevl) (.*)", x))]
    assert len(told) >= 20
    for name, line in told:
        try:
            assert parse(shlex.split(line.split(" > ")[0], comments=True)) is not None
        except SystemExit:
            pytest.fail(f"{name}: {line}: {capfd.readouterr().err}")


def test_commands_that_the_book_mentions_have_these_options():
    "Within a sentence a command may be shortened; what is there must exist"
    told = [(name, line) for name, text in pages() for line in re.findall(r"`pevl ([a-z]+ [^`\n]+)`", text)]
    assert len(told) >= 20
    for name, line in told:
        command, *words = shlex.split(line, comments=True)
        fields = {k.replace("_", "-") for k in COMMANDS[command].__dataclass_fields__}
        unknown = {w for w in words if w.startswith("--") and w[2:] not in fields}
        assert not unknown, f"{name}: pevl {line}"
        bare = not words[0].startswith("--")
        assert not bare or any(f"{command} {f}" in POSITIONAL for f in fields), f"{name}: pevl {line}"


def test_version():
    import pevl as package

    ran = pevl("--version")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"pevl {package.__version__}\n", "")


WRONG_USAGE = {
    "no command": [],
    "unknown command": ["dive"],
    "unknown option": ["predict", "a.mp4", "--top", "3"],
    "missing option": ["train", "--data", "dives"],
    "not a number": ["simdive", "--out", "x", "--classes", "many"],
    "not a choice": ["evaluate", "--data", "x", "--weights", "y", "--views", "2"],
}


@pytest.mark.parametrize("args", WRONG_USAGE.values(), ids=WRONG_USAGE)
def test_wrong_usage(args, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as e:
        main(args)
    assert e.value.code == 2 and capfd.readouterr().err.strip()
    assert not tree(tmp_path)


# --- what works ---


def test_train_says_where_the_results_are(dives, run, tmp_path, capfd):
    out = tmp_path / "a run"
    assert (
        main(["train", "--data", dives, "--out", out, "--preset", "nano", "--epochs", 1, "--batch-size", 4])
        == 0
    )
    text = capfd.readouterr().out
    assert (
        f"wrote {out}" in text
        and "top-1" in text
        and f"pevl evaluate --data {dives} --weights '{out}'" in text
    )
    assert {"model.safetensors", "result.json", "summary.json", "log.csv", "recipe.json"} <= set(tree(out))
    assert (
        main(
            [
                "train",
                "--data",
                dives,
                "--out",
                out,
                "--preset",
                "nano",
                "--epochs",
                1,
                "--batch-size",
                4,
                "--resume",
            ]
        )
        == 0
    )


def test_evaluate_asks_in_the_words_of_the_checkpoint(dives, run, tmp_path, says):
    told = json.loads((run / "summary.json").read_text())
    out = says(
        "evaluate", "--data", dives, "--weights", run / "model.safetensors", "--out", tmp_path / "page"
    )
    assert f"asked as       {told['prompt']}" in out and "doing" in told["prompt"]
    assert tree(tmp_path / "page") == ["report.html", "result.json", "results.csv"]
    mine, its = (json.loads((f / "result.json").read_text()) for f in (tmp_path / "page", run))
    assert np.allclose(mine["probs"], its["probs"], atol=2e-4), "the number at the end of the training, again"
    other = says("evaluate", "--data", dives, "--weights", run, "--template", "paper", "--kind", "diving")
    assert "a video of diving action" in other and "wrote" not in other


def test_predict_takes_the_classes_of_the_checkpoint(run, clip, says):
    classes = json.loads((run / "summary.json").read_text())["classes"]
    out = says("predict", clip, "--weights", run)
    assert sorted(line.split("%  ")[1] for line in out.splitlines() if "%" in line) == sorted(classes)
    out = says("predict", clip, "--labels", "a forward dive", "a back dive", "--topk", 1)
    best, *phrases = out.splitlines()
    assert re.match(r" *\d+\.\d%  a (forward|back) dive$", best)
    assert all(re.match(r" *\d+\.\d to +\d+\.\d s  a (forward|back) dive$", line) for line in phrases)
    assert says("predict", clip).count("%  ") == 5


def test_predict_as_a_process(clip, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_bytes("\ufeffein Sprung vorwärts\r\n\r\na back dive\r\n".encode())
    ran = pevl("predict", clip, "--labels", labels)
    assert ran.returncode == 0 and ran.stderr.count("\n") == 1 and "simulated clips only" in ran.stderr
    assert {line.split("%  ")[1] for line in ran.stdout.splitlines() if "%" in line} == {
        "ein Sprung vorwärts",
        "a back dive",
    }


def test_predict_answers_in_json(clip, says):
    found = json.loads(says("predict", clip, "--json", "--topk", 3))
    assert len(found["ranked"]) == 3 and found["label"] == found["ranked"][0]["label"]
    assert found["joints"].startswith("file ") and found["phrases"]
    long = json.loads(says("predict", clip, "--json", "--window", 1, "--labels", "a back dive", "a jump"))
    assert len(long["windows"]) > 1 and long["segments"][0]["start"] == 0


def test_predict_of_a_folder_goes_on_and_says_so(clip, tmp_path, capfd):
    folder = tmp_path / "clips"
    shutil.copytree(clip.parent, folder / "rgb")
    shutil.copytree(clip.parent.parent / "pose", folder / "pose")
    (folder / "rgb" / "torn.mp4").write_bytes(clip.read_bytes()[:500])
    ask = ["predict", folder / "rgb", "--labels", "a back dive", "a jump", "--topk", 1]
    assert main([*ask, "--overlay", tmp_path / "look"]) == 1
    out, err = capfd.readouterr()
    good = sorted(p.name for p in (folder / "rgb").glob("*.mp4") if p.name != "torn.mp4")
    assert sorted(p.name for p in (tmp_path / "look").glob("*.mp4")) == good
    assert "torn.mp4: no answer" in out and err.count("torn.mp4") == 1
    for p in folder.glob("rgb/s*.mp4"):
        p.unlink()
    assert main(ask) == 2


def test_predict_of_several_videos(clip, tmp_path, capfd, refuses):
    "As a shell writes *.mp4; texts that stand in their place are recognised; the order does not matter"
    two = shutil.copy(clip, clip.with_name("two.mkv"))
    shutil.copy(clip.parent.parent / "pose" / f"{clip.stem}.npz", clip.parent.parent / "pose" / "two.npz")
    texts = ["--labels", "a back dive", "a jump"]
    assert main(["predict", clip, two, *texts, "--overlay", tmp_path / "look"]) == 0
    out, err = capfd.readouterr()
    assert str(clip) in out and str(two) in out and err.count("simulated clips only") == 1
    assert sorted(p.name for p in (tmp_path / "look").iterdir()) == [clip.name, "two.mkv.mp4"]
    assert main(["predict", *texts, clip]) == 0 and "a jump" in capfd.readouterr().out
    refuses(["predict", clip, "a jump", "a walk"], "a jump: no such file", "label texts follow --labels")
    refuses(["predict", *texts], "no video: expected")
    refuses(["features", "--out", tmp_path / "f.safetensors"], "no video: expected")
    refuses(["predict", clip, two, "--window", 1], "--window: several videos")
    refuses(["predict", clip, clip, "--overlay", tmp_path], "two videos have the same name")
    refuses(["predict", clip, "--device", "cuda:99"], "device cuda:99: not on this machine")


def test_features_say_what_they_leave_out(clip, tmp_path, capfd):
    torn = clip.with_name("torn.mp4")
    torn.write_bytes(clip.read_bytes()[:500])
    assert main(["features", clip, torn, "--out", tmp_path / "f.safetensors", "--no-extract"]) == 1
    out, err = capfd.readouterr()
    assert "features of 1 clips" in out and "pevl: left out: torn: not a video" in err


def test_closed_output(clip):
    "`pevl predict ... >&-`: nobody listens, and that is no reason for a traceback"
    for close in (">&-", ">&- 2>&-"):
        words = " ".join(map(shlex.quote, command("predict", clip)))
        ran = subprocess.run(f"{words} {close}", shell=True, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0 and "Traceback" not in ran.stderr, ran.stderr[-3000:]


def test_predict_without_pose_file(clip, capfd, refuses):
    (clip.parent.parent / "pose" / f"{clip.stem}.npz").unlink()
    refuses(["predict", clip, "--no-extract"], clip, "joints")


@pytest.mark.parametrize(
    "more, words",
    [
        (["--stride", 1], "--stride: expected --window"),
        (["--minimum", 0.5], "--minimum: expected --window"),
        (["--overlay", "look.avi"], "expected the name of a video to write"),
        (["--window", 0], "--window"),
    ],
)
def test_predict_options_that_do_not_fit(more, words, clip, refuses):
    refuses(["predict", clip, *more], words)


def test_features_export_and_share_refuse_before_the_work(clip, tmp_path, refuses):
    refuses(["features", clip, "--out", tmp_path / "f.npz"], "ends in .safetensors")
    refuses(["features", tmp_path / "none", "--out", tmp_path / "f.safetensors"], "no such file or folder")
    refuses(["features", clip, "--out", tmp_path / "f.safetensors", "--version", "V2"], "expected --split")
    refuses(["export", "simdive48", "--out", tmp_path / "m.bin"], "ends in .onnx or .pt2")
    refuses(["share", "simdive48"], "either --out FOLDER or --push OWNER/NAME")
    refuses(["share", "simdive48", "--out", tmp_path / "s", "--results", tmp_path / "none.csv"], "none.csv")
    assert not list(tmp_path.glob("[fms]*"))


def test_export_takes_the_classes_of_the_checkpoint(run, tmp_path, says):
    out = says("export", run, "--out", tmp_path / "model" / "clip.pt2")
    classes = json.loads((run / "summary.json").read_text())["classes"]
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["clip.pt2", "labels.safetensors"]
    assert f"features of {len(classes)} label texts" in out


# --- numbers and places ---

NUMBERS = [
    ("simdive", "--out", "x", "--classes", 1),
    ("simdive", "--out", "x", "--classes", 49),
    ("simdive", "--out", "x", "--train", 0),
    ("simdive", "--out", "x", "--seed", -1),
    ("simdive", "--out", "x", "--noise", "nan"),
    ("simdive", "--out", "x", "--size", 33),
    ("train", "--data", "d", "--out", "x", "--lr", 0),
    ("train", "--data", "d", "--out", "x", "--epochs", -3),
    ("train", "--data", "d", "--out", "x", "--batch-size", 0),
    ("train", "--data", "d", "--out", "x", "--max-minutes", "nan"),
    ("train", "--data", "d", "--out", "x", "--seed", 2**70),
    ("evaluate", "--data", "d", "--weights", "x", "--batch-size", 0),
    ("evaluate", "--data", "d", "--weights", "x", "--workers", -1),
    ("evaluate", "--data", "d", "--weights", "x", "--temporal-views", 0),
    ("predict", "x.mp4", "--topk", 0),
    ("demo", "--out", "x", "--minutes", 0),
    ("pretrain", "--out", "x", "--steps", 0),
]


@pytest.mark.parametrize("args", NUMBERS, ids=lambda a: f"{a[0]} {a[-2]} {a[-1]}")
def test_impossible_number(args, refuses, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refuses(args, args[-2], args[-1], "expected")
    assert not tree(tmp_path)


@pytest.mark.parametrize("name", ["simdive", "train", "evaluate", "demo", "pretrain"])
def test_a_file_stands_where_a_folder_is_needed(name, copy, run, refuses, tmp_path):
    "Refused for root too, whom permissions do not stop"
    file = tmp_path / "file"
    file.write_text("precious")
    more = {"train": ["--data", copy], "evaluate": ["--data", copy, "--weights", run]}.get(name, [])
    for out in (file, file / "sub" / "folder"):
        refuses([name, "--out", out, *more], out, "is a file, expected a folder")
    assert file.read_text() == "precious"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("name", ["simdive", "train", "evaluate", "demo", "pretrain"])
def test_read_only_folder(name, copy, run, refuses, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    more = {"train": ["--data", copy], "evaluate": ["--data", copy, "--weights", run]}.get(name, [])
    refuses([name, "--out", locked / "new", *more], locked, "permission")
    assert not tree(locked)


def test_a_finished_run_is_not_overwritten(dives, run, refuses):
    before = (run / "model.safetensors").read_bytes()
    refuses(
        ["train", "--data", dives, "--out", run, "--preset", "nano"], run, "holds a run already", "--resume"
    )
    assert (run / "model.safetensors").read_bytes() == before


def test_another_data_set_is_not_overwritten(copy, refuses):
    before = tree(copy)
    refuses(
        ["simdive", "--out", copy, "--classes", 3, "--train", 2, "--test", 1, "--size", 64],
        "meta.json",
        "another data set",
    )
    assert tree(copy) == before


# --- data ---


def edit(path, change):
    entries = json.loads(path.read_text())
    path.write_text(json.dumps(change(entries) or entries))


DATA = {  # what is broken -> (how, words of the message)
    "no folder": (lambda d: shutil.rmtree(d), ["no such folder"]),
    "empty folder": (
        lambda d: [shutil.rmtree(d), d.mkdir()],
        ["no data set is recognised", "vocab.json", "a folder per class"],
    ),
    "no label files": (lambda d: [p.unlink() for p in d.glob("*_V1_*.json")], ["SimDive_V*_", "not found"]),
    "no vocabulary": (
        lambda d: (d / "SimDive_vocab.json").unlink(),
        ["no data set is recognised", "vocab.json"],
    ),
    "two versions": (
        lambda d: [shutil.copy(p, str(p).replace("V1", "V2")) for p in d.glob("*_V1_*")],
        ["V1", "V2", "version"],
    ),
    "no videos": (lambda d: shutil.rmtree(d / "rgb"), ["none of the", "expected rgb/"]),
    "no video is there": (lambda d: [p.unlink() for p in d.glob("rgb/*")], ["rgb", "none of the"]),
    "no poses": (lambda d: shutil.rmtree(d / "pose"), ["none of", "has a pose", "pevl pose"]),
    "vocabulary too short": (
        lambda d: edit(d / "SimDive_vocab.json", lambda v: v[:1]),
        ["SimDive_V1_", "record", "'label'", "SimDive_vocab.json has 1 classes"],
    ),
    "vocabulary with an unknown dive": (
        lambda d: edit(d / "SimDive_vocab.json", lambda v: v[0].__setitem__(0, "Sideways")),
        ["SimDive_vocab.json", "record 0", "takeoff", "Sideways", "expected Back or"],
    ),
    "a class twice": (
        lambda d: edit(d / "SimDive_vocab.json", lambda v: v[:1] * 2),
        ["SimDive_vocab.json", "repeats class"],
    ),
    "label is a word": (
        lambda d: [edit(p, lambda r: r[0].update(label="first")) for p in d.glob("*_V1_*")],
        ["SimDive_V1_", "record 0", "'label'", "'first'", "whole number"],
    ),
    "label is negative": (
        lambda d: [edit(p, lambda r: r[0].update(label=-1)) for p in d.glob("*_V1_*")],
        ["record 0", "'label'", "-1"],
    ),
    "a field is missing": (
        lambda d: [edit(p, lambda r: r[0].pop("end_frame") and None) for p in d.glob("*_V1_*")],
        ["end_frame", "missing"],
    ),
    "a path for a name": (
        lambda d: [edit(p, lambda r: r[0].update(vid_name="../../secret")) for p in d.glob("*_V1_*")],
        ["record 0", "vid_name", "file name"],
    ),
    "an empty list": (
        lambda d: [p.write_text("[]") for p in d.glob("*_V1_*")],
        ["SimDive_V1_", "at least one entry"],
    ),
    "an empty file": (
        lambda d: [p.write_text("") for p in d.glob("*_V1_*")],
        ["SimDive_V1_", "line 1", "expected JSON"],
    ),
    "not UTF-8": (lambda d: [p.write_bytes(b'["\xff"]') for p in d.glob("*_V1_*")], ["SimDive_V1_", "UTF-8"]),
    "too deep": (lambda d: [p.write_text("[" * 100_000) for p in d.glob("*_V1_*")], ["SimDive_V1_", "JSON"]),
    "more frames than the video has": (
        lambda d: [
            edit(p, lambda r: [x.update(end_frame=10_000) for x in r] and None) for p in d.glob("*_V1_*")
        ],
        [".mp4", "has", "frames", "10000"],
    ),
    "videos cut off": (
        lambda d: [p.write_bytes(p.read_bytes()[:-50]) for p in d.glob("rgb/*")],
        [".mp4", "truncated"],
    ),
    "poses of another video": (
        lambda d: (
            [shutil.copy(sorted(d.glob("pose/*_train_*"))[0], p) for p in d.glob("pose/*_test_*")]
            + [
                shutil.copy(sorted(d.glob("pose/*_test_*"))[0], p)
                for p in sorted(d.glob("pose/*_train_*"))[1:]
            ]
        ),
        [".npz", "frames, expected"],
    ),
    "poses torn": (
        lambda d: [p.write_bytes(p.read_bytes()[:300]) for p in d.glob("pose/*")],
        [".npz", "not an .npz file, or truncated"],
    ),
}


@pytest.mark.parametrize("what", DATA)
def test_broken_data(what, copy, run, refuses, tmp_path):
    change, words = DATA[what]
    change(copy)
    refuses(["evaluate", "--data", copy, "--weights", run, "--out", tmp_path / "page"], *words)
    assert not (tmp_path / "page").exists(), "an evaluation that failed leaves nothing behind"
    early = what not in (
        "more frames than the video has",
        "videos cut off",
        "poses of another video",
        "poses torn",
    )
    refuses(
        [
            "train",
            "--data",
            copy,
            "--out",
            tmp_path / "run",
            "--preset",
            "nano",
            "--epochs",
            1,
            "--batch-size",
            2,
        ],
        *words[: early or None],
    )
    if early:
        assert not (tmp_path / "run").exists(), "a run that cannot start leaves nothing behind"
    else:
        assert "model.safetensors" not in tree(tmp_path / "run")


def test_version_chooses(copy, run, says):
    for path in copy.glob("*_V1_*"):
        shutil.copy(path, str(path).replace("V1", "V2"))
    assert "top-1" in says("evaluate", "--data", copy, "--weights", run, "--version", "V2")


def test_missing_videos_are_counted(copy, run, says):
    sorted(copy.glob("rgb/*_test_*"))[0].unlink()
    assert re.search(r"no video for +1$", says("evaluate", "--data", copy, "--weights", run), re.M)


# --- one video ---

LABELS = {
    "empty": (b"", ["holds 0 labels"]),
    "one": (b"a dive\n", ["holds 1 labels", "expected at least two"]),
    "twice": (b"a\n\nb\na\n", ["line 4", "repeats 'a' of line 1"]),
    "not UTF-8": ("a\nein R\xfcckw\xe4rtssprung\n".encode("latin-1"), ["line 2", "UTF-8"]),
    "a video": (bytes(range(256)) * 20, ["UTF-8"]),
    "too long": (b"a\n" + b"somersault " * 100, ["label text", "tokens, expected at most 77"]),
}


@pytest.mark.parametrize("what", LABELS)
def test_label_file(what, clip, refuses, tmp_path):
    data, words = LABELS[what]
    path = tmp_path / "labels.txt"
    path.write_bytes(data)
    refuses(["predict", clip, "--labels", path], *words, *([path] if what != "too long" else []))


def test_label_file_is_missing(clip, refuses, tmp_path):
    refuses(
        ["predict", clip, "--labels", tmp_path / "labels.txt"],
        "labels.txt: no such file",
        "one label per line",
    )
    refuses(["predict", clip, "--labels", tmp_path], tmp_path, "is a folder")
    refuses(["predict", clip, "--labels", "a", "a"], "'a' occurs twice")


VIDEOS = {
    "missing": (lambda p: p.unlink(), "no such file"),
    "text": (lambda p: p.write_text("this is no video\n" * 100), "not a video"),
    "empty": (lambda p: p.write_bytes(b""), "empty"),
    "folder": (lambda p: [p.unlink(), p.mkdir()], "no videos in it"),
    "torn": (lambda p: p.write_bytes(p.read_bytes()[:-40]), "truncated"),
}


@pytest.mark.parametrize("what", VIDEOS)
def test_video(what, clip, refuses):
    change, words = VIDEOS[what]
    change(clip)
    refuses(["predict", clip, "--labels", "a", "b"], clip, words)


class Bomb:
    "Unpickling it makes a file"

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def pose_with_objects(path, mark):
    fields = dict(np.load(path))
    fields["keypoints"] = np.array([Bomb(mark)], dtype=object)
    np.savez(path, **fields)


POSES = {
    "missing": (lambda p, _: p.unlink(), ["no such file"]),
    "folder": (lambda p, _: [p.unlink(), p.mkdir()], ["is a folder"]),
    "not npz": (lambda p, _: p.write_text("no pose"), ["not an .npz file"]),
    "empty": (lambda p, _: p.write_bytes(b""), ["not an .npz file"]),
    "torn": (lambda p, _: p.write_bytes(p.read_bytes()[:-100]), ["not an .npz file"]),
    "objects": (pose_with_objects, ["keypoints", "holds Python objects, expected plain numbers"]),
    "a field is missing": (
        lambda p, _: np.savez(p, **{k: v for k, v in np.load(p).items() if k != "scores"}),
        ["scores", "missing"],
    ),
    "shape": (
        lambda p, _: np.savez(p, **dict(np.load(p)) | dict(scores=np.ones((3, 4)))),
        ["scores", "shape (3, 4), expected"],
    ),
    "length": (
        lambda p, _: np.savez(
            p, **{k: v[:9] if k in ("keypoints", "scores") else v for k, v in np.load(p).items()}
        ),
        ["has 9 frames, expected"],
    ),
    "layout": (
        lambda p, _: np.savez(p, **dict(np.load(p)) | dict(layout=np.array("octopus"))),
        ["layout 'octopus'", "expected one of"],
    ),
    "another picture": (
        lambda p, _: np.savez(p, **dict(np.load(p)) | dict(image_size=np.array([64, 200]))),
        ["pictures of (64, 200)", "expected the shape of (64, 64)"],
    ),
}


@pytest.mark.parametrize("what", POSES)
def test_pose_file(what, clip, refuses, tmp_path):
    change, words = POSES[what]
    pose, mark = (
        shutil.copy(clip.parent.parent / "pose" / f"{clip.stem}.npz", tmp_path / "pose.npz"),
        tmp_path / "unpickled",
    )
    change(pose, mark)
    refuses(["predict", clip, "--labels", "a", "b", "--pose", pose], pose, *words)
    assert not mark.exists(), "a pose file was unpickled"


# --- weights ---


def rewrite(path, change):
    "The checkpoint with other facts or another configuration"
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(path, "pt") as f:
        held = json.loads(f.metadata()["pevl"])
    change(held)
    save_file(load_file(path), path, {"pevl": json.dumps(held)})


def no_metadata(path):
    from safetensors.torch import load_file, save_file

    save_file(load_file(path), path)


WEIGHTS = {
    "missing": (lambda p: p.unlink(), ["no such"]),
    "torn": (lambda p: p.write_bytes(p.read_bytes()[:-1000]), ["not a PeVL checkpoint"]),
    "torn in its header": (lambda p: p.write_bytes(p.read_bytes()[:100]), ["not a PeVL checkpoint"]),
    "empty": (lambda p: p.write_bytes(b""), ["not a PeVL checkpoint"]),
    "text": (lambda p: p.write_text("weights\n" * 100), ["not a PeVL checkpoint"]),
    "of something else": (no_metadata, ["not a PeVL checkpoint"]),
    "of another model": (
        lambda p: rewrite(p, lambda h: h["config"].update(T=48)),
        ["does not fit the model"],
    ),
    "of a later version": (
        lambda p: rewrite(p, lambda h: h["config"].update(rotary=True)),
        ["unknown configuration fields rotary"],
    ),
    "odd facts": (
        lambda p: rewrite(p, lambda h: h["facts"].update(classes="dives")),
        ["fact 'classes'", "expected two or more texts"],
    ),
    "odd template": (
        lambda p: rewrite(p, lambda h: h["facts"].update(template="a video")),
        ["template 'a video'", "expected {label}"],
    ),
}


@pytest.mark.parametrize("what", WEIGHTS)
def test_weights(what, run, clip, copy, refuses, tmp_path):
    change, words = WEIGHTS[what]
    path = shutil.copy(run / "model.safetensors", tmp_path / "model.safetensors")
    change(path)
    template = what == "odd template"
    refuses(["predict", clip, "--weights", path], *words, *([] if template else [path]))
    refuses(
        ["evaluate", "--data", copy, "--weights", path, "--out", tmp_path / "page"],
        *words,
        *([] if template else [path]),
    )
    if "fact" not in what and not template:
        refuses(
            ["train", "--data", copy, "--out", tmp_path / "new", "--preset", "nano", "--weights", path], path
        )
    assert not (tmp_path / "page").exists() and not (tmp_path / "new").exists()


def test_no_classes_are_noted(run, clip, refuses, tmp_path):
    path = shutil.copy(run / "model.safetensors", tmp_path / "model.safetensors")
    rewrite(path, lambda held: held.pop("facts"))
    refuses(["predict", clip, "--weights", path], path, "notes no classes, expected labels, such as")


def test_unknown_model_names_the_near_ones(clip, copy, refuses, tmp_path):
    refuses(["predict", clip, "--weights", "pevl_nona"], "pevl_nona", "pevl_nano")
    refuses(
        ["train", "--data", copy, "--out", tmp_path / "run", "--model", "pevl_nona"], "pevl_nona", "pevl_nano"
    )
    refuses(
        ["train", "--data", copy, "--out", tmp_path / "run", "--preset", "nano", "--modalities", "text"],
        "modalities",
        "video or pose",
    )
    assert not (tmp_path / "run").exists()


# --- what happens from outside: a process of its own ---


def test_one_line_from_outside(tmp_path):
    ran = pevl("predict", tmp_path / "nowhere.mp4")
    assert ran.returncode == 2 and not ran.stdout
    one_line(ran.stderr, "nowhere.mp4: no such file", "expected a video")
    ran = pevl("predict", tmp_path / "nowhere.mp4", PEVL_DEBUG="1")
    assert ran.returncode == 1 and "Traceback" in ran.stderr and "nowhere.mp4: no such file" in ran.stderr


def limited():
    "A disk that is full after 200 kB, as far as a process can tell"
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))


def test_full_disk(dives, tmp_path):
    "The weights do not fit: one line, no torn file, and the log so far is kept"
    out = tmp_path / "run"
    args = ["train", "--data", dives, "--out", out, "--preset", "nano", "--epochs", 1, "--batch-size", 4]
    ran = subprocess.run(
        command(*args),
        env={**os.environ, **ENV},
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=limited,
    )
    assert ran.returncode == 2, ran.stderr[-3000:]
    errors = [line for line in ran.stderr.splitlines() if line.startswith("pevl: ")]
    assert len(errors) == 1 and "Traceback" not in ran.stderr
    assert "file too large" in errors[0] and str(out) in errors[0]
    assert not [
        name for name in tree(out) if name.endswith((".part", ".tmp", "safetensors", "checkpoint.pt"))
    ]


def test_nobody_reads_the_output(tmp_path):
    "`pevl ... | head -0`: no traceback"
    ran = subprocess.Popen(
        command("--help"),
        env={**os.environ, **ENV},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ran.stdout.close()
    assert "Traceback" not in ran.stderr.read()
    ran.wait(60)
    if os.path.exists("/dev/full"):
        with open("/dev/full", "w") as full:
            ran = subprocess.run(
                command("--version"),
                env={**os.environ, **ENV},
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
            )
        assert ran.returncode == 2
        one_line(ran.stderr, "no space left")


def test_interrupted(tmp_path):
    "Ctrl-C: one line, status 130, and only whole files; the same command goes on"
    out = tmp_path / "dives"
    args = ["simdive", "--out", out, "--classes", 4, "--train", 200, "--workers", 1, "--size", 64]

    def heard():  # a shell's background job would ignore Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ran = subprocess.Popen(command(*args), env={**os.environ, **ENV}, preexec_fn=heard, **pipes)
    until = time.monotonic() + 120
    while not list(out.glob("truth/*.npz")) and time.monotonic() < until and ran.poll() is None:
        time.sleep(0.05)
    ran.send_signal(signal.SIGINT)
    _, err = ran.communicate(timeout=60)
    assert ran.returncode == 130, err[-3000:]
    assert "Traceback" not in err and err.splitlines()[-1] == "pevl: stopped"
    assert not [name for name in tree(out) if name.endswith((".part", ".tmp")) or ".part" in name]


def test_clips_without_joints_get_them(says, tmp_path):
    "A folder per class is enough: what is missing is found on the way, and the next run finds it there"
    pytest.importorskip("mediapipe")
    from pevl.data.pose import load_pose
    from pevl.data.video import write_video

    for photo in ("astronaut", "cameraman"):
        picture = np.asarray(Image.open(Path(__file__).with_name("photos") / f"{photo}.jpg").convert("RGB"))
        (tmp_path / "clips" / photo).mkdir(parents=True)
        for i in range(3):
            frames = np.stack([picture[4 * i : 4 * i + 300, 3 * f : 3 * f + 300] for f in range(6)])
            write_video(tmp_path / "clips" / photo / f"{i}.mp4", frames)
    args = "--preset nano --epochs 1 --batch-size 2 --amp no --workers 0".split()
    first, second = (
        says("train", "--data", tmp_path / "clips", "--out", tmp_path / n, *args) for n in ("a", "b")
    )
    assert "6 videos have no joints" in first and "no joints" not in second
    assert load_pose(tmp_path / "clips" / "pose" / "astronaut" / "0.npz").scores[:, 0].min() > 0.5
