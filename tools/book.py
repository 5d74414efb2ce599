"""Build the book: python tools/book.py [--partial]

Warnings are errors. The repository's address comes from settings.ini and is written into a copy of _config.yml under _build/.
--partial leaves out chapters that do not exist yet and only shows warnings (for authors; `make book` never does).
"""

import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from settings import ROOT, settings

BUILD = Path(ROOT, "_build")
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
    return [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]


def main(argv):
    if argv not in ([], ["--partial"]):
        sys.exit(__doc__)
    nbs = Path(ROOT, settings()["nbs_path"])
    toc = yaml.safe_load((nbs / "_toc.yml").read_text(encoding="utf-8"))
    missing = [name for name in pages(toc) if not (nbs / f"{name}.ipynb").exists()]
    if missing and not argv:
        sys.exit(f"_toc.yml names chapters that do not exist: {', '.join(missing)}")
    for part in toc["parts"]:
        part["chapters"] = [chapter for chapter in part["chapters"] if chapter["file"] not in missing]
    toc["parts"] = [part for part in toc["parts"] if part["chapters"]]

    shutil.rmtree(BUILD, ignore_errors=True)  # a second build must repeat the warnings of the first
    BUILD.mkdir()
    (BUILD / "_config.yml").write_text(yaml.safe_dump(config(nbs), sort_keys=False), encoding="utf-8")
    (BUILD / "_toc.yml").write_text(yaml.safe_dump(toc, sort_keys=False), encoding="utf-8")
    code = "from jupyter_book.cli.main import main; main()"
    args = [
        "build",
        nbs,
        "--path-output",
        ROOT,
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
    print(f"the book: {(HTML / 'index.html').relative_to(ROOT)}, {len(pages(toc))} pages")


if __name__ == "__main__":
    main(sys.argv[1:])
