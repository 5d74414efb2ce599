"""Copies of benchmarks as people have them: each is read, or refused in one line that names the file, the line and what was expected."""

import json
import os
import shutil

import pytest

from pevl.data.benchmarks import BENCHMARKS, GymTimes, Videos, find_files, read_clips, recognise
from pevl.data.datasets import read_diving48
from pevl.data.miniature import MINIATURES, miniature

SMALL = dict(classes=2, train=4, test=2)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    "A miniature of each benchmark with its traps"
    home = tmp_path_factory.mktemp("originals")
    return {key: miniature(key, home / key, traps=True, **SMALL) for key in MINIATURES}


@pytest.fixture
def copy(originals, tmp_path):
    "A copy of a miniature that a test may spoil"
    return lambda key: shutil.copytree(originals[key], tmp_path / key)


def refused(call, *parts):
    with pytest.raises((ValueError, OSError)) as e:
        call()
    line = str(e.value)
    assert "\n" not in line and len(line) < 600
    for part in parts:
        assert str(part) in line, line


LISTS = dict(
    diving48="Diving48_V2_train.json",
    gym99="gym99_train_element_v1.0.txt",
    gym288="gym288_train_element_v1.0.txt",
    haa500="annotation/CPR.txt",
    smarthome="splits/train_CS.txt",
    kinetics400="annotations/train.csv",
)
each = pytest.mark.parametrize("key", sorted(MINIATURES))


def listed(root, key):
    "The label file of a set; HAA500's first one"
    return root / LISTS[key] if key != "haa500" else sorted((root / "annotation").glob("*.txt"))[0]


def test_every_benchmark_has_a_miniature_and_a_list():
    assert set(MINIATURES) == set(BENCHMARKS) == set(LISTS)


@each
def test_traps_come_out_right(originals, key):
    assert recognise(originals[key]) == key
    c = read_clips(originals[key], "train")
    assert len(c.missing) == 1 and len(c.duplicates) == (key != "haa500")
    assert len(c) + 1 == (32 if key == "haa500" else 8)
    assert sum(x.video.suffix == ".MP4" for x in c.clips) == 1
    assert all(x.video.is_file() for x in c.clips)
    assert len(c.checksum) == 12 and all(len(v) == 12 for v in c.files.values())
    assert all("\n" not in n for n in c.notes)
    assert c.summary()["missing"] == 1


@each
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\r\n",
        b"\xff\xfe\x00",
        b"\x00" * 64,
        b"{",
        b"[" * 5000,
        b"\x80\x04\x95",
        b"a" * 200_000,
        b'"' * 9,
        b"1 2 3\n" * 3,
    ],
)
def test_a_label_file_of_rubbish(copy, key, content):
    root = copy(key)
    listed(root, key).write_bytes(content)
    refused(lambda: read_clips(root, "train", dataset=key))


@each
def test_the_last_line_is_cut_off(copy, key):
    root = copy(key)
    path = listed(root, key)
    text = path.read_bytes().rstrip()
    path.write_bytes(text[: -len(text.split(b"\n")[-1]) + 3] if key != "diving48" else text[:-30])
    refused(lambda: read_clips(root, "train"), path.name, "line")


@each
def test_nothing_but_label_files(copy, key):
    root = copy(key)
    for p in [*root.rglob("*.mp4"), *root.rglob("*.MP4")]:
        p.unlink()
    refused(lambda: read_clips(root, "train"), "none of the", ".mp4 and so on")


@each
def test_videos_may_lie_anywhere(copy, key):
    root = copy(key)
    before = read_clips(root, "train")
    deep = root / "some folder.v2" / "part 1"
    deep.mkdir(parents=True)
    for p in [*root.rglob("*.mp4"), *root.rglob("*.MP4")]:
        shutil.move(p, deep / p.name)
    after = read_clips(root, "train")
    assert [(c.name, c.label, c.seconds) for c in after.clips] == [
        (c.name, c.label, c.seconds) for c in before.clips
    ]
    assert after.checksum == before.checksum and {c.video.parent for c in after.clips} == {deep}


