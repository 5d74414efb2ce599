"""What happens to a run that is killed, interrupted, out of disk or short of clips; each run is a process of its own."""

import csv
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

RECIPE = (
    "--preset nano --epochs 2 --batch-size 2 --amp no".split()
)  # six clips: three steps an epoch, six in all
FORK = multiprocessing.get_context("forkserver")  # imports torch once, not once a run
FORK.set_forkserver_preload(
    ["pevl.use.cli", "pevl.use.report", "pevl.train.learner", "torch.utils.tensorboard"]
)


# --- in the process of the run ---


def child(args, log, trap, at, limit, env):
    "The command line with a trap; stdout and stderr go to a file"
    os.environ.update(env)
    from pevl.train import learner, recipe
    from pevl.use.cli import main

    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(out, 1), os.dup2(out, 2)
    recipe.PRESETS["nano"] = recipe.PRESETS["nano"] | dict(
        model=dict(name="pevl_nano", change=dict(drop_path=0.5))
    )  # something random inside
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if trap:
        trap(learner, at)
    sys.exit(main([str(a) for a in args]))


def signals(*numbers):
    def trap(learner, at):
        def after_step(self):
            if self.state.step == at:
                for n in numbers:
                    os.kill(os.getpid(), n)
                    time.sleep(0.01)

        learner.Learner.after_step = after_step

    return trap


def interrupt(learner, at):
    signals(signal.SIGINT)(learner, at)


def interrupt_twice(learner, at):
    signals(signal.SIGINT, signal.SIGINT)(learner, at)


def kill(learner, at):
    signals(signal.SIGKILL)(learner, at)


def kill_with_checkpoints_at_every_step(learner, at):
    learner.SAVE_EVERY = 0
    kill(learner, at)


def kill_while_writing(learner, at):
    "The process dies when half of its checkpoint number `at` is on the disk"
    replace, count = os.replace, []

    def half(part, path):
        if Path(path).name == "checkpoint.pt":
            count.append(path)
            if len(count) == at:
                os.truncate(part, os.path.getsize(part) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        replace(part, path)

    os.replace = half


def step_only_where_clips_are_broken(learner, at):
    "All clips are read; the other steps would only cost time"
    step = learner.train_step
    learner.train_step = lambda l, batch: step(l, batch) if batch.broken else None


def draw(root):
    from pevl.data.simdive import generate

    generate(root, classes=2, train=3, test=1, workers=1, size=64, progress=False)


# --- in the process of the test ---


class Ran:
    def __init__(self, code, log):
        self.code, self.lines = (
            code,
            [line for line in Path(log).read_text(encoding="utf-8").splitlines() if line.strip()],
        )

    def refused(self, *words):
        "Status 2 and one line that names `words`"
        assert self.code == 2 and len(self.lines) == 1, (self.code, self.lines)
        assert not [w for w in words if str(w) not in self.lines[0]], self.lines


def start(data, out, *more, trap=None, at=0, limit=None, recipe=RECIPE, name="run", **env):
    log = Path(out).with_suffix(f".{name}.log")
    args = ["train", "--data", data, "--out", out, *recipe, *more]
    p = FORK.Process(target=child, args=(args, log, trap, at, limit, env))
    p.start()
    return p, log


def end(p, log):
    p.join(240)
    if p.is_alive():
        p.kill()
        pytest.fail(f"hangs: {Ran(None, log).lines}")
    return Ran(p.exitcode, log)


def run(*args, **kw):
    return end(*start(*args, **kw))


def state(out):
    import torch

    return SimpleNamespace(**torch.load(out / "checkpoint.pt", weights_only=True)["state"])


def curve(out):
    with open(out / "log.csv", encoding="utf-8") as f:
        return [
            {k: v for k, v in r.items() if k not in ("seconds", "clips_per_second")}
            for r in csv.DictReader(f)
        ]


def same(out, whole):
    "The same weights, bit for bit, the same curve, and nothing that lies about"
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert curve(out) == curve(whole)
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in whole.iterdir())


@pytest.fixture(scope="module")
def dives(tmp_path_factory):
    "Six clips for training and two for the test"
    root = tmp_path_factory.mktemp("resume") / "dives"
    p = FORK.Process(target=draw, args=(root,))
    p.start()
    p.join(240)
    assert p.exitcode == 0
    return root


@pytest.fixture(scope="module")
def whole(dives):
    "A run that nothing happened to"
    ran = run(dives, dives.parent / "whole")
    assert ran.code == 0, ran.lines
    assert state(dives.parent / "whole").step == 6
    return dives.parent / "whole"


