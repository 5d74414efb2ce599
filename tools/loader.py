"""How many clips per second does one core bring to the model, and does the memory stay flat?

python tools/loader.py [DATA ...] [--models pevl_nano pevl_vit_b16] [--clips 16] [--repeats 3] [--epochs 24] [--workers 2] [--out FILE.csv]

DATA are folders in Diving48's format; without one, SimDive is drawn at 480 pixels (in the place of a camera's videos) and at 128.
For each folder and model, training samples are made in every way there is, in turn, so that a busy machine disturbs all alike:
decoded at full size or made small at decode, by decord and by PyAV; read from a raw and a jpeg pack; kept in memory. Printed are
the median of clips per second of the processor (all threads counted, so this is per core), the ratio to decord that makes frames
small, and the size of the pack. Files are in the system's cache: a slow disk comes on top. Then an epoch after the other with
worker processes, and the memory that they and this process hold. Clips wider than needed by less than 1.5 are decoded as they are.
"""

import argparse
import csv
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from torch.utils.data import DataLoader

from pevl.data.datasets import ClipDataset, collate, loader_process, read_diving48, short_side_for
from pevl.data.pack import write_pack
from pevl.data.pose import ClipTransform
from pevl.model.pevl import get_config
from pevl.train.recipe import preset
from settings import ROOT

MIB = 2**20
CROP = {"pevl_nano": preset("nano").data.crop}  # of the recipe that goes with a model; else the paper's


def options(argv):
    "The command line"
    p = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("data", nargs="*", type=Path, help="folders in Diving48's format; none: SimDive is drawn")
    p.add_argument("--models", nargs="+", default=["pevl_nano", "pevl_vit_b16"], help="their crops are made")
    p.add_argument("--clips", type=int, default=16, help="training clips of each folder")
    p.add_argument("--repeats", type=int, default=3, help="timed rounds, after one to warm up")
    p.add_argument(
        "--epochs", type=int, default=24, help="epochs while the memory is watched; 0: leave it out"
    )
    p.add_argument("--workers", type=int, default=2, help="processes while the memory is watched")
    p.add_argument("--out", type=Path, help="write the table as CSV")
    return p.parse_args(argv)


def drawn(folder, clips):
    "SimDive at two sizes"
    from pevl.data.simdive import generate

    train = math.ceil(clips / 8)
    for size in (480, 128):
        yield generate(folder / f"simdive{size}", 8, train, 1, workers=1, size=size, progress=False)


# --- ways to a sample ---


def datasets(clips, model, folder):  # -> name -> dataset, name -> MiB on the disk
    "The same training samples in every way there is"
    c = get_config(model)
    crop = ClipTransform(c.size, True, (CROP.get(model, preset("paper").data.crop), 1.0), layout=c.layout)
    kw = dict(T=c.T, Tv=c.Tv, size=c.size, train=True, transform=crop)
    ways, disk = {}, {}
    for backend in ("decord", "pyav"):
        try:
            for name, short in ((f"{backend}, full size", 0), (backend, None)):
                data = ClipDataset(clips, backend=backend, short_side=short, **kw)
                data[0]
                ways[name] = data
        except ValueError as e:
            print(f"{backend} is left out: {e}")
    for codec in ("raw", "jpeg"):
        path = folder / f"{model}_{codec}.pack"
        pack = write_pack(clips.clips, path, short_side_for([crop]), codec, workers=1)
        ways[f"pack {codec}"] = ClipDataset(clips, pack=path, **kw)
        disk[f"pack {codec}"] = round(len(pack.data) / MIB, 1)
    ways["memory"] = ClipDataset(clips, cache=True, cache_bytes=8 << 30, **kw)
    ways["memory"].preload()
    disk["memory"] = round(ways["memory"].store.bytes / MIB, 1)
    return ways, disk


def speeds(ways, repeats):  # -> name -> clips per second of the processor
    "Medians over rounds in which each way has its turn"
    took = {name: [] for name in ways}
    for epoch in range(repeats + 1):
        for name, data in ways.items():
            data.set_epoch(epoch)
            start = time.process_time()
            for i in range(len(data)):
                data[i]
            took[name].append(time.process_time() - start)
    return {name: len(ways[name]) / median(t[1:]) for name, t in took.items()}


# --- memory ---


def held(pid):  # -> MiB
    "Memory of a process that is its own: neither files nor what is shared with others"
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def memory(data, epochs, workers):  # -> MiB after each epoch
    "This process and its workers, which stay alive from epoch to epoch as in a training"
    loader = DataLoader(
        data,
        4,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=True,
        worker_init_fn=loader_process,
    )
    found = []
    for epoch in range(epochs):
        data.set_epoch(epoch)
        for _ in loader:
            pass
        found.append(sum(held(p) for p in (os.getpid(), *(w.pid for w in loader._iterator._workers))))
    return found


def commit():
    "Of the code that was measured"
    run = subprocess.run(
        ["git", "-C", ROOT, "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True
    )
    return run.stdout.strip() or "unknown"


def measure(folder, model, o, tmp):  # -> rows
    "One folder, one model"
    clips = read_diving48(folder, "train")
    clips.clips = clips.clips[: o.clips]
    ways, disk = datasets(clips, model, tmp)
    speed = speeds(ways, o.repeats)
    base = speed.get("decord", speed["pyav"])
    video = ways["pyav, full size"].store.read(clips.clips[0], torch.tensor([0]))[0].shape[-2:]
    facts = dict(data=f"{clips.name} {video[1]}x{video[0]}", model=model, crop=ways["pyav"].size)
    rows = []
    for name, v in speed.items():
        frames = ways[name].store.read(clips.clips[0], torch.tensor([0]))[0].shape[-2:]
        row = dict(
            way=name,
            frames=f"{frames[1]}x{frames[0]}",
            clips_per_second=round(v, 2),
            ratio=round(v / base, 2),
        )
        rows.append(facts | row | dict(mib=disk.get(name, ""), clips=len(clips)))
    print(f"\n{facts['data']}, {model}, crops of {facts['crop']}, {len(clips)} clips, median of {o.repeats}")
    print(f"{'':20}{'frames':>10}{'clips/s/core':>14}{'ratio':>8}{'MiB':>9}")
    for r in rows:
        print(f"{r['way']:20}{r['frames']:>10}{r['clips_per_second']:14.2f}{r['ratio']:8.2f}{r['mib']:>9}")
    if o.epochs and sys.platform == "linux":
        for name in [n for n in ("decord", "pyav", "pack jpeg") if n in ways][::2]:
            found = memory(ways[name], o.epochs, o.workers)
            print(
                f"MiB after each of {o.epochs} epochs, {o.workers} workers, {name}:",
                *(f"{m:.0f}" for m in found),
            )
    return rows


def main(argv):
    o = options(argv)
    torch.set_num_threads(1)
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, commit {commit()}")
    with tempfile.TemporaryDirectory() as tmp:
        rows = []
        for n, folder in enumerate(o.data or drawn(Path(tmp), o.clips)):
            for model in o.models:
                place = Path(tmp) / f"packs{n}"
                place.mkdir(exist_ok=True)
                rows += measure(folder, model, o, place)
    if o.out:
        part = o.out.with_name(f".{o.out.name}.part")
        with open(part, "w", newline="", encoding="utf-8") as f:
            table = csv.DictWriter(f, [*rows[0], "machine", "commit"], lineterminator="\n")
            table.writeheader()
            table.writerows(r | dict(machine=platform.machine(), commit=commit()) for r in rows)
        os.replace(part, o.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
