"""Folders and tables as people really have them: other systems, other spreadsheets, half-finished copies."""

import json
import os
import random
import subprocess
import sys
import unicodedata

import numpy as np
import pytest

from pevl.data.own_clips import (
    SHARE,
    class_folders,
    find_folder,
    is_own,
    is_video,
    list_files,
    lot,
    read_csv,
    read_folder,
    read_own,
    write_csv,
)
from pevl.data.pose import Pose, save_pose
from pevl.data.video import write_video


def fill(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def gym(root, clips=12, classes=("squat", "lunge")):
    return fill(root, *(f"{c}/{i:02}.mp4" for c in classes for i in range(clips)))


def said(f, *args):
    "The one line that a call ends with"
    with pytest.raises((ValueError, OSError)) as e:
        f(*args)
    text = str(e.value)
    assert "\n" not in text and len(text) < 400
    return text


def sides(read, root):
    return {c.name: s for s in ("train", "test") for c in read(root, s).clips}


# --- the split ---


def test_the_split_is_this_one(tmp_path):
    "Written down: another one would silently turn old test clips into training clips"
    assert [round(lot(f"{i:02}"), 4) for i in range(4)] == [0.0671, 0.3563, 0.4235, 0.6337]
    assert SHARE == 0.25


@pytest.mark.parametrize("seed", range(5))
def test_clips_stay_where_they_are(tmp_path, seed):
    "A class grows in any order: from the first natural test clip on, no clip ever changes sides"
    rng, root = random.Random(seed), tmp_path / "own"
    names = [f"{c}/{rng.randrange(10**6)}.mp4" for c in ("a", "b") for _ in range(40)]
    rng.shuffle(names)
    fill(root, *(n for n in names[:24]), *(f"{c}/{k}.mp4" for c in "ab" for k in range(20)))
    before = sides(read_folder, root)
    for k in range(24, len(names), 14):
        fill(root, *names[k : k + 14])
        after = sides(read_folder, root)
        assert {n: after[n] for n in before} == before
        before = after


def test_same_split_everywhere(tmp_path):
    "Other folder, other time of the files, other process with another hash seed"
    here = sides(read_folder, gym(tmp_path / "a"))
    assert sides(read_folder, gym(tmp_path / "elsewhere" / "b")) == here
    code = "import sys, json; from pevl.data.own_clips import read_folder as r\n"
    code += "print(json.dumps({c.name: s for s in ('train', 'test') for c in r(sys.argv[1], s).clips}))"
    env = {**os.environ, "PYTHONHASHSEED": "77"}
    ran = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a"], capture_output=True, text=True, env=env, check=True
    )
    assert json.loads(ran.stdout) == here


def test_small_classes_have_both_sides(tmp_path):
    root = fill(tmp_path, *(f"c{k:02}/{k}-{i}.mp4" for k in range(60) for i in range(2)))
    train, test = (read_folder(root, s) for s in ("train", "test"))
    assert train.counts() == test.counts() == [1] * 60
    assert any("was put into" in n for n in train.notes)


def test_persons_stay_together(tmp_path):
    rng, rows = random.Random(1), ["path,label,person"]
    for i in range(300):
        rows.append(f"{i}.mp4,{rng.choice(['a b', 'c d', 'e f'])},p{rng.randrange(25)}")
    fill(tmp_path, *(f"{i}.mp4" for i in range(300)))
    (tmp_path / "clips.csv").write_text("\n".join(rows))
    train, test = (read_own(tmp_path, s) for s in ("train", "test"))
    assert len(train) + len(test) == 300 and min(test.counts()) > 0
    assert not {c.person for c in train.clips} & {c.person for c in test.clips}
    found = [c.person for c in train.clips]
    assert len(set(found)) + len({c.person for c in test.clips}) == 25


def test_write_csv_nails_it_down(tmp_path):
    root = gym(tmp_path)
    before = sides(read_own, root)
    write_csv(root / "clips.csv", read_own(root, "train"), read_own(root, "test"))
    fill(root, *(f"squat/new{i}.mp4" for i in range(30)))
    assert sides(read_own, root) == before  # new clips belong to nothing until they have a line


# --- folders ---


def test_what_systems_leave_behind(tmp_path):
    junk = "squat/._00.mp4 .Trash/squat/1.mp4 __MACOSX/squat/00.mp4 squat/.DS_Store squat/Thumbs.db @eaDir/x/1.mp4"
    root = fill(gym(tmp_path), *junk.split(), "squat/00.mp4.part", "lunge/desktop.ini")
    assert len(sides(read_folder, root)) == 24
    assert read_folder(root, "train").labels == ["lunge", "squat"]