@pytest.mark.parametrize("trap", [kill, kill_with_checkpoints_at_every_step])
def test_killed_at_random_steps(dives, whole, tmp_path, trap):
    out, steps = tmp_path / "run", sorted(random.sample(range(2, 7), 2))
    for i, step in enumerate(steps):
        assert run(dives, out, *["--resume"][:i], trap=trap, at=step).code == -signal.SIGKILL, steps
        saved = state(out) if (out / "checkpoint.pt").exists() else None
        every = trap is kill_with_checkpoints_at_every_step
        assert (saved.step if saved else 0) == (step - 1 if every else (step - 1) // 3 * 3), steps
    assert run(dives, out, "--resume").code == 0, steps
    same(out, whole)


def test_killed_while_writing_and_then_the_disk_is_full(dives, whole, tmp_path):
    out = tmp_path / "run"
    assert run(dives, out, trap=kill_while_writing, at=2).code == -signal.SIGKILL
    assert state(out).step == 3, "the second checkpoint was torn, the first one is there"
    torn = [p for p in out.iterdir() if p.name.endswith(".part")]
    assert len(torn) == 1 and 0 < torn[0].stat().st_size < (out / "checkpoint.pt").stat().st_size

    before, size = (out / "checkpoint.pt").read_bytes(), (out / "checkpoint.pt").stat().st_size
    ran = run(dives, out, "--resume", limit=size // 2)
    assert (
        ran.code == 2
        and "checkpoint.pt: file too large" in ran.lines[-1]
        and "Traceback" not in "".join(ran.lines)
    ), ran.lines
    assert (out / "checkpoint.pt").read_bytes() == before
    assert not [p for p in out.iterdir() if p.name.endswith(".part")], (
        "half a file fills a full disk even more"
    )

    assert run(dives, out, "--resume").code == 0
    same(out, whole)


def test_no_room_for_the_weights(dives, whole, tmp_path):
    "The weights of all parameters and their checkpoint differ in size: one of them fits"
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    for name in ("model.safetensors", "summary.json", "result.json"):
        (out / name).unlink()
    size = (whole / "model.safetensors").stat().st_size
    ran = run(dives, out, "--resume", limit=size - 1)
    assert ran.code == 2 and "model.safetensors: file too large" in ran.lines[-1], ran.lines
    assert not (out / "model.safetensors").exists() and not (out / "summary.json").exists(), (
        "no summary of a run without weights"
    )


def test_ctrl_c_saves(dives, whole, tmp_path):
    out = tmp_path / "run"
    ran = run(dives, out, trap=interrupt, at=5)
    assert ran.code == 130 and state(out).step == 5
    assert "stopped after 5 of 6 steps; saved in" in ran.lines[-1] and "Traceback" not in "".join(
        ran.lines
    ), ran.lines
    assert len([line for line in ran.lines if "stopped" in line]) == 1
    assert run(dives, out, "--resume").code == 0
    same(out, whole)


def test_second_ctrl_c_ends_at_once(dives, tmp_path):
    ran = run(dives, tmp_path / "run", trap=interrupt_twice, at=5)
    assert ran.code == 130 and state(tmp_path / "run").step == 3, "nothing was saved after the second one"
    assert "Traceback" not in "".join(ran.lines), ran.lines


def test_ctrl_c_from_outside(dives, tmp_path):
    "The command as a user runs it"
    out, cmd = (
        tmp_path / "run",
        [sys.executable, "-m", "pevl.use.cli", "train", "--data", dives, "--out", tmp_path / "run", *RECIPE],
    )
    cmd[cmd.index("--epochs") + 1] = "1000"
    p = subprocess.Popen(list(map(str, cmd)), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        until = time.monotonic() + 120
        while not (out / "checkpoint.pt").exists() and p.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        p.send_signal(signal.SIGINT)
        lines = p.communicate(timeout=60)[1].splitlines()
    finally:
        p.kill()
    assert (
        p.returncode == 130 and lines and lines[-1].startswith("pevl: stopped") and "saved in" in lines[-1]
    ), lines
    assert "Traceback" not in "".join(lines) and state(out).step >= 3


def test_a_folder_that_holds_a_run(dives, whole):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    run(dives, whole).refused(whole, "--resume")
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*")} == before


def damage(kind, path, whole):
    import torch

    good = torch.load(whole / "checkpoint.pt", weights_only=True)
    if kind == "torn":
        path.write_bytes((whole / "checkpoint.pt").read_bytes()[:-1000])
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("no checkpoint\n" * 100)
    elif kind == "code":
        torch.save(good | dict(state=Path("x")), path)
    elif kind == "parts":
        torch.save({k: v for k, v in good.items() if k != "weights"}, path)
    elif kind == "weights":
        torch.save(good | dict(weights={k: v[:1] for k, v in good["weights"].items() if v.ndim}), path)
    elif kind == "trunk":
        torch.save(good | dict(frozen="0" * 12), path)
    elif kind == "data":
        torch.save(good | dict(data="0" * 12), path)
    elif kind == "recipe":
        torch.save(good | dict(recipe=good["recipe"] | dict(seed=7)), path)
    elif kind == "optimizer":
        torch.save(good | dict(optimizer=dict(state={}, param_groups=[])), path)


NAMED = dict(
    weights="another model",
    trunk="another model",
    data="label files' checksum",
    recipe="seed is 7, expected 0",
)


@pytest.mark.parametrize(
    "kind", ["torn", "empty", "text", "code", "parts", "weights", "trunk", "data", "recipe", "optimizer"]
)
def test_damaged_or_foreign_checkpoint(dives, whole, tmp_path, kind):
    out = tmp_path / "run"
    out.mkdir()
    damage(kind, out / "checkpoint.pt", whole)
    before = (out / "checkpoint.pt").read_bytes()
    run(dives, out, "--resume").refused("checkpoint.pt", NAMED.get(kind, "not a checkpoint"))
    assert [p.name for p in out.iterdir()] == ["checkpoint.pt"] and (
        out / "checkpoint.pt"
    ).read_bytes() == before


@pytest.fixture
def many(dives, tmp_path):
    "The six training clips again and again under other names, 102 in all"
    root = shutil.copytree(dives, tmp_path / "many")
    path = root / "SimDive_V1_train.json"
    entries = json.loads(path.read_text())
    for i in range(102 - len(entries)):
        old = entries[i % 6]
        entries.append(old | dict(vid_name=f"more_{i}"))
        for folder, end in (("rgb", "mp4"), ("pose", "npz")):
            shutil.copy(root / folder / f"{old['vid_name']}.{end}", root / folder / f"more_{i}.{end}")
    path.write_text(json.dumps(entries))
    return root


def test_broken_clips(many, tmp_path):
    "One of 102 is skipped, two are too many"
    recipe = "--preset nano --epochs 2 --batch-size 6 --amp no --modalities pose text".split()
    (many / "pose" / "more_0.npz").write_bytes(b"no pose")
    ran = run(many, tmp_path / "one", recipe=recipe, trap=step_only_where_clips_are_broken)
    assert ran.code == 0, ran.lines
    told = [line for line in ran.lines if "broken clip" in line and "more_0.npz" in line]
    assert len(told) == 1, "reported once, not once an epoch"
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert (
        [*summary["broken"]["train"]] == ["more_0"]
        and summary["broken"]["test"] == {}
        and summary["steps"] == 34
    )

    (many / "pose" / "more_1.npz").unlink()
    (many / "pose" / "more_1.npz").touch()
    ran = run(many, tmp_path / "two", recipe=recipe, trap=step_only_where_clips_are_broken)
    assert ran.code == 2 and "2 of 102 clips are broken, expected at most 1%" in ran.lines[-1], ran.lines
    assert "Traceback" not in "".join(ran.lines) and not (tmp_path / "two" / "summary.json").exists()


def test_two_processes_stop_together(dives, tmp_path):
    "Only one of them hears Ctrl-C; both take the same step, save once, and go on together"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="1")
    recipe = (
        "--preset nano --epochs 2 --batch-size 1 --amp no".split()
    )  # one clip a process: three steps an epoch, as before

    def pair(*more, trap=None, at=0):
        args = [
            dict(trap=trap if r else None, at=at, name=f"{r}", RANK=str(r), LOCAL_RANK=str(r), **env)
            for r in (0, 1)
        ]
        return [end(*p) for p in [start(dives, tmp_path / "run", *more, recipe=recipe, **a) for a in args]]

    ran = pair(trap=interrupt, at=2)
    assert [r.code for r in ran] == [130, 130] and state(tmp_path / "run").step == 2, [r.lines for r in ran]
    ran = pair("--resume")
    assert [r.code for r in ran] == [0, 0] and state(tmp_path / "run").step == 6, [r.lines for r in ran]
