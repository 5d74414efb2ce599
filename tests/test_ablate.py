"""Several processes share the folder of an ablation, and one of them is killed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from pevl.data.simdive import generate
from pevl.model.variants import VARIANTS
from pevl.train.ablate import read_rows
from pevl.train.evaluate import read_table

ENV = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
ROWS = ["table7.p", "table9.heatmaps"]
PLAN = sorted((row, seed) for row in ROWS for seed in (0, 1))


@pytest.fixture(scope="module")
def dives(tmp_path_factory):
    return generate(
        tmp_path_factory.mktemp("ablate") / "dives",
        classes=2,
        train=3,
        test=1,
        workers=1,
        size=64,
        progress=False,
    )


def start(dives, out, log, epochs=1, **env):
    args = ["ablate", *ROWS, "--data", dives, "--out", out, "--seeds", 2, "--epochs", epochs]
    return subprocess.Popen(
        [sys.executable, "-m", "pevl.use.cli", *map(str, args)],
        env=ENV | env,
        stdout=open(log, "w"),
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    )


def until(what, seconds=240):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)
    return found


def claims(out, pid):
    "Runs that a process has claimed"
    mine = []
    for path in out.glob("*.claim"):
        try:
            mine += [path.stem] * (json.loads(path.read_text())["pid"] == pid)
        except (OSError, ValueError):
            pass
    return mine


def check(out, log=""):
    "Every row and seed exactly once, in files that are whole"
    assert sorted((r["variant"], r["seed"]) for r in read_rows(out / "ablate.csv")) == PLAN, log
    assert not [p for p in out.iterdir() if p.name.endswith((".claim", ".part", ".tmp"))]
    for variant, seed in PLAN:
        (row,) = read_table(out / f"{variant}-{seed}" / "results.csv")  # trained to the end by one only
        assert (row["variant"], row["seed"]) == (variant, seed)
    for name in ("ablate.md", "ablate.txt"):
        text = (out / name).read_text()
        for row in ROWS:
            assert f"*{VARIANTS[row].paper['top1']}*" in text and VARIANTS[row].label in text
    assert "| 2 |" in (out / "ablate.md").read_text(), "two seeds"


def test_one_of_two_is_killed_and_the_other_finishes(dives, tmp_path):
    out, logs = tmp_path / "out", [tmp_path / "a.log", tmp_path / "b.log"]
    a, b = (start(dives, out, log, epochs=3) for log in logs)
    try:
        mine = until(lambda: claims(out, b.pid) or b.poll() is not None)
        assert mine is not True, logs[1].read_text()
        until(lambda: (out / mine[0] / "recipe.json").exists())
        b.kill()
        assert not (out / mine[0] / "summary.json").exists(), "killed in the middle"
        assert a.wait(300) == 0, logs[0].read_text()
    finally:
        a.kill(), b.kill(), b.wait(), a.wait()
    check(out, logs[0].read_text())
    started = (logs[0].read_text() + logs[1].read_text()).count(
        "run "
    )  # every run once, and the killed one again
    assert started == 5, (logs[0].read_text(), logs[1].read_text())


def test_both_are_killed_and_a_restart_finishes(dives, tmp_path):
    out, logs = tmp_path / "out", [tmp_path / "a.log", tmp_path / "b.log", tmp_path / "c.log"]
    both = [start(dives, out, log, epochs=3) for log in logs[:2]]
    try:
        until(lambda: all(claims(out, p.pid) for p in both))
    finally:
        [p.kill() for p in both]
        [p.wait() for p in both]
    assert len(list(out.glob("*.claim"))) == 2, "they could not tidy up"
    again = start(dives, out, logs[2], epochs=3)
    assert again.wait(300) == 0, logs[2].read_text()
    check(out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.name != ".lock"}
    once_more = start(dives, out, logs[2], epochs=3)
    assert once_more.wait(120) == 0
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.name != ".lock"} == before


def test_ctrl_c_gives_its_claim_back(dives, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    ran = start(dives, out, log, epochs=50)
    try:
        (mine,) = until(lambda: claims(out, ran.pid))
        until(lambda: (out / mine / "recipe.json").exists())
        time.sleep(0.5)
        ran.send_signal(signal.SIGINT)
        assert ran.wait(120) == 130, log.read_text()
    finally:
        ran.kill()
    assert not list(out.glob("*.claim"))
    assert "stopped after 0 of 4 runs" in log.read_text().splitlines()[-1]


def test_a_process_of_a_launcher_works_alone_and_leaves_other_hosts_alone(dives, tmp_path):
    "Process 1 of 2, whose partner does not exist: it neither waits for it nor prints the table"
    out, log = tmp_path / "out", tmp_path / "log"
    out.mkdir()
    theirs = out / "table7.p-1.claim"
    theirs.write_text(json.dumps(dict(host="another machine", pid=1, birth="1")))
    group = dict(RANK="1", LOCAL_RANK="1", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    ran = start(dives, out, log, **group, ACCELERATE_MIXED_PRECISION="no")
    try:
        assert ran.wait(300) == 0, log.read_text()
    finally:
        ran.kill()
    held = sorted((r["variant"], r["seed"]) for r in read_rows(out / "ablate.csv"))
    assert held == [p for p in PLAN if p != ("table7.p", 1)]
    assert theirs.exists() and "left to other machines" in log.read_text() and "wrote" not in log.read_text()