def test_every_ending_counts_once(tmp_path):
    root = gym(tmp_path)
    fill(
        root,
        *(f"squat/x{k}{e}" for k, e in enumerate((".MOV", ".mkv", ".webm", ".AVI", ".m4v", ".3gp", ".txt"))),
    )
    assert len(sides(read_folder, root)) == 24 + 6


def test_same_stem_in_two_classes_finds_its_own_pose(tmp_path):
    root = gym(tmp_path)
    for c, x in (("squat", 1.0), ("lunge", 2.0)):
        (root / "pose" / c).mkdir(parents=True)
        save_pose(root / "pose" / c / "00.npz", Pose(np.full((3, 17, 2), x), np.ones((3, 17)), (8, 8)))
    poses = {c.name: c.pose for s in ("train", "test") for c in read_folder(root, s).clips if c.pose}
    assert {n: p.parent.name for n, p in poses.items()} == {"squat/00": "squat", "lunge/00": "lunge"}


def test_nested_clips_with_the_same_name_do_not_share_a_side_by_name(tmp_path):
    root = fill(tmp_path, *(f"{c}/day{i}/video.mp4" for c in "ab" for i in range(40)))
    test = read_folder(root, "test")
    assert 2 <= min(test.counts()) and max(test.counts()) <= 25


