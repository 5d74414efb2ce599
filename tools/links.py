"""Keep every mention of the repository's address equal to the one in settings.ini.

python tools/links.py --check    # one line for each address that differs; exit status 1 if there is one
python tools/links.py --write    # rewrite them
"""

import re
import sys
from pathlib import Path
from urllib.parse import urlparse

from settings import ROOT, notebooks, settings

FILES = "README.md", "CITATION.cff", "pevl/__init__.py"
LINK = re.compile(
    r"(?P<head>colab\.research\.google\.com/github/|raw\.githubusercontent\.com/|git\+https://github\.com/|github\.com/)"
    r"(?P<owner>[\w.-]+)/(?P<name>[\w-]+)"
    r"(?P<branch>/(?:blob|tree)/[\w.-]+)?"
    r"(?P<file>/nbs/[\w./-]+\.ipynb)?"
)
PAGES = re.compile(r"https://[\w-]+\.github\.io/[\w-]+")


def rewrite(text, cfg, notebook=None):
    "`text` with every address of this repository as `cfg` has it; a Colab badge in `notebook` opens that notebook"
    owner, name = urlparse(cfg["git_url"]).path.strip("/").split("/")

    def link(m):
        own_by_form = m["head"].startswith(("colab", "git+"))
        if not own_by_form and m["name"] not in (cfg["lib_name"], name):
            return m[0]  # another project
        branch = re.sub(r"[^/]+$", cfg["branch"], m["branch"]) if m["branch"] else ""
        file = f"/{notebook}" if notebook and m["file"] and m["head"].startswith("colab") else m["file"] or ""
        return f"{m['head']}{owner}/{name}{branch}{file}"

    text = LINK.sub(link, text)
    book = cfg["doc_host"] + cfg["doc_baseurl"]
    return PAGES.sub(lambda m: book if m[0].endswith((f"/{cfg['lib_name']}", f"/{name}")) else m[0], text)


def main(argv):
    if argv not in (["--check"], ["--write"]):
        sys.exit(__doc__)
    cfg, wrong = settings(), 0
    for path in [*(Path(ROOT, f) for f in FILES), *notebooks()]:
        where = path.relative_to(ROOT).as_posix()
        old = path.read_text(encoding="utf-8")
        new = rewrite(old, cfg, where if path.suffix == ".ipynb" else None)
        if new == old:
            continue
        if argv == ["--write"]:
            path.write_text(new, encoding="utf-8")
            print(
                f"rewrote {where} (make export afterwards)" if path.suffix == ".ipynb" else f"rewrote {where}"
            )
            continue
        for number, (a, b) in enumerate(zip(old.splitlines(), new.splitlines(), strict=True), 1):
            if a != b:
                wrong += 1
                print(f"{where}:{number}: address differs from settings.ini: {a.strip()[:160]}")
    if wrong:
        sys.exit("Repair with: python tools/links.py --write")


if __name__ == "__main__":
    main(sys.argv[1:])