@each
def test_a_pickle_is_named_and_not_opened(copy, key):
    root = copy(key)
    for p in root.glob("*.pkl"):
        p.unlink()
    (root / "mine.pkl").write_bytes(b"cos\nmkdir\n(V" + str(root / "trapped").encode() + b"\ntR.")
    c = read_clips(root, "train")
    assert any("mine.pkl" in n and "convert" in n for n in c.notes)
    assert not (root / "trapped").exists()


@each
@pytest.mark.parametrize("split", ["Train", "", "all", None])
def test_a_split_that_nobody_has(originals, key, split):
    refused(lambda: read_clips(originals[key], split), "split", "train")


@each
def test_no_folder_an_empty_folder_a_file(tmp_path, key):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name in ("nowhere", "empty", "file"):
        refused(lambda name=name: read_clips(tmp_path / name, "train", dataset=key), tmp_path / name)
        refused(lambda name=name: read_clips(tmp_path / name, "train"), tmp_path / name)


def test_simdive_is_read_as_ever(tmp_path):
    from pevl.data.simdive import generate

    generate(tmp_path / "s", classes=2, train=2, test=1, workers=1, size=64, progress=False)
    old, new = read_diving48(tmp_path / "s", "train"), read_clips(tmp_path / "s", "train")
    assert old == new and new.simulated and new.kind == "diving"
    assert all(c.pose for c in new.clips) and new.phrases[0][0] in new.classes[0]


def test_gym_lists_of_two_versions(copy):
    root = copy("gym99")
    shutil.copy(root / LISTS["gym99"], root / "gym99_train_element_v1.1.txt")
    refused(lambda: read_clips(root, "train"), "say which version: v1.0 or v1.1")
    assert read_clips(root, "train", version="V1.1").version == "v1.1"
    c = read_clips(root, "val")
    assert (c.version, c.official) == ("v1", 8521)  # the same in both


def test_a_gym_list_that_calls_itself_another_version(copy):
    root = copy("gym99")
    path = root / LISTS["gym99"]
    one = path.read_text().split("\n")[0].strip()
    path.write_text("\n".join([one, *(f"AAAAAAAAAAA_E_000000_{i:06d}_A_0000_0001 0" for i in range(26319))]))
    c = read_clips(root, "train")
    assert (len(c), len(c.missing), c.official) == (1, 26319, 20484)
    assert any("as many clips as v1.1, not v1.0" in note for note in c.notes)
    path.rename(root / "gym99_train_element.txt")  # without a version in its name it is told by its count
    assert read_clips(root, "train").version == "v1.1"


@pytest.mark.parametrize(
    "change, part",
    [
        (lambda info: [], "object"),
        (lambda info: {k: 3 for k in info}, "object"),
        (lambda info: {k: {e: None for e in v} for k, v in info.items()}, None),
        (lambda info: {k: {e: dict(x, segments=None) for e, x in v.items()} for k, v in info.items()}, None),
        (
            lambda info: {k: {e: dict(x, segments=[1]) for e, x in v.items()} for k, v in info.items()},
            "segments",
        ),
        (
            lambda info: {
                k: {e: dict(x, timestamps=[[5, 4]]) for e, x in v.items()} for k, v in info.items()
            },
            "timestamps",
        ),
        (
            lambda info: {
                k: {e: dict(x, timestamps=[[True, 4]]) for e, x in v.items()} for k, v in info.items()
            },
            "timestamps",
        ),
        (lambda info: {}, None),
    ],
)
def test_annotations_of_finegym(copy, change, part):
    root = copy("gym99")
    path = root / "finegym_annotation_info_v1.1.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    if part:
        refused(lambda: read_clips(root, "train"), path.name, part)
    else:  # nobody knows when the clips of the whole video begin: they are missing, the others are there
        c = read_clips(root, "train")
        assert len(c) == 3 and len(c.missing) == 5