def test_links(tmp_path):
    store = gym(tmp_path / "store")
    root = tmp_path / "own"
    root.mkdir()
    for c in ("squat", "lunge"):
        (root / c).symlink_to(store / c)
    (store / "squat" / "loop").symlink_to(store / "squat")
    (store / "squat" / "dead.mp4").symlink_to(tmp_path / "gone.mp4")
    sets = [read_folder(root, s) for s in ("train", "test")]
    assert sum(map(len, sets)) == 24 and sum((s.missing for s in sets), []) == ["squat/dead"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folder(tmp_path):
    root = gym(tmp_path)
    (root / "squat").chmod(0)
    try:
        assert "permission denied" in said(read_folder, root, "train")
    finally:
        (root / "squat").chmod(0o755)


def test_a_class_called_train_is_a_class(tmp_path):
    root = gym(tmp_path, classes=("train", "plane"))
    assert read_folder(root, "train").labels == ["plane", "train"]


def test_umlauts_of_a_mac(tmp_path):
    nfd = unicodedata.normalize("NFD", "Sprünge")
    root = fill(tmp_path, *(f"{nfd}/{i}.mp4" for i in range(8)), *(f"Läufe/{i}.mp4" for i in range(8)))
    assert read_folder(root, "train").labels == ["Läufe", "Sprünge"]
    rows = [f"Sprünge/{i}.mp4,hoch springen" for i in range(8)] + [
        f"Läufe/{i}.mp4,weit laufen" for i in range(8)
    ]
    (root / "clips.csv").write_text("path,label\n" + "\n".join(rows), encoding="utf-8")
    assert len(sides(read_csv, root / "clips.csv")) == 16


@pytest.mark.parametrize(
    "names, why",
    [
        ([], "no video in any of its folders"),
        (["a.mp4", "b.mp4"], "no video in any of its folders (2 beside them)"),
        (["squat/1.mp4", "squat/2.mp4"], "one class only, 'squat'"),
        (["videos/squat/1.mp4", "videos/lunge/1.mp4"], "its folders look like classes: pass"),
        (["a/1.mp4", "a/2.mp4", "b/1.mp4"], "class 'b': has one clip ('b/1'), expected two or more"),
        (
            ["train/a/1.mp4", "test/a/2.mp4", "test/b/3.mp4", "train/c/1.mp4"],
            "class 'b' has no training clip",
        ),
        (["train/a/1.mp4", "test/a/2.mp4", "more/b/3.mp4"], "folder 'more' beside train"),
        (["train/a/1.mp4", "val/a/2.mp4", "valid/a/3.mp4"], "folder 'valid' beside train"),
        (
            ["train/lunge/1.mp4", "train/b/1.mp4", "test/lung/2.mp4"],
            "no training clip, expected at least one; is it 'lunge'?",
        ),
        (["a/1.mp4", "a/1.mkv", "a/2.mp4", "b/1.mp4", "b/2.mp4"], "'a/1' is there twice"),
        (["squat/1.mp4", "squat/2.mp4", "Squat/1.mp4", "Squat/2.mp4"], "both are called 'squat'"),
        (
            ["jumping-jack/1.mp4", "jumping-jack/2.mp4", "JumpingJack/1.mp4", "JumpingJack/2.mp4"],
            "both are called",
        ),
    ],
)
def test_folders_that_cannot_be(tmp_path, names, why):
    assert why in said(read_folder, fill(tmp_path, *names), "train")


def test_an_empty_class_folder(tmp_path):
    root = gym(tmp_path)
    (root / "plank").mkdir()
    assert "plank: an empty folder, expected the videos of class 'plank'" in said(read_folder, root, "train")


def test_splits_by_name(tmp_path):
    root = gym(tmp_path)
    assert "split 'dev': expected train, val, test" in said(read_folder, root, "dev")
    assert "has no val clips" in said(read_folder, root, "val")
    assert [s for s, _ in class_folders(root)] == ["", ""]


def test_many_clips_are_read_quickly(tmp_path):
    import time

    root = fill(tmp_path, *(f"c{k}/{i}.mp4" for k in range(20) for i in range(500)))
    start = time.perf_counter()
    assert len(read_own(root, "train")) > 7000
    assert time.perf_counter() - start < 20
    assert sum(map(is_video, list_files(root))) == len(find_folder(root)[0]) == 10_000


# --- tables ---

ROWS = [
    ("squat/00.mp4", "squat"),
    ("squat/01.mp4", "squat"),
    ("lunge/00.mp4", "lunge"),
    ("lunge/01.mp4", "lunge"),
]

SIDES = [(c, s) for c in ("squat", "lunge") for s in ("train", "test")]


@pytest.mark.parametrize("code", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_spreadsheets(tmp_path, code, mark, end):
    "Whatever wrote it: the same clips"
    fill(tmp_path, *(p for p, _ in ROWS), "Übungen, alt/7; a.mp4", "Übungen, alt/8.mp4")
    lines = [mark.join(("Path", " LABEL ", "start", "end"))]
    lines += [mark.join((p, label, "", "")) for p, label in ROWS]
    number = "0,5" if mark != "," else "0.5"
    lines += [mark.join(('"Übungen, alt/7; a.mp4"', '"Füße ""hoch"""', number, "2")), ""]
    lines += [mark.join(('"Übungen, alt/8.mp4"', '"Füße ""hoch"""', "", "")), mark * 3]
    (tmp_path / "clips.csv").write_bytes((end.join(lines) + end).encode(code))
    sets = [read_csv(tmp_path / "clips.csv", s) for s in ("train", "test")]
    clips = {c.name: c for s in sets for c in s.clips}
    assert len(clips) == 6 and sets[0].labels == ['Füße "hoch"', "lunge", "squat"]
    assert clips["Übungen, alt/7; a@0.5-2"].seconds == (0.5, 2.0)


def test_excel_declares_its_separator(tmp_path):
    fill(tmp_path, *(p for p, _ in ROWS))
    text = "sep=;\r\npath;label\r\n" + "".join(f"{p};{label}\r\n" for p, label in ROWS)
    (tmp_path / "clips.csv").write_bytes(text.encode("cp1252"))
    assert len(sides(read_own, tmp_path)) == 4
    (tmp_path / "clips.csv").write_bytes((text + "lunge/02.mp4;lunge;7\r\n").encode())
    assert "clips.csv: line 7: has 3 cells, expected 2: path, label" in said(read_own, tmp_path, "train")


GOOD = "path,label,start,end,split,person,phrases\n"


@pytest.mark.parametrize(
    "text, why",
    [
        ("", "expected a header (path, label"),
        ("\n\n\n", "expected a header"),
        (GOOD, "at least one line below it"),
        ("squat/00.mp4,squat\n", "line 1: column 'path' is missing, expected path, label"),
        ("path;lable\na.mp4;x\n", "line 1: column 'label' is missing"),
        ("path,label,path\na,b,c\n", "line 1: column 'path' occurs twice"),
        ("path,label,strat\na,b,1\n", "line 1: unknown column 'strat', expected 'start'?"),
        (GOOD + "squat/00.mp4,\n", "line 2: column 'label' is '', expected a text"),
        (GOOD + ",squat\n", "line 2: column 'path' is '', expected a video file"),
        (
            GOOD + "\n\nsquat/00.mp4,squat,a,b\n",
            "line 4: column 'start' is 'a', expected seconds, such as 12.5",
        ),
        (GOOD + "squat/00.mp4,squat,0,0:04\n", "line 2: column 'end' is '0:04', expected seconds"),
        (GOOD + "squat/00.mp4,squat,3,2\n", "line 2: column 'end' is '2', expected more than start, 3"),
        (GOOD + "squat/00.mp4,squat,-1,2\n", "line 2: column 'start' is '-1', expected seconds"),
        (GOOD + "squat/00.mp4,squat,inf,inf\n", "column 'start' is 'inf', expected seconds"),
        (GOOD + "squat/00.mp4,squat,3,\n", "line 2: column 'end' is empty"),
        (GOOD + "squat/00.mp4,squat,,,dev\n", "line 2: column 'split' is 'dev', expected train, val, test"),
        (
            GOOD + "squat/00.mp4,squat,,,,anna\nsquat/01.mp4,squat,,,,anna\nlunge/00.mp4,lunge,,,,bob\n",
            "class 'lunge': has one clip",
        ),
        (
            GOOD + "squat/00.mp4,squat,,,,anna\nsquat/01.mp4,squat,,,,anna\n",
            "class 'squat': all its 2 clips belong together ('anna'), expected two or more",
        ),
        (GOOD + "squat,squat\n", "line 2: column 'path' is 'squat', a folder, expected a video file"),
        (GOOD + '"squat/00.mp4,squat\nlunge/00.mp4,lunge\n', "line 2: expected cells separated by ','"),
        (
            GOOD + "squat/00.mp4,squat\nsquat/00.mp4,lunge\n",
            "line 3: contradicts clips.csv: line 2 on 'squat/00'",
        ),
        (
            GOOD + "squat/00.mp4,squat,,,train\nlunge/00.mp4,lunge\n",
            "'lunge/00' has no split, expected train, val",
        ),
        (GOOD + "squat/00.mp4,squat,,,train\nsquat/01.mp4,squat,,,test\n", "one class only, 'squat'"),
        (
            GOOD + "squat/00.mp4,squat,,,train\nlunge/00.mp4,lunge,,,test\n",
            "class 'lunge' has no training clip",
        ),
        (
            GOOD + "squat/00.mp4,squat,,,,,a|b\nlunge/00.mp4,lunge\n",
            "class 'lunge': has one clip ('lunge/00'), expected two or more",
        ),
        (
            GOOD + "squat/00.mp4,a squat,,,train,,deep\nlunge/00.mp4,a lunge,,,train\n",
            "clips.csv: line 2: phrase 'deep': expected in 'a squat', word for word",
        ),
        (
            GOOD
            + "squat/00.mp4,a squat,,,train,,a\nsquat/01.mp4,a squat,,,train,,squat\nlunge/00.mp4,a lunge,,,train\n",
            "line 3: column 'phrases' is 'squat', expected 'a' as for the class before",
        ),
        (
            GOOD + "x/0.mp4,squat,,,train\nx/1.mp4,lunge,,,train\n",
            "none of the 2 train videos is there, expected",
        ),
    ],
)
def test_tables_that_cannot_be(tmp_path, text, why):
    fill(tmp_path, *(p for p, _ in ROWS))
    (tmp_path / "clips.csv").write_text(text)
    assert why in said(read_csv, tmp_path / "clips.csv", "train")


@pytest.mark.parametrize(
    "raw", [b"\0" * 50, b"path,label\n\xff\xfe\0a.mp4,x\n", bytes(range(256)) * 40, b"\xff\xfepath"]
)
def test_bytes_that_are_no_table(tmp_path, raw):
    (tmp_path / "clips.csv").write_bytes(raw)
    said(read_csv, tmp_path / "clips.csv", "train")
    is_own(tmp_path)


def test_a_huge_cell(tmp_path):
    (tmp_path / "clips.csv").write_text(GOOD + "a" * 200_000 + ",squat\n")
    assert "clips.csv: line 2: expected cells" in said(read_csv, tmp_path / "clips.csv", "train")


def test_a_path_that_no_disk_can_have(tmp_path):
    fill(tmp_path, *(p for p, _ in ROWS))
    rows = [*ROWS, ("a" * 5000 + ".mp4", "squat"), ("b" * 5000 + ".mp4", "lunge")]
    (tmp_path / "clips.csv").write_text("path,label\n" + "\n".join(map(",".join, rows)))
    sets = [read_csv(tmp_path / "clips.csv", s) for s in ("train", "test")]
    assert sum(map(len, sets)) == 4 and sum(len(s.missing) for s in sets) == 2


def test_moments_of_a_long_video_stay_apart(tmp_path):
    rows = [f"long.mp4,{c},{12345.61 + k:.2f},{12345.67 + k:.2f},{s}" for k, (c, s) in enumerate(SIDES)]
    rows += [f"long.mp4,{c},{12345.62 + k:.2f},{12345.67 + k:.2f},{s}" for k, (c, s) in enumerate(SIDES)]
    fill(tmp_path, "long.mp4")
    (tmp_path / "clips.csv").write_text("path,label,start,end,split\n" + "\n".join(rows))
    assert [len(read_own(tmp_path, s)) for s in ("train", "test")] == [4, 4]


def test_absolute_paths_and_paths_upwards(tmp_path):
    fill(tmp_path, *(f"videos/{p}" for p, _ in ROWS), "tables/x")
    rows = [f"{tmp_path}/videos/{ROWS[0][0]},squat", *(f"../videos/{p},{label}" for p, label in ROWS[1:])]
    (tmp_path / "tables" / "t.csv").write_text("path,label\n" + "\n".join(rows))
    assert len(sides(read_own, tmp_path / "tables" / "t.csv")) == 4
    assert len(sides(read_own, tmp_path / "tables")) == 4


def test_two_tables_are_not_guessed_between(tmp_path):
    for n in ("a.csv", "b.csv"):
        (tmp_path / n).write_text("path,label\nx.mp4,y\n")
    assert is_own(tmp_path) and "found a.csv, b.csv, expected one table" in said(read_own, tmp_path, "train")


def test_train_and_test_tables(tmp_path):
    fill(tmp_path, *(p for p, _ in ROWS))
    for s, k in (("train", 0), ("test", 1)):
        (tmp_path / f"{s}.csv").write_text("path,label\n" + "".join(f"{p},{c}\n" for p, c in ROWS[k::2]))
    wanted = {"squat/00": "train", "lunge/00": "train", "squat/01": "test", "lunge/01": "test"}
    assert sides(read_own, tmp_path) == sides(read_own, tmp_path / "train.csv") == wanted
    (tmp_path / "test.csv").write_text("path,label,split\nsquat/01.mp4,squat,train\n")
    assert "test.csv: line 2: column 'split' is 'train', expected test" in said(read_own, tmp_path, "train")


def test_what_is_not_ours(tmp_path):
    (tmp_path / "notes.csv").write_text("name,age\nanna,7\n")
    assert not is_own(tmp_path) and not is_own(tmp_path / "notes.csv") and not is_own(tmp_path / "nowhere")


# --- texts ---


def test_texts_kind_and_checksum(tmp_path):
    root = gym(tmp_path)
    plain = read_own(root, "test")
    assert (plain.classes, plain.kind, plain.files) == (["lunge", "squat"], "human", {})
    (root / "labels.json").write_text(
        '\ufeff{"kind": "exercise", "labels": {"squat": "a deep squat"}}', encoding="utf-8"
    )
    named = read_own(root, "test")
    assert (named.classes, named.kind, named.phrases) == (
        ["lunge", "a deep squat"],
        "exercise",
        [["lunge"], ["a deep squat"]],
    )
    assert named.checksum != plain.checksum and [*named.files] == ["labels.json"]
    (root / "labels.csv").write_text("label,text\nsquat,x\n")
    assert "found labels.json and labels.csv, expected one" in said(read_own, root, "test")


@pytest.mark.parametrize(
    "text, why",
    [
        (
            '{"squats": "a squat"}',
            "labels.json: label 'squats': there is no class 'squats' among the clips, did you mean squat?",
        ),
        ('{"squat": "a lunge", "lunge": "A  lunge"}', "both are called 'a lunge'"),
        (
            '{"squat": {"text": "a squat", "phrases": ["deep"]}}',
            "label 'squat': phrase 'deep': expected in 'a squat'",
        ),
        ('{"squat": {"text": "a squat", "phrases": []}}', "label 'squat': expected a text, or an object"),
        ('{"kind": 3, "labels": {}}', 'labels.json: expected {"class": "text", ...}'),
        ('{"squat": "a"', "labels.json: line 1: expected JSON"),
        ("[" * 100_000, "labels.json: line 1: expected JSON"),
        ("", "labels.json: line 1: expected JSON"),
    ],
)
def test_texts_that_cannot_be(tmp_path, text, why):
    root = gym(tmp_path)
    (root / "labels.json").write_text(text)
    assert why in said(read_own, root, "train")


# --- through the command line ---


def small_clips(root, classes=("go-left", "go-right"), clips=8):
    "Squares that move, with joints beside the videos: enough for every step, not for an accuracy"
    rng = np.random.default_rng(0)
    for k, c in enumerate(classes):
        (root / c).mkdir(parents=True)
        for i in range(clips):
            x = np.linspace(8, 40, 20) if k else np.linspace(40, 8, 20)
            frames = rng.integers(0, 60, (20, 64, 64, 3), dtype=np.uint8)
            for f, at in zip(frames, x.astype(int), strict=True):
                f[24:40, at : at + 16] = 220
            write_video(root / c / f"{i}.mp4", frames, fps=15)
            points = np.stack([x[:, None] + np.arange(17), np.full((20, 17), 32.0)], -1)
            save_pose(root / c / f"{i}.npz", Pose(points, np.ones((20, 17)), (64, 64)))
    return root


def pevl(*args, cwd):
    cmd = [sys.executable, "-m", "pevl.use.cli", *map(str, args)]
    return subprocess.run(cmd, cwd=cwd, capture_output=True, text=True, timeout=600)


def test_from_a_folder_to_a_prediction(tmp_path):
    "pevl train, evaluate and predict on a folder per class and on a table, without a line of code"
    small_clips(tmp_path / "own")
    quick = "--preset nano --epochs 2 --batch-size 8 --amp no".split()
    ran = pevl("train", "--data", "own", "--out", "run", *quick, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["classes"] == ["go left", "go right"]
    ran = pevl("predict", "own/go-left/0.mp4", "--weights", "run", cwd=tmp_path)
    assert ran.returncode == 0 and "go left" in ran.stdout, ran.stderr
    write_csv(tmp_path / "own.csv", *(read_own(tmp_path / "own", s) for s in ("train", "test")))
    own = ("--data", "own.csv", "--dataset", "own")
    ran = pevl("evaluate", *own, "--weights", "run", "--out", "page", cwd=tmp_path)
    assert ran.returncode == 0 and (tmp_path / "page" / "report.html").is_file(), ran.stderr
    (tmp_path / "own.csv").write_text("path,label\nown/go-left/0.mp4\n")
    ran = pevl("train", *own, "--out", "bad", *quick, cwd=tmp_path)
    assert ran.returncode == 2 and "own.csv: line 2: column 'label'" in ran.stderr
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("what", ["folder", "table", "table in a folder called videos"])
def test_recognised_without_being_told(tmp_path, what):
    "Own clips with pose/ beside the classes, as `pevl pose` writes it; and tables"
    from pevl.data.benchmarks import read_clips

    root = fill(gym(tmp_path / "own"), "pose/squat/00.npz")
    if what == "table":
        root = root / "clips.csv"
        write_csv(root, *(read_own(root.parent, s) for s in ("train", "test")))
    if what == "table in a folder called videos":
        write_csv(tmp_path / "clips.csv", *(read_own(root, s) for s in ("train", "test")))
        root.rename(tmp_path / "videos")
        text = (tmp_path / "clips.csv").read_text().replace("own/", "videos/")
        (tmp_path / "clips.csv").write_text(text)
        root = tmp_path
    assert len(read_clips(root, "train")) + len(read_clips(root, "test")) == 24


# --- splits in other words ---


@pytest.mark.parametrize(
    "train, test", [("Training", "testing"), ("train", "valid"), ("TRAIN", "Validation")]
)
def test_splits_in_other_words(tmp_path, train, test):
    "Taken for classes they would train without a word, and tell train from valid"
    folder = fill(
        tmp_path / "f", *(f"{s}/{c}/{i}.mp4" for s in (train, test) for c in "ab" for i in range(2))
    )
    column = gym(tmp_path / "c", 2)
    rows = [f"{c}/{i:02}.mp4,{c},{(train, test)[i]}" for c in ("squat", "lunge") for i in range(2)]
    (column / "clips.csv").write_text("\n".join(["path,label,split", *rows]))
    tables = gym(tmp_path / "t", 2)
    for i, name in enumerate((train, test)):
        (tables / f"{name}.csv").write_text(f"path,label\nsquat/{i:02}.mp4,squat\nlunge/{i:02}.mp4,lunge\n")
    for root in (folder, column, tables):
        a, b = (read_own(root, s) for s in ("train", "test"))
        assert len(a) == len(b) == (4 if root == folder else 2)
        assert a.classes == b.classes and len(a.classes) == 2 and "train" not in a.labels
        assert not {c.name for c in a.clips} & {c.name for c in b.clips}
