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

import pytest

RECIPE = (
    "--preset nano --epochs 2 --batch-size 2 --amp no".split()
)  # six clips: three steps an epoch, six in all
FORK = multiprocessing.get_context("forkserver")  # imports torch once, not once a run
FORK.set_forkserver_preload(
    ["pevl.use.cli", "pevl.use.report", "pevl.train.learner"]
    + ["accelerate", "open_clip", "torch.utils.tensorboard", "torchmetrics.functional"]
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
        model=dict(name="pevl_nano", change=dict(drop_path=0.5)), eval_every=1
    )  # something random inside
    note_order(learner, log.with_suffix(".order"))
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if trap:
        trap(learner, at)
    sys.exit(main([str(a) for a in args]))


def note_order(learner, path):
    "Write down which clips each step sees"
    step = learner.train_step

    def noted(l, batch):
        with open(path, "a") as f:
            print(l.state.step, *batch.names, file=f, flush=True)
        return step(l, batch)

    learner.train_step = noted


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


def kill_while_writing(name, at):
    "The process dies when half of the file of that name is on the disk, the `at`-th time that it is written"
    replace, count = os.replace, []

    def half(part, path):
        if Path(path).match(name):
            count.append(path)
            if len(count) == at:
                os.truncate(part, os.path.getsize(part) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        replace(part, path)

    os.replace = half


def kill_in_checkpoint(learner, at):
    kill_while_writing("checkpoints/step-*.safetensors", at)


def kill_in_best(learner, at):
    kill_while_writing("best.safetensors", at)


def kill_in_summary(learner, at):
    kill_while_writing("summary.json", at)


def kill_a_loader(learner, at):
    "One of the processes that load clips dies, as when the system is out of memory"

    def after_step(self):
        if self.state.step == at:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
            time.sleep(0.1)

    learner.Learner.after_step = after_step


def linger(learner, at):
    "The run waits after that step, as if it were a long one"
    learner.Learner.after_step = lambda self: time.sleep(300 * (self.state.step == at))


def kill_in_evaluation(learner, at):
    "The process dies at the second clip of evaluation number `at`"
    evaluate, count = learner.evaluate, []

    def halfway(model, data, *more, **how):
        class Trapped(type(data)):
            def __getitem__(self, i):
                if i and len(count) == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().__getitem__(i)

        count.append(data)
        data.__class__ = Trapped
        return evaluate(model, data, *more, **how)

    learner.evaluate = halfway


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


def parts(out):
    "What the last checkpoint of a run holds"
    from pevl.train.checkpoint import checkpoints, load_checkpoint

    return load_checkpoint(checkpoints(out)[-1])


def state(out):
    return parts(out)["state"]


def steps(out):
    "Steps of which there is a checkpoint"
    from pevl.train.checkpoint import checkpoints

    return [int(p.stem[5:]) for p in checkpoints(out)]


def order(out, name="run"):
    "Step -> the clips that it saw, the last time that it was done"
    lines = Path(out).with_suffix(f".{name}.order").read_text().splitlines()
    return {line.split()[0]: line.split()[1:] for line in lines}


def curve(out):
    with open(out / "log.csv", encoding="utf-8") as f:
        return [
            {k: v for k, v in r.items() if k not in ("seconds", "clips_per_second")}
            for r in csv.DictReader(f)
        ]


def files(folder):
    "What lies there, but for TensorBoard's files, which are named after the time, and the checkpoint before the last"
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*")]
    return sorted(n for n in names if not n.startswith(("tensorboard/", "checkpoints/step")))


def same(out, whole):
    "The same weights, bit for bit, the same moments, order, curve and best epoch, and nothing that lies about"
    for name in ("model.safetensors", "best.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert curve(out) == curve(whole)
    assert order(out) == order(whole)
    a, b = parts(out), parts(whole)
    assert a["state"].best == b["state"].best and a["lr"] == b["lr"]
    assert a["optimizer"].keys() == b["optimizer"].keys()
    for n, m in a["optimizer"].items():
        assert all((t == b["optimizer"][n][k]).all() for k, t in m.items()), n
    assert files(out) == files(whole)
    assert len(steps(out)) == 2 and steps(out)[-1] == steps(whole)[-1]


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
    out = dives.parent / "whole"
    ran = run(dives, out)
    assert ran.code == 0, ran.lines
    assert state(out).step == 6 and steps(out) == [3, 6] and len(order(out)) == 6
    return out


@pytest.fixture(scope="module")
def whole_bf16(dives):
    "The same in mixed precision, with a loader process"
    ran = run(dives, dives.parent / "bf16", "--amp", "bf16", "--workers", 1)
    assert ran.code == 0, ran.lines
    return dives.parent / "bf16"


@pytest.mark.parametrize("every", [0, 1])
def test_killed_at_random_steps(dives, whole, tmp_path, every):
    out, at = tmp_path / "run", sorted(random.Random(every).sample(range(2, 7), 2))
    for i, step in enumerate(at):
        more = ["--save-every", every, *["--resume"][:i]]
        assert run(dives, out, *more, trap=kill, at=step).code == -signal.SIGKILL, at
        saved = step - 1 if every else (step - 1) // 3 * 3
        assert steps(out) == [s for s in ((saved - 1, saved) if every else (saved,)) if s], at
    assert run(dives, out, "--resume").code == 0, at  # without --save-every: that may change
    same(out, whole)


def test_killed_at_random_moments(dives, whole_bf16, tmp_path):
    "From outside, in mixed precision, with another number of loader processes every time"
    out, rng = tmp_path / "run", random.Random(3)
    for workers in (0, 3):
        before = len(order(out)) if out.exists() else 0
        more = ["--amp", "bf16", "--workers", workers, "--save-every", 1, "--resume"]
        p, log = start(dives, out, *more)
        path, until = log.with_suffix(".order"), time.monotonic() + 120
        while not (path.exists() and len(order(out)) > before) and p.is_alive():
            assert time.monotonic() < until
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        p.kill()
        assert end(p, log).code == -signal.SIGKILL, "it was over before it was killed"
    assert run(dives, out, "--amp", "bf16", "--workers", 1, "--resume").code == 0
    same(out, whole_bf16)


def test_killed_in_evaluations(dives, whole, tmp_path):
    out = tmp_path / "run"
    assert run(dives, out, trap=kill_in_evaluation, at=1).code == -signal.SIGKILL
    assert state(out).pending and state(out).best == {} and not (out / "log.csv").exists()
    assert run(dives, out, "--resume", trap=kill_in_best, at=1).code == -signal.SIGKILL
    assert not (out / "best.safetensors").exists() and len(torn(out)) == 1
    assert run(dives, out, "--resume", trap=kill_in_evaluation, at=2).code == -signal.SIGKILL
    assert state(out).step == 6 and state(out).best["epoch"] == 1
    assert run(dives, out, "--resume").code == 0
    same(out, whole)


def torn(out):
    return [p for p in out.rglob("*") if ".part" in p.name]


def test_killed_while_writing_and_then_the_disk_is_full(dives, whole, tmp_path):
    out = tmp_path / "run"
    assert run(dives, out, trap=kill_in_checkpoint, at=3).code == -signal.SIGKILL
    assert steps(out) == [3] and not state(out).pending, "the third write was torn, the second one is there"
    good = out / "checkpoints/step-00000003.safetensors"
    before, size = good.read_bytes(), good.stat().st_size
    assert len(torn(out)) == 1 and 0 < torn(out)[0].stat().st_size < size

    ran = run(dives, out, "--resume", limit=size // 2)
    assert ran.code == 2 and "step-00000006.safetensors: file too large" in ran.lines[-1], ran.lines
    assert "Traceback" not in "".join(ran.lines), ran.lines
    assert good.read_bytes() == before and steps(out) == [3]
    assert not torn(out), "half a file fills a full disk even more"

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


def test_killed_before_the_summary(dives, whole, tmp_path):
    "The line in the table of results was written, the summary was not; there is one line in the end"
    out = tmp_path / "run"
    assert run(dives, out, trap=kill_in_summary, at=1).code == -signal.SIGKILL
    assert (out / "results.csv").exists() and not (out / "summary.json").exists()
    assert run(dives, out, "--resume").code == 0
    same(out, whole)
    assert len((out / "results.csv").read_text().splitlines()) == 2  # head and row


def test_a_loader_process_is_killed(dives, whole, tmp_path):
    "One line, and nothing is lost"
    out = tmp_path / "run"
    ran = run(dives, out, "--workers", 2, "--save-every", 1, trap=kill_a_loader, at=2)
    assert ran.code == 2 and "a process that loads clips was killed" in ran.lines[-1], ran.lines
    assert "Traceback" not in "".join(ran.lines) and not torn(out), ran.lines
    assert run(dives, out, "--resume").code == 0
    same(out, whole)


def test_two_runs_in_one_folder(dives, whole, tmp_path):
    "The second one is refused while the first one lives, and changes nothing; once killed, it leaves the folder free"
    out = tmp_path / "run"
    first = start(dives, out, "--workers", 2, "--save-every", 1, trap=linger, at=3)
    until = time.monotonic() + 120
    while steps(out) != [1, 2] and first[0].is_alive() and time.monotonic() < until:
        time.sleep(0.05)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    run(dives, out, "--resume", name="second").refused(out, "another process is training into it")
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    first[0].kill()
    assert run(dives, out, "--resume").code == 0
    same(out, whole)


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
        while not steps(out) and p.poll() is None and time.monotonic() < until:
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


def test_a_table_of_others_is_told_before_the_work(dives, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "results.csv").write_text("name,score\n")
    run(dives, out).refused(out / "results.csv", "line 1: expected the columns of this version")
    assert files(out) == ["results.csv"]


@pytest.mark.parametrize("what", ["gone.mp4", "other.mp4", "gone.npz"])
def test_other_clips_are_another_run(dives, whole, tmp_path, what):
    "The label files are the same, but a video or a pose is not there any more, or is another one"
    root, out = shutil.copytree(dives, tmp_path / "dives"), shutil.copytree(whole, tmp_path / "run")
    first, second = sorted((root / "rgb").glob("*train*"))[:2]
    if what == "gone.npz":
        (root / "pose" / first.name).with_suffix(".npz").unlink()
    elif what == "gone.mp4":
        first.unlink()
    else:
        shutil.copy(second, first)
    clips = 5 if what == "gone.mp4" else 6
    ran = run(root, out, "--resume")
    ran.refused("cannot be resumed: the checksum of the train clips is", f"({clips} clips)")


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def of_another(**other):
    def change(path):
        from dataclasses import asdict

        from pevl.train.checkpoint import load_checkpoint, save_checkpoint
        from pevl.train.recipe import to_dict

        c = load_checkpoint(path)
        plain = dict(state=asdict(c["state"]), recipe=to_dict(c["recipe"]) | other.get("recipe", {}))
        save_checkpoint(path, **c | other | plain)

    return change


DAMAGE = {  # name -> (what happens to the last checkpoint, what the line says)
    "torn": (lambda p: os.truncate(p, p.stat().st_size - 1000), "torn, or not a checkpoint"),
    "flipped": (flip, "damaged, its checksum is not that of its content"),
    "weights": (lambda p: shutil.copy(p.parents[1] / "model.safetensors", p), "not a checkpoint of a run"),
    "processes": (of_another(processes=2), "it was written by 2 processes, expected 1"),
    "recipe": (of_another(recipe=dict(seed=7)), "cannot be resumed: seed is 7, expected 0"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_or_foreign_checkpoint(dives, whole, tmp_path, kind):
    "Refused in one line that offers the one before it; nothing is changed"
    out, (change, line) = shutil.copytree(whole, tmp_path / "run"), DAMAGE[kind]
    shutil.copy(whole.with_suffix(".run.order"), tmp_path / "run.run.order")
    last = out / "checkpoints/step-00000006.safetensors"
    change(last)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    offer = "the one before it is whole: --resume-from step-00000003"
    run(dives, out, "--resume").refused(last.relative_to(tmp_path), line, offer)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    if kind == "torn":
        run(dives, out, "--resume-from", "step-00000004").refused(
            out, "'step-00000004' is not there", "step-00000003"
        )
        (out / "results.csv").unlink(missing_ok=True)  # a finished run was asked to finish once more
        assert run(dives, out, "--resume-from", "step-00000003").code == 0
        same(out, whole)


def test_nothing_to_offer(dives, whole, tmp_path):
    "A foreign run, where the one before is foreign too; no whole checkpoint; one of a former version of pevl"
    out = shutil.copytree(whole, tmp_path / "run")
    ran = run(dives, out, "--resume", "--lr", 0.5)
    ran.refused("step-00000006.safetensors: cannot be resumed: optim.lr is 0.001, expected 0.5")
    assert "--resume-from" not in ran.lines[0]
    shutil.rmtree(out / "checkpoints")
    run(dives, out, "--resume").refused(out, "holds model.safetensors but no checkpoint to resume")
    (out / "checkpoint.pt").write_bytes(b"PK")
    run(dives, out, "--resume").refused(out / "checkpoint.pt", "of an older version of pevl")


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
    "Only one of them hears Ctrl-C; both take the same step, save once, and go on together; then one is killed, and the other says so"
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
    ran = pair("--resume", "--save-every", 1, trap=kill, at=4)
    assert [r.code for r in ran] == [2, -signal.SIGKILL], [r.lines for r in ran]
    assert "another process of this run has ended" in ran[0].lines[-1]
    assert "Traceback" not in "".join(ran[0].lines)
    ran = pair("--resume")
    assert [r.code for r in ran] == [0, 0] and state(tmp_path / "run").step == 6, [r.lines for r in ran]
