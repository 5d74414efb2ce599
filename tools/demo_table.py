"""Measure what the README says about the demo: seeds × modalities, and the frozen trunk beside a trained one.

python tools/demo_table.py run [FOLDER]   train what FOLDER (runs/table) lacks, write pevl/results/demo.csv; an hour on two cores
python tools/demo_table.py show           the table, as Markdown
python tools/demo_table.py write          put it into README.md
"""

import csv
import json
import statistics
import sys
from pathlib import Path

from settings import ROOT

CSV = ROOT / "pevl" / "results" / "demo.csv"
SEEDS = 0, 1, 2
VARIANTS = {  # name in the table -> arguments of `demo`
    "video + pose + text": {},
    "pose + text": dict(modalities=("pose", "text")),
    "video + text": dict(modalities=("video", "text")),
    "video + pose + text, trunk trained too": dict(train_everything=True),
}
SHOWN = dict(top1="top-1", mean_class="mean class", within_pairs="within pairs")
MARK = "<!-- results -->\n", "<!-- /results -->\n"


def run(folder="runs/table"):
    from pevl.use.demo import demo

    rows = []
    for name, kw in VARIANTS.items():
        for seed in SEEDS:
            out = Path(folder, f"{name.replace(' ', '').replace(',', '-')}-{seed}")
            if not (out / "demo.json").exists():
                demo(out, seed, minutes=60, data=Path(folder, f"data-{seed}"), **kw)
            facts, told = (json.loads((out / f).read_text()) for f in ("demo.json", "run/summary.json"))
            row = dict(variant=name, seed=seed) | {
                k: round(facts[k], 4) for k in ("top1", "top5", "mean_class", "within_pairs")
            }
            row |= dict(
                clips=facts["clips"],
                epochs=told["epochs"],
                seconds=round(told["seconds"]),
                trainable=told["parameters"]["trainable"],
            )
            rows.append(
                row
                | dict(
                    torch=told["versions"]["torch"].split("+")[0],
                    device=told["hardware"]["device"],
                    threads=told["hardware"]["threads"],
                )
            )
            with open(CSV, "w", newline="") as f:
                w = csv.DictWriter(f, rows[0], lineterminator="\n")
                w.writeheader()
                w.writerows(rows)
    show()


def table():
    "Mean and range over the seeds, a row for each variant"
    rows = list(csv.DictReader(CSV.open(encoding="utf-8")))
    lines = [
        "| trained on | " + " | ".join(SHOWN.values()) + " | trainable |",
        "|---|" + "---:|" * (len(SHOWN) + 1),
    ]
    for name in dict.fromkeys(r["variant"] for r in rows):
        mine = [r for r in rows if r["variant"] == name]
        cells = []
        for key in SHOWN:
            v = [100 * float(r[key]) for r in mine]
            cells.append(f"{statistics.mean(v):.1f} % ({min(v):.1f}–{max(v):.1f})")
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {int(mine[0]['trainable']) / 1e6:.2f} M |")
    return "\n".join(lines) + "\n"


def show():
    print(table(), end="")


def write():
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    head, rest = text.split(MARK[0])
    path.write_text(head + MARK[0] + table() + MARK[1] + rest.split(MARK[1])[-1], encoding="utf-8")


def main(argv):
    commands = dict(run=run, show=show, write=write)
    if not argv or argv[0] not in commands:
        sys.exit(__doc__)
    commands[argv[0]](*argv[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
