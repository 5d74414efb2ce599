"""Build the book: python tools/book.py [--partial]

Warnings are errors. The repository's address comes from settings.ini and is written into a copy of _config.yml under _build/.
--partial leaves out chapters that do not exist yet and only shows warnings (for authors; `make book` never does).
BOOK=FOLDER in the environment builds in another folder, and tests/test_book.py tests it there.

Beside the pages it writes what programs read: llms.txt (llmstxt.org), each page as Markdown (model/05_p2v.html.md) and each notebook's
code alone (code/model/05_p2v.py).
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from settings import ROOT, settings

sys.path.insert(0, str(ROOT / settings()["nbs_path"] / "_ext"))
import nbdev_myst  # noqa: E402
import pevl_reference  # noqa: E402

BUILD = Path(os.environ.get("BOOK") or ROOT, "_build")
HTML = BUILD / "html"


def config(nbs):
    "nbs/_config.yml with what settings.ini knows: title, author, version, address"
    cfg, conf = settings(), yaml.safe_load((nbs / "_config.yml").read_text(encoding="utf-8"))
    conf |= {"title": cfg["title"], "author": cfg["author"], "copyright": cfg["copyright"].split(",")[0]}
    conf["repository"] = {"url": cfg["git_url"], "path_to_book": cfg["nbs_path"], "branch": cfg["branch"]}
    conf["sphinx"]["local_extensions"] = {
        name: str(nbs / folder) for name, folder in conf["sphinx"]["local_extensions"].items()
    }
    conf["sphinx"]["config"] |= {"version": cfg["version"], "release": cfg["version"]}
    return conf


def pages(toc):
    "The names of the pages in a table of contents, the root first"
    return [page for listed in nbdev_myst.pages(toc).values() for page in listed]


# --- for programs ---


def outline(text):
    "The headings and the running text of a Markdown cell: (heading or '', text)"
    for line in text.splitlines():
        m = nbdev_myst.HEADING.match(line)
        yield (m[2], line) if m else ("", line)


def code_cells(chapter):
    "(directives, source) of the cells that count: no installation, no name of the module"
    for cell in chapter.cells:
        if cell.cell_type == "code":
            d, source = nbdev_myst.split_directives(cell.source)
            if source and "default_exp" not in d and "google.colab" not in source:
                yield cell, d, source


def as_code(chapter):
    "A notebook's code cells in order, its headings as comments"
    counted = {cell["id"]: (d, source) for cell, d, source in code_cells(chapter)}
    out = [f"# {chapter.title}", f"# {chapter.question}" if chapter.question else ""]
    if chapter.module:
        out.append(f"# The cells that are marked `export` are the module pevl.{chapter.module}.")
    for cell in chapter.cells:
        if cell.cell_type == "markdown":
            heads = [line for head, line in outline(cell.source) if head and not line.startswith("# ")]
            out += [f"\n\n# {line}" for line in heads]
        elif cell["id"] in counted:
            d, source = counted[cell["id"]]
            lines = (f"# {x}" if x.lstrip().startswith(("%", "!")) else x for x in source.splitlines())
            marks = [name for name in ("export", "gpu", "slow") if name in d]
            out.append("\n# %%" + "".join(f" {m}" for m in marks) + "\n" + "\n".join(lines))
    return re.sub(r"\n{4,}", "\n\n\n", "\n".join(x for x in out if x)) + "\n"


def printed(cell, most=2000):
    "What a cell printed or returned: text in a fence, and Markdown"
    texts, made = [], []
    for o in cell.outputs:
        data = o.get("data", {})
        text = o.get("text") or data.get("text/plain", "")
        if "text/markdown" in data:
            made.append(data["text/markdown"])
        elif not text.startswith(("<Figure", "<IPython")):
            texts.append(text)
    text = re.sub(r"\x1b\[[\d;]*m", "", "".join(texts)).rstrip()
    text = text if len(text) <= most else text[:most].rpartition("\n")[0] + "\n…"
    return [*([f"```text\n{text}\n```"] if text else []), *made]


def as_markdown(chapter):
    "A page as plain Markdown: prose, code and what the code printed; pictures as their captions"
    counted = {cell["id"]: (d, source) for cell, d, source in code_cells(chapter)}
    out = []
    for cell in chapter.cells:
        if cell.cell_type == "markdown":
            text = nbdev_myst.BADGE.sub("", pevl_reference.expand(cell.source))
            out.append(
                re.sub(r"\((/?)([\w./-]+)\.(?:ipynb|md)(#[\w-]+)?\)", twin_link(chapter.page), text).strip()
            )
        elif cell["id"] in counted:
            d, source = counted[cell["id"]]
            head = f"Exported to `pevl.{chapter.module}`:\n\n" if "export" in d else ""
            out.append(f"{head}```python\n{source}\n```")
            if caption := d.get("fig-cap"):
                out.append(f"Figure: {caption}")
            out += printed(cell)
    return "\n\n".join(x for x in out if x) + "\n"


def twin_link(page):
    up = "../" * page.count("/")
    return lambda m: f"({up if m[1] else ''}{m[2]}.html.md)"


def llms():
    "llms.txt: what there is, a line for each chapter"
    cfg, out = settings(), []
    out.append(f"# {cfg['title']}\n\n> {cfg['description']}\n")
    out.append(
        "Every chapter of the book is a notebook, and every notebook is a module of the package: nbs/model/05_p2v.ipynb exports\n"
        "pevl.model.p2v. Links are relative to this file. The Markdown has prose, code and printed output; the code alone, exported\n"
        "cells and tests in order, is in code/. Results on SimDive are simulated; numbers of the paper are marked as the paper's.\n"
    )
    for caption, listed in nbdev_myst.chapters().items():
        out.append(f"## {caption or 'Start here'}\n")
        for c in listed:
            line = f"- [{c.title}]({c.page}.html.md): {nbdev_myst.plain(c.question)}"
            if c.module:
                names = ", ".join(e.name for e in pevl_reference.entries(c.module))
                line += f" Module pevl.{c.module}: {names}."
            if nbdev_myst.source_of(c.page).suffix == ".ipynb":
                line += f" [Code](code/{c.page}.py)"
            out.append(line)
        out.append("")
    out.append(f"## Optional\n\n- [The repository]({cfg['git_url']}): sources, tests, issues\n")
    return "\n".join(out)


def write_for_programs(html):
    "llms.txt and the twins of all pages"
    for chapter in (c for listed in nbdev_myst.chapters().values() for c in listed):
        made = {f"{chapter.page}.html.md": as_markdown(chapter)}
        if nbdev_myst.source_of(chapter.page).suffix == ".ipynb":
            made[f"code/{chapter.page}.py"] = as_code(chapter)
        for name, text in made.items():
            path = html / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    (html / "llms.txt").write_text(llms(), encoding="utf-8")


def main(argv):
    if argv not in ([], ["--partial"]):
        sys.exit(__doc__)
    nbs = Path(ROOT, settings()["nbs_path"])
    toc = nbdev_myst.read_toc()
    missing = [name for name in pages(toc) if nbdev_myst.source_of(name) is None]
    if missing and not argv:
        sys.exit(f"_toc.yml names chapters that do not exist: {', '.join(missing)}")
    for part in toc["parts"]:
        part["chapters"] = [chapter for chapter in part["chapters"] if chapter["file"] not in missing]
    toc["parts"] = [part for part in toc["parts"] if part["chapters"]]

    shutil.rmtree(BUILD, ignore_errors=True)  # a second build must repeat the warnings of the first
    BUILD.mkdir(parents=True)
    (BUILD / "_config.yml").write_text(yaml.safe_dump(config(nbs), sort_keys=False), encoding="utf-8")
    (BUILD / "_toc.yml").write_text(yaml.safe_dump(toc, sort_keys=False), encoding="utf-8")
    code = "from jupyter_book.cli.main import main; main()"
    args = [
        "build",
        nbs,
        "--path-output",
        BUILD.parent,
        "--config",
        BUILD / "_config.yml",
        "--toc",
        BUILD / "_toc.yml",
        "--keep-going",
        "-q",
    ]
    args += [] if argv else ["-W"]
    built = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], cwd=ROOT, capture_output=True, text=True
    )
    if built.returncode or argv:
        print(built.stdout, built.stderr, sep="\n")
    if built.returncode:
        sys.exit("the book did not build without warnings")
    write_for_programs(HTML)
    print(f"the book: {os.path.relpath(HTML / 'index.html', ROOT)}, {len(pages(toc))} pages")


if __name__ == "__main__":
    main(sys.argv[1:])
