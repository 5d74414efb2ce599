"""Results that the README and the book show, made from files and from nothing else.

python tools/results.py align RUNS DATA   score the runs of `pevl ablate` against SimDive's phrases -> pevl/results/alignment.csv
python tools/results.py confuse RUNS      which texts the runs confuse, and what weight SGMC gives them -> pevl/results/confused.csv
python tools/results.py own SEEDS         train the chapter Your own data with several seeds -> pevl/results/own_clips.csv
python tools/results.py show              the README's and the book's tables, from pevl/results/*.csv
python tools/results.py write             put the README's into README.md

The paper's numbers come from pevl.model.variants, stand in a column of their own and are marked there: in italics, under the paper's name.
"""

import sys
from pathlib import Path

from pevl.model.variants import VARIANTS
from pevl.train.ablate import ablation_table, read_rows, spread
from release import rows_of
from settings import ROOT

RESULTS = ROOT / "pevl" / "results"
NAMES = {  # variants in the order of the table -> what they are called there
    "table4.pevl": "**PeVL**",
    "loss.plain": "PeVL, plain contrastive loss",
    "table4.adapters": "video + pose + text",
    "table7.p_t": "pose + text",
    "table7.v_t": "video + text",
}


def align(runs, data):
    import torch

    from pevl.data.datasets import clips_for, read_diving48
    from pevl.data.text import prompt
    from pevl.model.pevl import create_model, load_model
    from pevl.train.alignment import alignment_accuracy
    from pevl.train.evaluate import code_version
    from pevl.train.learner import csv_text, write_atomic

    torch.manual_seed(0)  # of the untrained model
    clips, out = read_diving48(data, "test"), []
    texts = [prompt(c, "diving") for c in clips.classes]
    facts = dict(data=clips.name, classes=len(clips.classes), clips=len(clips), checksum=clips.checksum)
    facts |= code_version()
    plan = [("untrained", 0, lambda: create_model("pevl_nano", "clip"))]
    for r in read_rows(Path(runs, "ablate.csv")):
        path = Path(runs, f"{r['variant']}-{r['seed']}", "model.safetensors")
        plan.append((r["variant"], r["seed"], lambda path=path: load_model(path)))
    for name, seed, make in plan:
        m = make()
        if not {"pose", "text"} <= {*m.config.modalities}:
            continue
        mark = alignment_accuracy(m, clips_for(clips, m.config), texts)
        out.append(dict(variant=name, seed=seed) | {k: round(v, 4) for k, v in mark.items()} | facts)
        print(out[-1], flush=True)
    write_atomic(RESULTS / "alignment.csv", csv_text(out))


def confuse(runs):
    import torch

    from pevl.data.text import prompt
    from pevl.loss.refinement import cosines
    from pevl.loss.sgmc import strength, weights
    from pevl.model.pevl import load_model
    from pevl.train.evaluate import load_result
    from pevl.train.learner import csv_text, write_atomic

    out = []
    for r in read_rows(Path(runs, "ablate.csv")):
        if r["variant"] not in ("table4.pevl", "loss.plain"):
            continue
        folder = Path(runs, f"{r['variant']}-{r['seed']}")
        result, model = load_result(folder / "result.json"), load_model(folder / "model.safetensors")
        y, said = result.labels, result.probs.argmax(1)
        with torch.no_grad():
            S = model.encode_text([prompt(c, "diving") for c in result.classes]).sentence
        every, wrong, cos = torch.arange(len(S)), said != y, cosines(S, S)
        w = weights(every, strength(S, every, "softmax"))
        near = cos.masked_fill(torch.eye(len(S), dtype=torch.bool), -2).amax(1).median().item()
        row = dict(
            errors=int(wrong.sum()), weight=w[y[wrong], said[wrong]].median().item(), nearest_cosine=near
        )
        facts = {k: r[k] for k in ("data", "classes", "clips", "checksum")}
        out.append(
            dict(variant=r["variant"], seed=r["seed"]) | {k: round(v, 4) for k, v in row.items()} | facts
        )
        print(out[-1], flush=True)
    write_atomic(RESULTS / "confused.csv", csv_text(out))


def definitions(notebook, names, known):  # -> name -> value
    "What cells of a chapter define, so that a number in a file and one in the chapter are made by the same lines"
    import ast

    import nbformat

    sources = [c.source for c in nbformat.read(notebook, 4).cells if c.cell_type == "code"]
    for source in (s for s in sources if any(n in s for n in names) and not s.startswith(("%", "!"))):
        for node in ast.parse(source).body:
            targets = [getattr(t, "id", None) for t in getattr(node, "targets", ())]
            if {getattr(node, "name", None), *targets} & {*names}:
                exec(compile(ast.Module([node], []), str(notebook), "exec"), known)
    return known


