"""Make a training run the weights that ship, and measure what ships.

python tools/release.py make NAME RUN            RUN/model.safetensors, in half precision -> pevl/weights/pevl_nano_NAME.safetensors
python tools/release.py measure NAME DATA ...    evaluate the shipped file on each data folder -> pevl/results/NAME.csv
python tools/release.py add NAME RUN ...         put the rows of other runs beside them, for comparison
python tools/release.py card NAME                checksum (.json) and model card (.md), from those rows

Everything that the card says is read from the weights and from the rows; nothing is typed.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open

from pevl.data.datasets import clips_for, read_diving48
from pevl.data.files import write_atomic
from pevl.data.text import prompt
from pevl.model.pevl import load_model, save_model
from pevl.train.evaluate import (
    COLUMNS,
    csv_line,
    evaluate,
    read_row,
    read_table,
    result_row,
    run_facts,
    yes_no,
)
from pevl.train.recipe import from_dict
from settings import ROOT

WEIGHTS, RESULTS = ROOT / "pevl" / "weights", ROOT / "pevl" / "results"
# noise of the poses; whether it is the shipped file, or another run beside it
TABLE = dict(noise=float, shipped=yes_no) | COLUMNS


def file_of(name):
    return WEIGHTS / f"pevl_nano_{name}.safetensors"


def facts_of(path):
    with safe_open(path, "pt") as f:
        return json.loads(f.metadata()["pevl"])["facts"]


def noise_of(data):
    "How wrong the poses of a SimDive folder are"
    return json.loads(Path(data, "meta.json").read_text())["noise"]


def save_rows(name, rows):
    "Sorted: the shipped weights first"
    rows = sorted(rows, key=lambda r: (not r["shipped"], str(r["variant"]), r["seed"], r["noise"]))
    lines = [csv_line(TABLE)] + [csv_line(read_row(r, TABLE).values()) for r in rows]
    write_atomic(RESULTS / f"{name}.csv", "".join(lines))


def rows_of(name):
    path = RESULTS / f"{name}.csv"
    return read_table(path, TABLE) if path.exists() else []


def make(name, run):
    run = Path(run)
    facts = facts_of(run / "model.safetensors")
    recipe = json.loads((run / "summary.json").read_text())
    how = {k: recipe[k] for k in ("seconds", "epochs", "steps")} | dict(clips=recipe["train"]["clips"])
    facts |= dict(recipe=recipe["recipe"], training=how, torch=recipe["versions"]["torch"])
    model = load_model(run / "model.safetensors")
    facts |= run_facts(from_dict(recipe["recipe"]), model.config)
    save_model(model, file_of(name), torch.float16, **facts)
    print(f"wrote {file_of(name).name}, {file_of(name).stat().st_size / 1e6:.1f} MB")


def measure(name, *folders):
    model, facts = load_model(file_of(name)), facts_of(file_of(name))
    rows = [r for r in rows_of(name) if not r["shipped"]]
    texts = [prompt(t, facts["kind"], facts["template"]) for t in facts["classes"]]
    for data in folders:
        clips = read_diving48(data, "test")
        result = evaluate(model, clips_for(clips, model.config), texts, progress=True)
        rows.append(dict(noise=noise_of(data), shipped=True) | result_row(result, model, clips, facts))
        print({k: rows[-1][k] for k in ("noise", "top1", "top5", "mean_class", "within_pairs")}, flush=True)
    save_rows(name, rows)


def add(name, *runs):
    rows = rows_of(name)
    for run in runs:
        row = dict(noise=0.0, shipped=False) | json.loads(Path(run, "result.json").read_text())["row"]
        rows = [r for r in rows if r["shipped"] or r["weights"] != row["weights"]] + [row]
    save_rows(name, rows)


def command(facts) -> list[str]:
    "The two commands that make the weights again"
    c, t = facts["recipe"], facts["training"]
    m, d, o = c["model"], c["data"], c["optim"]
    per_class = t["clips"] // len(facts["classes"])
    variant = f"--variant {m['variant']} " if m["variant"] else ""
    return [
        f"pevl simdive --out simdive48 --train {per_class} --test 25 --seed 0",
        f"pevl train --data simdive48 --out run --preset nano {variant}--epochs {o['epochs']} "
        f"--batch-size {d['batch_size']} --lr {o['lr']:g} --amp {c['amp']} --seed {c['seed']}",
    ]


def percent(v):
    return "" if v is None else f"{100 * v:.1f} %"


CARD = """# pevl_nano_{name}

