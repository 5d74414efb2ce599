"""Make a training run the weights that ship, and measure what ships.

python tools/release.py make NAME RUN            RUN/model.safetensors, in half precision -> pevl/weights/pevl_nano_NAME.safetensors
python tools/release.py measure NAME DATA ...    evaluate the shipped file on each data folder -> pevl/results/NAME.csv
python tools/release.py add NAME RUN ...         put the rows of other runs beside them, for comparison
python tools/release.py card NAME                checksum (.json) and model card (.md), from those rows

Everything that the card says is read from the weights and from the rows; nothing is typed. Its text is that of `pevl.use.share.model_card`,
as for every model that somebody shares.
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
from pevl.use.share import model_card
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


HOW = """## Make it again

```sh
{commands}
python tools/release.py make {name} run
```

The file is pevl_nano_{name}.safetensors, sha256 `{sha256}`. Other versions of this code or of PyTorch give other bits: expect
an accuracy that differs as with another seed. The CLIP in it has a [card](pevl_nano_clip.md) of its own.
All rows, with the whole protocol, are in pevl/results/{name}.csv;
those with noisy joints come from `pevl simdive --out simdive48n --train 1 --test 25 --noise 1 --seed 0`."""


def describe(name):  # -> what goes into the .json, text of the card
    "Everything that is said about the shipped file"
    path, facts = file_of(name), facts_of(file_of(name))
    own, model = [r for r in rows_of(name) if r["shipped"]], load_model(path)
    clean = next(r for r in own if r["noise"] == 0)
    note = dict(sha256=hashlib.sha256(path.read_bytes()).hexdigest(), torch=facts["torch"])
    how = HOW.format(name=name, commands="\n".join(command(facts)), sha256=note["sha256"])
    note |= dict(
        data="SimDive (simulated)", commands=command(facts), top1=clean["top1"], test_clips=clean["evaluated"]
    )
    load = f'pevl.create_model("pevl_nano", weights="{name}")'
    said = dict(name=f"pevl_nano_{name}", load=load, dtype=torch.float16, file=path.name, sections=[how])
    return note, model_card(model, facts, own, **said)


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
