"""How much slower is PeVL than the same encoders without refinement and associations?

python tools/bench.py [--model pevl_nano] [--batch 8] [--device cpu] [--repeats 5] [--labels 500] [--threads 1] [--cpu-time]
                      [--amp bf16] [--recompute] [--compile]

Three things of PeVL and of the paper's V+P+T row, in turn, so that a busy machine disturbs both alike: `clips` (features of
a batch, no gradients), `forward` (clips, as many texts, and their comparison), `step` (forward and backward, as in training).
Median seconds, peak memory above the weights, and ratios. Then what many label texts cost; and the training step with the
switches of the recipe: clips a second, its share of the rate at which this device multiplies matrices (measured here too), and
what activation checkpointing and computing a batch in four portions cost. Random weights and blank clips.
Exit status 1 if PeVL's forward pass takes more than 1.15 x the other's. `--cpu-time` counts the processor's seconds instead of
those on the wall: the right clock where other programs run too.
"""

import argparse
import sys
import time
from contextlib import nullcontext

import torch

from pevl.loss.total import logits, total_loss
from pevl.model.adapters import compile_blocks, recompute_blocks
from pevl.model.clip import training_kernels
from pevl.model.pevl import PeVL, create_model
from pevl.train.cost import blank_batch, blank_texts, clock, count_macs, peak_bytes, runs, seconds, weightless
from pevl.train.distributed import cached_backward

BASELINE = dict(associations=(), ucmr=(), semantic_guided=False)
LIMIT = 1.15  # PeVL's forward pass, times the baseline's
LENGTH = 30  # tokens of a text, about as many as a label of Diving48 has
MIB = 2**20
TYPES = dict(bf16=torch.bfloat16, fp16=torch.float16)


def options(argv):
    "The command line"
    p = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--model", default="pevl_nano", help="a name in pevl.list_models()")
    p.add_argument("--batch", type=int, default=8, help="clips")
    p.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    p.add_argument("--repeats", type=int, default=5, help="timed rounds, after one to warm up")
    p.add_argument("--labels", type=int, default=500, help="label texts of the evaluation")
    p.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    p.add_argument("--cpu-time", action="store_true", help="seconds of the processor, for a busy machine")
    p.add_argument(
        "--amp", choices=["no", "bf16", "fp16"], default="no", help="precision of the training step"
    )
    p.add_argument("--recompute", action="store_true", help="activation checkpointing in the training step")
    p.add_argument("--compile", action="store_true", help="compiled blocks in the training step")
    return p.parse_args(argv)


def timer(o):
    "The clock that was asked for"
    return time.process_time if o.cpu_time else clock(o.device)


def kinds(model, o):  # -> name -> function without arguments
    "What is timed"
    batch = blank_batch(model.config, o.batch).to(o.device)
    forward, step = runs(model, batch, blank_texts(o.batch, LENGTH))

    @torch.no_grad()
    def clips():
        model(batch)

    return dict(clips=clips, forward=forward, step=step)


def compare(o):  # -> ratio of the forward passes
    "PeVL and the baseline, in turn"
    models = {
        name: create_model(o.model, **kw).to(o.device) for name, kw in (("PeVL", {}), ("baseline", BASELINE))
    }
    work = {(n, k): (model, run) for n, model in models.items() for k, run in kinds(model, o).items()}
    took = dict(zip(work, seconds([run for _, run in work.values()], timer(o), o.repeats), strict=True))
    peak = {key: peak_bytes(*both) / MIB for key, both in work.items()}
    print(f"{'':9}{'seconds':>9}{'baseline':>10}{'ratio':>7}   {'peak MiB':>9}{'baseline':>10}{'ratio':>7}")
    for k in ("clips", "forward", "step"):
        row = [x for d in (took, peak) for x in (d["PeVL", k], d["baseline", k])]
        print(f"{k:9}{row[0]:9.3f}{row[1]:10.3f}{row[0] / row[1]:7.3f}   ", end="")
        print(f"{row[2]:9.1f}{row[3]:10.1f}{row[2] / row[3]:7.3f}")
    return took["PeVL", "forward"] / took["baseline", "forward"]