The small PeVL, trained: `pevl.create_model("pevl_nano", weights="{name}")`. It names the {classes} classes of Diving48 in
**simulated dives** (SimDive), from video, joints and label texts. It has seen no photograph and no real dive, and is worth
nothing on them. Use it to try the package, and as a start for experiments on SimDive.

- **Model** pevl_nano: nano CLIP ([card](pevl_nano_clip.md)) stays frozen; adapters, refinement and temperatures are trained,
  with {loss}
- **Input** a video and its joints (COCO-17, one person): 8 frames of 112 × 112 pixels and 24 frames of joints; texts in the
  words of SimDive's labels
- **Trained** on {clips:,} simulated clips, {epochs} epochs, seed {seed}, torch {torch}:

```sh
{commands}
python tools/release.py make {name} run
```

- **File** pevl_nano_{name}.safetensors, half precision, sha256 `{sha256}`
- **Licence** that of the package

Measured from this file on {evaluated:,} held-out simulated clips with other bodies, cameras and scenes; one view, computed in
{precision}; chance is {chance}. The rows, with the whole protocol, are in pevl/results/{name}.csv.

| noise of the joints | top-1 | top-5 | within pairs |
|---|---:|---:|---:|
{rows}

Noise 1 imitates a good detector (jitter, swaps, misses, wrong person); the model was trained without it. *Within pairs*:
forward or inward, back or reverse, all else equal; only the picture tells.
"""
LOSSES = {
    True: "the paper's guided loss",
    False: "the plain contrastive loss in place of the guided one, which costs accuracy on these data (see the chapter Ablations)",
}


def describe(name):  # -> what goes into the .json, text of the card
    "Everything that is said about the shipped file"
    path, facts = file_of(name), facts_of(file_of(name))
    own = [r for r in rows_of(name) if r["shipped"]]
    clean, c = next(r for r in own if r["noise"] == 0), load_model(path).config
    t = facts["training"]
    said = dict(sha256=hashlib.sha256(path.read_bytes()).hexdigest(), torch=facts["torch"])
    note = said | dict(
        data="SimDive (simulated)", commands=command(facts), top1=clean["top1"], test_clips=clean["evaluated"]
    )
    cells = [(f"{r['noise']:g}", *(percent(r[k]) for k in ("top1", "top5", "within_pairs"))) for r in own]
    said |= dict(
        name=name,
        loss=LOSSES[c.semantic_guided],
        commands="\n".join(command(facts)),
        chance=percent(1 / clean["classes"]),
    )
    said |= dict(
        clips=t["clips"],
        epochs=t["epochs"],
        seed=facts["recipe"]["seed"],
        rows="\n".join(f"| {' | '.join(r)} |" for r in cells),
    )
    return note, CARD.format(**said, **{k: clean[k] for k in ("classes", "evaluated", "precision")})


def card(name):
    note, text = describe(name)
    write_atomic(file_of(name).with_suffix(".json"), json.dumps(note, indent=1, sort_keys=True) + "\n")
    write_atomic(file_of(name).with_suffix(".md"), text)
    print(text)


def main(argv):
    commands = dict(make=make, measure=measure, add=add, card=card)
    if len(argv) < 2 or argv[0] not in commands or not argv[1].isidentifier():
        sys.exit(__doc__)
    commands[argv[0]](*argv[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