def test_an_event_video_counts_from_its_own_beginning(copy):
    root = copy("gym99")
    whole = root / "videos" / "-x_E_00_A_1.mp4"
    before = [c.seconds for c in read_clips(root, "train").clips if c.seconds]
    info = json.loads((root / "finegym_annotation_info_v1.1.json").read_text())
    info["-x_E_00_A_1"]["E_000000_000009"]["timestamps"] = [[100.0, 109.0]]
    (root / "finegym_annotation_info_v1.1.json").write_text(json.dumps(info))
    late = [c.seconds for c in read_clips(root, "train").clips if c.seconds]
    assert late == [(a + 100, b + 100) for a, b in before] and len(late) == 4
    whole.rename(root / "videos" / "-x_E_00_A_1_E_000000_000009.mp4")
    assert [c.seconds for c in read_clips(root, "train").clips if c.seconds] == before
    times = GymTimes(root / "finegym_annotation_info_v1.1.json")
    assert times.find("-x_E_00_A_1_E_000000_000009_A_9999_9999") is None


def test_two_lines_that_contradict_each_other(copy):
    root = copy("gym99")
    path = root / LISTS["gym99"]
    first = path.read_text().split()[0]
    path.write_text(path.read_text() + f"{first} 77\n")
    refused(lambda: read_clips(root, "train"), path.name, "line 1", "contradicts", first)


def test_haa_classes(copy):
    root = copy("haa500")
    (root / "annotation" / "no_clips.txt").write_text("https://a.b/c,0,1,0,1\n" * 20)
    c = read_clips(root, "train", version="v1.0")
    assert len(c.classes) == 3 and len(c.missing) == 17 and c.official == 8000 and c.version == "v1.0"
    shutil.copy(root / "annotation" / "no_clips.txt", root / "no_clips.txt")
    refused(lambda: read_clips(root, "train"), "no_clips.txt", "twice")
    root = shutil.move(root, root.parent / "haa500_v1_1")
    os.remove(root / "no_clips.txt")
    assert read_clips(root, "train").version == "v1.1"


@pytest.mark.parametrize("version, classes, train", [("CS", 31, 8), ("CV1", 19, 4), ("CV2", 19, 8)])
def test_smarthome_without_lists(copy, version, classes, train):
    root = copy("smarthome")
    shutil.rmtree(root / "splits")
    refused(lambda: read_clips(root, "train"), "say which version: CS or CV1 or CV2")
    sets = {s: read_clips(root, s, version=version.lower()) for s in ("train", "val", "test")}
    assert {len(c.classes) for c in sets.values()} == {classes} and sets["train"].version == version
    assert any("rule" in n for n in sets["train"].notes)
    names = [c.name for s in sets.values() for c in s.clips]
    assert len(names) == len(set(names)) and not any("Pour" in n for n in names)
    if version == "CS":
        assert not {c.person for c in sets["train"].clips} & {c.person for c in sets["test"].clips}
    assert 0 < len(sets["train"]) <= train


def test_smarthome_by_name_and_never_by_number(copy):
    root = copy("smarthome")
    path = root / LISTS["smarthome"]
    before = read_clips(root, "train")
    path.write_text(
        "\n".join(f"mp4/{line.split()[0]} 7" for line in path.read_text().split("\n") if line.strip())
    )
    after = read_clips(root, "train")
    assert after.clips == before.clips and after.checksum != before.checksum
    path.write_text("Dance_p03_r00_v00_c01.mp4\n")
    refused(lambda: read_clips(root, "train"), path.name, "line 1", "Dance")
    path.write_text("\n".join(f"{c.name}.mp4" for c in read_clips(root, "test").clips))
    assert any("against the official rule" in n for n in read_clips(root, "train").notes)


def test_kinetics_as_a_list_with_names_and_spaces(copy):
    root = copy("kinetics400")
    rows = read_clips(root, "train")
    lines = [f"train/{rows.labels[c.label]}/{c.name}.MP4 {c.label}" for c in rows.clips]
    shutil.rmtree(root / "annotations")
    path = root / "kinetics400_train_list_videos.txt"
    path.write_text("\n".join(lines))
    listed = read_clips(root, "train")
    assert [(c.name, c.label, c.video) for c in listed.clips] == [
        (c.name, c.label, c.video) for c in rows.clips
    ]
    assert listed.labels == rows.labels
    (root / "label_map_k400.txt").write_text("one\ntwo\n")
    assert read_clips(root, "train").classes == ["one", "two"]
    (root / "label_map_k400.txt").write_text("one\n")
    refused(lambda: read_clips(root, "train"), path.name, "label", "1 classes")
    (root / "label_map_k400.txt").unlink()
    path.write_text("\n".join(f"{c.name}.mp4 {c.label}" for c in rows.clips))
    refused(lambda: read_clips(root, "train"), path.name, "line 1", "label_map_k400.txt")


