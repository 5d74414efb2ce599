"""From the file to the batch: frames made small at decode, packs that are torn or out of date, memory, processes that stay behind."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import resize

from pevl.data.datasets import ClipDataset, collate, loader_process, read_diving48
from pevl.data.pack import Pack, write_pack
from pevl.data.pose import ClipTransform
from pevl.data.video import VideoError, open_video, read_frames, write_video

try:
    import decord  # noqa: F401

    BACKENDS = ["pyav", "decord"]
except ImportError:
    BACKENDS = ["pyav"]
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
ENV = {"COLUMNS": "100", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def dives(tmp_path_factory):
    "A small simulated data set, of clips large enough to be made small"
    from pevl.data.simdive import generate

    root = tmp_path_factory.mktemp("loader") / "dives"
    return generate(root, classes=2, train=3, test=1, workers=1, size=256, progress=False)


@pytest.fixture
def copy(dives, tmp_path):
    return shutil.copytree(dives, tmp_path / "dives", copy_function=shutil.copy2)


# --- frames made small at decode ---


@pytest.mark.parametrize("shape", [(240, 320), (320, 240), (130, 260), (96, 96)])
def test_small_frames_are_the_same_pictures_in_both_decoders(shape, tmp_path):
    path, (h, w) = tmp_path / "film.mp4", shape
    blobs = torch.from_numpy(np.random.default_rng(0).integers(64, 192, (8, 3, 9, 12), np.uint8))
    film = resize(blobs, [h, w], antialias=True)
    write_video(path, film, crf=16)
    full = read_frames(path, range(8))
    for n in (32, 65, 95):
        size = [round(x * n / min(h, w)) for x in (h, w)]
        want = resize(full, size, antialias=True).float()
        got = []
        for backend in BACKENDS:
            with open_video(path, backend, short_side=n) as v:
                got.append(v.get(range(8)))
                assert [v.height, v.width] == size == list(got[-1].shape[-2:])
        assert all(torch.equal(got[0], g) for g in got)
        grey = ((got[0].float() - want) * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)
        assert grey.abs().mean() < 2, f"n {n}: brightness is off"  # measured: 0.4 to 1.3 of 255
        assert (got[0].float() - want).abs().mean() < 6, (
            f"n {n}: colours are off"
        )  # 1.1 to 4.5: half their width is kept


def test_no_crop_is_enlarged_and_slightly_large_videos_are_left_alone(dives):
    clips = read_diving48(dives, "train")
    for size, share, side in ((112, 0.6, 145), (112, 0.85, 122), (170, 1.0, 170), (171, 1.0, 256)):
        crop = ClipTransform(size, True, (share, 1.0))
        data = ClipDataset(clips, size=size, train=True, transform=crop)
        frames, _ = data.store.read(clips.clips[0], torch.tensor([0]))
        assert min(frames.shape[-2:]) == side  # 256 / 170 is more than 1.5, 256 / 171 is less


def test_the_pictures_of_simdive_are_what_they_were(tmp_path):
    "128 pixels for crops of 112: results that were measured before frames were made small still hold"
    from pevl.data.simdive import generate

    clips = read_diving48(generate(tmp_path / "d", 2, 1, 1, workers=1, progress=False), "test")
    now, before = (ClipDataset(clips, size=112, short_side=n) for n in (None, 0))
    for a, b in zip(now, before, strict=True):
        assert torch.equal(a.frames, b.frames) and torch.equal(a.keypoints, b.keypoints)


# --- packs, from outside ---


def command(*args):
    return [sys.executable, "-m", "pevl.use.cli", *map(str, args)]


def start(*args, **kw):
    "A process in a session of its own: whatever it starts can be found by the session"
    log = subprocess.PIPE if "stderr" not in kw else kw.pop("stderr")
    return subprocess.Popen(
        command(*args),
        env={**os.environ, **ENV},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=log,
        text=True,
        start_new_session=True,
        **kw,
    )


def refused(args, *words, **kw):
    "Status 2 and one line"
    p = start(*args, **kw)
    _, err = p.communicate(timeout=300)
    lines = [line for line in err.splitlines() if line.strip()]
    assert p.returncode == 2 and len(lines) == 1, err[-3000:]
    assert not [w for w in words if str(w) not in lines[0]], lines[0]


def torn(data):
    return data[: len(data) // 2]


def foreign(data):
    return b"\x80\x04\x95" + data[3:]


def moved(data):
    at = data.rindex(b'"offset":') + 9
    return data[:at] + b"9" + data[at + 1 :]


@pytest.mark.parametrize(
    "damage, words", [(torn, "not finished"), (foreign, "not a pack"), (moved, "damaged")]
)
def test_a_damaged_pack_is_refused_and_nothing_is_written(damage, words, dives, tmp_path):
    pack = tmp_path / "clips.pack"
    clips = read_diving48(dives, "train").clips
    write_pack(clips, pack, 64, workers=1)
    pack.write_bytes(damage(pack.read_bytes()))
    out = tmp_path / "run"
    refused(["train", "--data", dives, "--out", out, "--preset", "nano", "--pack", pack], pack, words)
    refused(["pack", "--data", dives, "--out", pack, "--size", 64], pack, words)
    assert not out.exists()


def test_a_changed_video_is_named(copy, tmp_path):
    clips = read_diving48(copy, "train")
    pack = write_pack(clips.clips, tmp_path / "clips.pack", 122, workers=1)
    ClipDataset(clips, size=112, pack=pack.path)
    os.utime(clips.clips[4].video, ns=(1, 1))
    with pytest.raises(
        VideoError, match=f"1 of 6 videos .* the first: rgb/{clips.clips[4].name}.mp4; run pevl pack again"
    ):
        ClipDataset(clips, size=112, pack=pack.path)
    write_pack(clips.clips, pack.path, 122, workers=1)
    ClipDataset(clips, size=112, pack=pack.path)


@linux
def test_packing_that_is_killed_goes_on(copy, tmp_path):
    "SIGKILL while it writes: no process stays, no pack is there, and the second attempt ends with the pack of an undisturbed one"
    clean, pack = tmp_path / "clean.pack", tmp_path / "clips.pack"
    clips = [c for s in ("train", "test") for c in read_diving48(copy, s).clips]
    write_pack(clips, clean, 160, "raw", workers=1)
    p = start("pack", "--data", copy, "--out", pack, "--size", 160, "--codec", "raw", "--workers", 2)
    part = tmp_path / ".clips.pack.part"
    until(lambda: p.poll() is not None or part.exists() and part.stat().st_size > 2_000_000)
    os.kill(p.pid, signal.SIGKILL)
    p.wait()
    until(lambda: not living(p.pid))
    assert part.exists() and not pack.exists(), "it was killed too late to show anything"
    done = start("pack", "--data", copy, "--out", pack, "--size", 160, "--codec", "raw", "--workers", 1)
    assert done.wait(timeout=300) == 0
    a, b = Pack(clean), Pack(pack)
    assert a.videos.keys() == b.videos.keys() and not part.exists()
    assert all(a.videos[n] | dict(offset=0) == b.videos[n] | dict(offset=0) for n in a.videos)


@linux
@pytest.mark.parametrize("whom", [os.kill, os.killpg])
def test_packing_leaves_no_process_behind(whom, dives, tmp_path):
    p = start(
        "pack", "--data", dives, "--out", tmp_path / "a.pack", "--codec", "raw", "--size", 200, "--workers", 2
    )
    until(lambda: p.poll() is not None or len(living(p.pid)) >= 3)
    whom(p.pid, signal.SIGINT)
    _, err = p.communicate(timeout=120)
    assert p.returncode in (130, 0), err
    until(lambda: not living(p.pid))
    assert (tmp_path / "a.pack").exists() == (p.returncode == 0)


def test_a_full_disk_is_one_line_and_the_next_attempt_goes_on(dives, tmp_path):
    pack, limit = tmp_path / "clips.pack", 5_000_000
    args = ["pack", "--data", dives, "--out", pack, "--size", 128, "--codec", "raw", "--workers", 1]
    full = dict(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    refused(args, pack, "too large", "videos are kept", **full)
    assert not pack.exists() and 1_000_000 < (tmp_path / ".clips.pack.part").stat().st_size <= limit
    assert start(*args).wait(timeout=300) == 0
    assert len(Pack(pack)) == 8 and sorted(os.listdir(tmp_path)) == ["clips.pack"]


def test_training_reads_from_a_pack(dives, tmp_path):
    "A recipe with a pack trains, and the same videos decoded give the same loss"
    losses = []
    clips = [c for s in ("train", "test") for c in read_diving48(dives, s).clips]
    pack = write_pack(clips, tmp_path / "clips.pack", 122, "raw", workers=1).path
    for n, extra in enumerate(([], ["--pack", pack])):
        args = "--preset nano --epochs 1 --batch-size 3 --amp no".split()
        p = start("train", "--data", dives, "--out", tmp_path / f"run{n}", *args, *extra)
        assert p.wait(timeout=300) == 0, p.stderr.read()[-2000:]
        losses.append(json.loads((tmp_path / f"run{n}" / "summary.json").read_text())["train_loss"])
    assert losses[0] == losses[1]


# --- memory ---


def held(pid):
    "KiB that a process holds for itself: neither files, such as a mapped pack, nor what it shares"
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))


@linux
@pytest.mark.parametrize("way", ["decode", "pack"])
def test_memory_is_flat_over_epochs(way, dives, tmp_path):
    """After six epochs all code is loaded and all pools are filled: on a busy machine, pools were still growing by up to 10 MiB until then.
    If one clip in an epoch stayed in memory, in any of the three processes, that would be 16 x 224 x 224 x 3 bytes = 2.3 MiB an epoch;
    allowed is half of that over eighteen epochs, 21 MiB. Without the fixed threshold of `loader_process` it was 213 MiB"""
    clips = read_diving48(dives, "train")
    crop = ClipTransform(224, True, (0.85, 1.0))
    pack = write_pack(clips.clips, tmp_path / "a.pack", 243, workers=1).path if way == "pack" else None
    data = ClipDataset(clips, size=224, train=True, transform=crop, pack=pack)
    loader = DataLoader(
        data, 3, num_workers=2, persistent_workers=True, collate_fn=collate, worker_init_fn=loader_process
    )
    found = []
    for epoch in range(24):
        data.set_epoch(epoch)
        assert sum(len(batch) for batch in loader) == 6
        pids = [os.getpid(), *(w.pid for w in loader._iterator._workers)]
        found.append(sum(map(held, pids)) / 1024)
    clip = 16 * 224 * 224 * 3 / 2**20
    assert found[23] - found[5] < 0.5 * 18 * clip, found


# --- processes that stay behind ---


def living(session):
    "Processes of a session that are not only waiting to be counted"
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # it has just ended
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.append(int(stat.parent.name))
    return found


def until(so, seconds=120):
    end = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("whom", [os.kill, os.killpg])
def test_a_stopped_training_leaves_no_process_behind(whom, number, dives, tmp_path):
    "Ctrl-C and the end of a job's time reach the whole group, `kill` only the parent"
    out, log = tmp_path / "run", tmp_path / "log"
    args = "--preset nano --epochs 500 --batch-size 2 --amp no --workers 2".split()
    with open(log, "w") as err:
        p = start("train", "--data", dives, "--out", out, *args, stderr=err)
    until(lambda: p.poll() is not None or len(living(p.pid)) >= 3 and (out / "recipe.json").exists())
    time.sleep(2)  # it is in the middle of its steps
    assert p.poll() is None, log.read_text()[-2000:]
    workers = [w for w in living(p.pid) if w != p.pid]
    assert len(workers) >= 2
    whom(p.pid, number)
    p.wait(timeout=120)
    until(lambda: not living(p.pid), 20)
    lines = [line for line in log.read_text().splitlines() if line.strip()]
    assert p.returncode == 130, lines[-20:]
    assert "--resume" in lines[-1] and "Traceback" not in log.read_text()


@linux
def test_a_killed_training_leaves_no_process_behind(dives, tmp_path):
    "Nobody can tell the workers; they notice by themselves, within seconds"
    args = "--preset nano --epochs 500 --batch-size 2 --amp no --workers 2".split()
    p = start("train", "--data", dives, "--out", tmp_path / "run", *args, stderr=subprocess.DEVNULL)
    until(lambda: p.poll() is not None or len(living(p.pid)) >= 3)
    time.sleep(1)
    os.kill(p.pid, signal.SIGKILL)
    p.wait()
    until(lambda: not living(p.pid), 30)


SERVED = """
import sys
from pevl.data.datasets import *
from torch.utils.data import DataLoader
if __name__ == "__main__":
    data = ClipDataset(read_diving48(sys.argv[1], "train"), size=64)
    how = dict(worker_init_fn=loader_process, collate_fn=collate, multiprocessing_context="forkserver")
    while True:
        for batch in DataLoader(data, 1, num_workers=2, prefetch_factor=1, **how):
            print(batch.names, flush=True)
            sys.stdin.readline()
"""


@linux
def test_loaders_that_a_server_made_end_with_the_run(dives, tmp_path):
    "Their parent is the server, not the run: the usual way from Python 3.14 on"
    (tmp_path / "run.py").write_text(SERVED)
    ends = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    p = subprocess.Popen([sys.executable, tmp_path / "run.py", dives], **ends)
    assert p.stdout.readline()
    assert len(living(p.pid)) >= 4  # the run, the server, two loaders
    os.kill(p.pid, signal.SIGKILL)
    p.wait()
    until(lambda: not living(p.pid), 30)
