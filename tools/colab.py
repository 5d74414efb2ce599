"""The first code cell of a notebook: what Colab installs before the chapter runs, and whether it starts with a GPU.

python tools/colab.py list     what each notebook asks for
python tools/colab.py check    a line for each notebook whose cell or switch is not what this file says; exit status 1
python tools/colab.py write    put them right; ids, outputs and all other cells stay as they are

A reader gets the package and what the cells themselves import (extra `book`), never the developers' `nb`, which brings
a Jupyter of its own. Nothing that Colab's kernel has already loaded may be replaced: tests/test_colab.py.
"""

import ast
import json
import re
import sys
from pathlib import Path

from settings import ROOT, notebooks, settings

BOOK = "book"  # the extra that every notebook has
EXTRAS = dict(
    gradio="app", onnx="onnx", onnxruntime="onnx", onnxscript="onnx", rtmlib="pose"
)  # import -> extra
SKIP = {"data/12_extract": {"pose"}}  # imported in a function that the chapter does not call
# The newest versions come without the network that finds poses; this one has no wheel for Python 3.13
MEDIAPIPE, MEDIAPIPE_BELOW = "mediapipe==0.10.21 flatbuffers", (3, 13)
FINDS_POSES = {"data/12_extract", "use/*"}
NEEDS_GPU = {"recipes/*"}  # and every notebook with a `#| gpu` cell
GPU = {"accelerator": "GPU", "colab": {"gpuType": "T4"}}


def name_of(path):
    "data/01_video, recipes/03_gym99, index"
    return Path(path).relative_to(ROOT / settings()["nbs_path"]).with_suffix("").as_posix()


def listed(name, names):
    "Whether `name` or its whole folder is among `names`"
    return name in names or f"{name.split('/')[0]}/*" in names


def is_install(cell):
    source = "".join(cell["source"])
    return (
        cell["cell_type"] == "code" and '"google.colab" in sys.modules' in source and "pip install" in source
    )


def code_of(book):
    "The code cells that run, without the installing one; magics become statements that do nothing"
    for cell in book["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or is_install(cell) or re.match(r"#\s*\|\s*eval:\s*false", source):
            continue
        yield re.sub(r"(?m)^(\s*)[%!].*", r"\1pass", source)


def imports(source):
    "(name, statement) of each import; the statement is None inside a function"
    tree = ast.parse(source)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    inner = {id(n) for f in functions for n in ast.walk(f)}
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        yield from ((n.split(".")[0], None if id(node) in inner else ast.unparse(node)) for n in names)


def wants(name, book):
    "What a notebook asks of Colab"
    sources = [*code_of(book)]
    extras = {EXTRAS[n] for s in sources for n, _ in imports(s) if n in EXTRAS} - SKIP.get(name, set())
    return dict(
        extras=tuple(sorted({BOOK, *extras})),
        poses=listed(name, FINDS_POSES),
        files=any(
            re.search(r"""["'](\.\./)+(tests|tools|nbs|pevl)/""", s) for s in sources
        ),  # of the repository
        gpu=listed(name, NEEDS_GPU) or any(re.match(r"#\s*\|\s*gpu\b", s) for s in sources),
    )


def install_cell(name, extras=(BOOK,), poses=False, files=False, **_):
    "The text of the cell"
    cfg = settings()
    lines = [f'%pip install -q "{cfg["lib_name"]}[{",".join(extras)}] @ git+{cfg["git_url"]}"']
    if poses:
        no = f"{MEDIAPIPE.split()[0]} has no wheel for this Python; choose a runtime with Python 3.12"
        lines += [f"if sys.version_info < {MEDIAPIPE_BELOW}:", f"    %pip install -q --no-deps {MEDIAPIPE}"]
        lines += ["else:", f'    print("{no}")']
    if files:
        folder = f"{cfg['repo']}/{cfg['nbs_path']}/{name.rpartition('/')[0]}".rstrip("/")
        lines += [f"!git clone -q --depth 1 {cfg['git_url']}", f"%cd {folder}"]
    body = "\n".join(f"    {line}" for line in lines)
    return f'#| hide\nimport sys\n\nif "google.colab" in sys.modules:\n{body}'


def repaired(name, book):
    "A copy of the loaded notebook with the cell and the switch that it should have"
    wanted, cells = wants(name, book), [c for c in book["cells"] if is_install(c)]
    text = install_cell(name, **wanted)
    if len(cells) != 1:
        raise ValueError(f"{len(cells)} cells install the package on Colab, expected one:\n{text}")
    source = text.splitlines(keepends=True)
    kept = {k: v for k, v in book["metadata"].items() if k not in GPU}
    return book | {
        "cells": [c | {"source": source} if is_install(c) else c for c in book["cells"]],
        "metadata": dict(sorted((kept | (GPU if wanted["gpu"] else {})).items())),
    }


def main(repair):
    faults = []
    for path in notebooks():
        name, where, text = name_of(path), path.relative_to(ROOT), path.read_text(encoding="utf-8")
        book = json.loads(text)
        try:
            new = repaired(name, book)
        except ValueError as e:
            faults.append(f"{where}: {e}")
            continue
        if new == book:
            continue
        if repair:
            end = "\n" if text.endswith("\n") else ""
            path.write_text(json.dumps(new, indent=1, ensure_ascii=False) + end, encoding="utf-8")
            print(f"rewrote {where}")
        else:
            differs = "installing cell" if new["cells"] != book["cells"] else "GPU switch"
            faults.append(
                f"{where}: its {differs} is not the one of tools/colab.py (python tools/colab.py write)"
            )
    sys.exit("\n".join(faults) or None)


def show():
    for path in notebooks():
        w = wants(name_of(path), json.loads(path.read_text(encoding="utf-8")))
        also = dict(poses="mediapipe", files="the repository's files", gpu="GPU")
        print(f"{name_of(path):26}", ", ".join([*w["extras"], *(text for k, text in also.items() if w[k])]))


if __name__ == "__main__":
    commands = dict(list=show, check=lambda: main(False), write=lambda: main(True))
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    commands[sys.argv[1]]()