def test_links_in_a_circle_and_unreadable_names(tmp_path):
    (tmp_path / "a b" / "ü").mkdir(parents=True)
    (tmp_path / "a b" / "ü" / "x.MKV").touch()
    (tmp_path / "a b" / "back").symlink_to(tmp_path)
    (tmp_path / "folder.mp4").mkdir()
    v = Videos(tmp_path)
    assert len(v) == 1 and v.find("x") == tmp_path / "a b" / "ü" / "x.MKV"
    assert v.find("ü/x") == v.find("x") and v.find("folder") is None and v.find("../x") is None
    assert find_files(tmp_path / "nowhere", ".*") == []


def test_another_form_of_clips_of_ones_own(tmp_path, originals):
    videos = sorted((originals["haa500"] / "video").rglob("*.mp4"))
    for i in range(8):
        to = tmp_path / ("jump", "turn")[i % 2] / f"{i}.mp4"
        to.parent.mkdir(exist_ok=True)
        shutil.copy(videos[i], to)
    assert recognise(tmp_path) == "own"
    assert sorted(read_clips(tmp_path, "train").labels) == ["jump", "turn"]
    lost = tmp_path / "lost labels"  # a benchmark without its label files is no data set of one class
    shutil.copytree(originals["diving48"] / "rgb", lost / "rgb")
    refused(lambda: read_clips(lost, "train"), "no data set is recognised", "Diving48")


@pytest.mark.parametrize(
    "how", [dict(classes=1), dict(train=3), dict(size=50), dict(seed=0, classes=1000), dict(full=True)]
)
def test_a_miniature_that_cannot_be(tmp_path, how):
    refused(lambda: miniature("diving48", tmp_path / "m", **dict(traps=True) | how))
    assert not any(tmp_path.iterdir())


def test_a_miniature_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("pevl.data.miniature.write_video", fail)
    refused(lambda: miniature("haa500", tmp_path / "m"), "no space")
    assert not any(tmp_path.iterdir())


# --- what people's copies have that the miniatures do not ---


def test_a_list_for_validation_that_tells_a_version(copy):
    root = copy("gym99")
    told = read_clips(root, "val").checksum
    (root / "gym99_val_element.txt").rename(root / "gym99_val_element_v1.0.txt")
    for version in (None, "v1.0", "v1.1"):  # the list is the same in both
        (root / "gym99_train_element_v1.1.txt").write_bytes((root / LISTS["gym99"]).read_bytes())
        assert read_clips(root, "test", version).checksum == told
    (root / "gym99_val_element_v1.1.txt").write_bytes((root / "gym99_val_element_v1.0.txt").read_bytes())
    refused(lambda: read_clips(root, "val"), "gym99_val_element_v1.1.txt", "say which version: v1.0 or v1.1")
    assert read_clips(root, "val", "v1.1").checksum == told


def test_whole_gym_videos_without_their_annotation_say_so(copy):
    root = copy("gym99")
    ids = [
        line.split()[0]
        for n in ("gym99_val_element.txt", LISTS["gym99"])
        for line in open(root / n)
        if line.strip()
    ]
    for video in [p for p in root.rglob("*") if p.suffix.lower() in (".mp4", ".mkv")]:
        video.unlink()
    (root / "videos").mkdir(exist_ok=True)
    for ytid in {i[:11] for i in ids}:
        (root / "videos" / f"{ytid}.mp4").write_bytes(b"")
    for p in root.rglob("finegym_annotation_info*"):
        p.unlink()
    refused(lambda: read_clips(root, "val"), "whole videos are", "finegym_annotation_info_v1.1.json")