@torch.no_grad()
def many_labels(o):
    "Encode many label texts once, then rank them for a batch; twice as many may not need twice the memory"
    model = create_model(o.model).to(o.device)
    clips = model(blank_batch(model.config, o.batch).to(o.device))
    few, many = (model.encode_text(blank_texts(n, LENGTH)) for n in (o.labels, 2 * o.labels))
    run = [
        lambda: model.encode_text(blank_texts(o.labels, LENGTH)),
        lambda: logits(model, clips | few),
        lambda: logits(model, clips | many),
    ]
    took = seconds(run, timer(o), o.repeats)
    peak = [peak_bytes(model, r) / MIB for r in run]
    print(f"{o.labels} label texts: encoded once in {took[0]:.2f} s, peak {peak[0]:.0f} MiB")
    print(f"  ranked for {o.batch} clips in {took[1]:.3f} s, peak {peak[1]:.1f} MiB", end="; ")
    print(f"{2 * o.labels} of them in {took[2]:.3f} s, peak {peak[2]:.1f} MiB")


def autocast(o):  # -> context manager
    "The precision that was asked for"
    return torch.autocast(o.device.split(":")[0], TYPES.get(o.amp), enabled=o.amp != "no")


def matrix_rate(o):  # -> multiply-accumulates a second
    "What this device makes of one large matrix product"
    n = 1024 if o.device == "cpu" else 8192
    a, b = (torch.randn(n, n, device=o.device, dtype=TYPES.get(o.amp, torch.float32)) for _ in range(2))
    return n**3 / seconds([lambda: a @ b], timer(o), 3 * o.repeats)[0]


def training(o):
    "The training step: its speed, and what its switches cost"
    model = create_model(o.model).to(o.device).train()
    batch, texts = blank_batch(model.config, o.batch).to(o.device), blank_texts(o.batch, LENGTH)

    def step(recompute=o.recompute, kernels=training_kernels, portions=1):
        recompute_blocks(model, recompute)
        with kernels(o.device):
            if portions > 1:
                cached_backward(model, batch, texts, -(-o.batch // portions), autocast=lambda: autocast(o))
            else:
                with autocast(o):
                    loss = total_loss(model, model(batch, texts), batch.labels)[0]["total"]
                loss.backward()

    if o.compile:
        compile_blocks(model)
    other = dict(
        checkpointed=lambda: step(recompute=True),
        portions=lambda: step(portions=4),
        fused=lambda: step(kernels=lambda device: nullcontext()),
    )
    took = dict(zip(["step", *other], seconds([step, *other.values()], timer(o), o.repeats), strict=True))
    ratio = {k: v / took["step"] for k, v in took.items()}
    with weightless(LENGTH), count_macs() as so_far:
        runs(PeVL(model.config), blank_batch(model.config, o.batch), texts)[1]()
        macs = so_far()
    rate, top = macs / took["step"], matrix_rate(o)
    print(
        f"training step, {o.amp}: {o.batch / took['step']:.1f} clips a second, {rate / 1e9:.0f} GMAC a second",
        end="",
    )
    print(f" = {rate / top:.0%} of a matrix product's {top / 1e9:.0f}")
    print(
        f"  with activation checkpointing x {ratio['checkpointed']:.2f}, in four portions x {ratio['portions']:.2f}",
        end="",
    )
    print(f", with torch's own choice of attention kernels x {ratio['fused']:.2f}")


def main(argv):
    o = options(argv)
    torch.set_num_threads(o.threads)
    print(f"{o.model}, {o.batch} clips, {o.device}, {o.threads} threads, torch {torch.__version__}")
    ratio = compare(o)
    verdict = "at most" if ratio <= LIMIT else "more than"
    print(f"PeVL's forward pass takes {ratio:.3f} x the baseline's: {verdict} {LIMIT}")
    many_labels(o)
    training(o)
    return int(ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