def own(seeds):
    import json
    import tempfile
    from dataclasses import replace

    from pevl.data.own_clips import read_folder
    from pevl.train.evaluate import COLUMNS, read_row
    from pevl.train.learner import Learner, csv_text, make_model, write_atomic
    from pevl.train.recipe import preset
    from pevl.use.your_own_data import write_exercises

    out = []
    with tempfile.TemporaryDirectory() as tmp:
        root = Path(tmp, "exercises")
        write_exercises(root, 16)
        known = dict(preset=preset, replace=replace)
        definitions(ROOT / "nbs" / "use" / "12_your_own_data.ipynb", ("SAY", "recipe"), known)
        say = {k: dict(text=", ".join(v), phrases=v) for k, v in known["SAY"].items()}
        (root / "labels.json").write_text(json.dumps(dict(kind="exercise", labels=say)))
        train_set, test_set = (read_folder(root, split, share=0.4) for split in ("train", "test"))
        known["train_set"] = train_set
        for seed in range(int(seeds)):
            for start in ("clip", "simdive48"):
                c = replace(known["recipe"](start), seed=seed)
                model = make_model(c, len(train_set.classes))
                s = Learner(model, train_set, test_set, c, Path(tmp, f"{start}-{seed}"), progress=False).fit()
                extra = dict(start=start, train_clips=len(train_set), epochs=s["epochs"])
                extra |= dict(train_accuracy=round(s["train_accuracy"], 4), seconds=s["seconds"])
                # the clips are simulated, though the reader of a folder cannot know it
                out.append(extra | read_row(s["row"], COLUMNS) | dict(data="exercises", simulated=True))
                print({k: out[-1][k] for k in ("start", "seed", "top1", "seconds")}, flush=True)
    out = sorted(out, key=lambda r: (r["start"], r["seed"]))
    write_atomic(RESULTS / "own_clips.csv", csv_text(out))


def table():
    "Mean and range over the seeds, a row for each variant"
    rows = read_rows(RESULTS / "ablate.csv")
    head = "| trained | top-1 % | within pairs % | seeds | trainable | *the paper's top-1 %* |"
    lines = [head, "|---|" + "---:|" * 5]
    for name, title in NAMES.items():
        mine = [r for r in rows if r["variant"] == name]
        if mine:
            top1, pairs = (spread([100 * r[k] for r in mine]) for k in ("top1", "within_pairs"))
            size, paper = f"{mine[0]['trainable'] / 1e6:.2f} M", VARIANTS[name].paper.get("top1")
            paper = f"*{paper}*" if paper else ""
            lines.append(f"| {title} | {top1} | {pairs} | {len(mine)} | {size} | {paper} |")
    note = "*The paper's numbers: Diving48, ViT-B/16; not measured here.*"
    return "\n".join([*lines, "", note, ""])


def shipped():
    "What ships with the package, and other runs on the same data"
    lines = [
        "| on 48 classes | noise of the joints | top-1 % | top-5 % | within pairs % |",
        "|---|---|---:|---:|---:|",
    ]
    rows = rows_of("simdive48")
    same = {r["configuration"] for r in rows if r["shipped"]}
    for r in rows:
        other = "the same training" if r["configuration"] in same else NAMES.get(r["variant"], r["variant"])
        name = f"**the shipped weights**, seed {r['seed']}" if r["shipped"] else f"{other}, seed {r['seed']}"
        cells = [name, f"{r['noise']:g}", *(f"{100 * r[k]:.1f}" for k in ("top1", "top5", "within_pairs"))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


BLOCKS = dict(results=table, shipped=shipped)  # marks in README.md -> what stands between them


def block(name):
    return f"<!-- {name} -->\n{BLOCKS[name]()}<!-- /{name} -->\n"


def show():
    print(*map(block, BLOCKS), ablation_table(read_rows(RESULTS / "ablate.csv")), sep="\n", end="")


def write():
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    for name in BLOCKS:
        head, rest = text.split(f"<!-- {name} -->\n")
        text = head + block(name) + rest.split(f"<!-- /{name} -->\n")[-1]
    path.write_text(text, encoding="utf-8")


def main(argv):
    commands = dict(align=(align, 2), confuse=(confuse, 1), own=(own, 1), show=(show, 0), write=(write, 0))
    command, n = commands.get(argv[0] if argv else "", (None, 0))
    if command is None or len(argv) != n + 1:
        sys.exit(__doc__)
    command(*argv[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