def test_poses_of_whole_gym_videos_are_found(copy):
    root = copy("gym99")
    whole = next(c for s in ("train", "val") for c in read_clips(root, s).clips if c.seconds)
    for p in (*root.glob("poses.safetensors"), *root.glob("pose/*.npz")):
        p.unlink()
    (root / "pose").mkdir(exist_ok=True)
    (root / "pose" / f"{whole.video.stem}.npz").write_bytes(b"")
    found = [c for s in ("train", "val") for c in read_clips(root, s).clips if c.name == whole.name]
    assert found[0].pose == root / "pose" / f"{whole.video.stem}.npz"


def test_urls_of_haa_with_commas_and_lines_that_end_with_one(copy):
    root = copy("haa500")
    path = listed(root, "haa500")
    lines = [x for x in path.read_text().splitlines() if x.strip()]
    told = [c.name for c in read_clips(root, "train").clips]
    path.write_text("\n".join(x.replace(",", "/a,b?t=1,2,", 1) + "," * (i % 2) for i, x in enumerate(lines)))
    assert [c.name for c in read_clips(root, "train").clips] == told
    path.write_text("https://a.b/c,soon,2,0,1\n")
    refused(lambda: read_clips(root, "train"), "line 1", "'start'", "soon")


@pytest.mark.parametrize("where", ["list", "disk"])
def test_smarthome_in_small_letters(copy, where):
    root = copy("smarthome")
    known = {c.name: (c.label, c.pose is None) for c in read_clips(root, "train", "CS").clips}
    path = root / LISTS["smarthome"]
    if where == "list":
        path.write_text(path.read_text().lower())
    else:
        for p in [p for d in ("mp4", "skeleton") for p in (root / d).iterdir()]:
            p.rename(p.with_name(p.name.lower()))
    now = read_clips(root, "train", "CS")
    assert {c.name: (c.label, c.pose is None) for c in now.clips} == known
    assert all(c.pose is None or c.pose.load().layout == "smarthome13" for c in now.clips)


def test_kinetics_with_a_table_for_tests_that_tells_no_labels(copy):
    root = copy("kinetics400")
    (root / "annotations" / "test.csv").write_text(
        "youtube_id,time_start,time_end,split\nabcdefghijk,0,10,test\n"
    )
    assert len(read_clips(root, "train"))
    assert "val was taken" in " ".join(read_clips(root, "test").notes)


def test_what_comes_near_to_clips_of_ones_own_is_named(tmp_path):
    (tmp_path / "1.mp4").write_bytes(b"")
    refused(lambda: recognise(tmp_path), "videos in no folder: 1", "a folder for each class")
    (tmp_path / "clips.csv").write_text("file,class\n1.mp4,squat\n")
    refused(lambda: recognise(tmp_path), "clips.csv begins with 'file,class'", "path and label")
    refused(
        lambda: read_clips(tmp_path / "clips.csv", "train"), "clips.csv: line 1: column 'path' is missing"
    )


def test_haa_clips_without_their_lists(copy, tmp_path):
    root = copy("haa500")
    known = {s: read_clips(root, s) for s in ("train", "val", "test")}
    bare = tmp_path / "haa500_v1_1"
    shutil.copytree(root / "video", bare / "video")
    assert recognise(bare) == "haa500"
    for s, c in known.items():
        now = read_clips(bare, s)
        assert {x.name: x.label for x in now.clips} == {x.name: x.label for x in c.clips}
        assert now.version == "v1.1" and "split by the numbers" in " ".join(now.notes)
    other = tmp_path / "mine"
    shutil.copytree(root / "video", other / "video")  # nobody says that this is HAA500
    refused(lambda: recognise(other), "no data set is recognised")
    assert len(read_clips(other, "train", dataset="haa500")) == len(known["train"])
    shutil.rmtree(other / "video")
    (other / "a.mp4").write_bytes(b"")
    refused(
        lambda: read_clips(other, "train", dataset="haa500"),
        "no <class>.txt",
        "video/<class>/<class>_000.mp4",
    )
