"""The built book (make book): every chapter came out, and it can be read without a network."""

import re
from functools import lru_cache
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag

import nbformat
import pytest
import yaml

import book
from settings import ROOT, settings

NBS = ROOT / settings()["nbs_path"]
CHAPTERS = book.pages(yaml.safe_load((NBS / "_toc.yml").read_text(encoding="utf-8")))
pytestmark = pytest.mark.skipif(not book.HTML.exists(), reason="no book: make book")
PAGES = sorted(p for p in book.HTML.rglob("*.html") if "_static" not in p.parts)
REMOTE = ("http:", "https:", "//")


class Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.path, self.source = path, path.read_text(encoding="utf-8")
        self.ids, self.links, self.loads, self.images, self.inline, self.words = set(), [], [], [], "", 0
        self.within = []
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a.get("id"), a.get("name")}
        if tag in ("script", "style"):
            self.within.append(tag)
        if tag == "a" and a.get("href"):
            self.links.append(a["href"])
        elif tag == "link" and set(a.get("rel", "").split()) & {
            "stylesheet",
            "preload",
            "icon",
            "modulepreload",
        }:
            self.loads.append(a["href"])
        elif tag in ("script", "img", "iframe", "video", "audio", "source", "embed", "object"):
            self.loads += [a[k] for k in ("src", "data") if a.get(k)]
        if tag == "img":
            self.images.append(a.get("src", ""))
        self.inline += a.get("style") or ""

    def handle_endtag(self, tag):
        if self.within and self.within[-1] == tag:
            self.within.pop()

    def handle_data(self, data):
        if self.within:
            self.inline += data if self.within[-1] == "style" else ""
        else:
            self.words += len(data.split())


@lru_cache(maxsize=None)
def page(path):
    return Page(path)


def html(chapter):
    return book.HTML / f"{chapter}.html"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter_came_out(chapter):
    p, nb = page(html(chapter)), nbformat.read(NBS / f"{chapter}.ipynb", 4)
    prose = sum(len(c.source.split()) for c in nb.cells if c.cell_type == "markdown")
    assert p.words > prose * 0.6, "the page holds less than its notebook says"
    stored = sum(
        1
        for c in nb.cells
        for o in c.get("outputs", [])
        if any(k.startswith("image/") for k in o.get("data", {}))
    )
    shown = sum("_images/" in src or src.startswith("data:image/") for src in p.images)
    assert shown >= stored, f"{stored} pictures in the notebook, {shown} on the page"
    title = next(
        m[1] for c in nb.cells if c.cell_type == "markdown" and (m := re.search(r"^# (.+)", c.source, re.M))
    )
    assert title.replace("`", "").split()[0] in re.sub(
        r"<[^>]+>", "", re.search(r"<h1>(.*?)</h1>", p.source, re.S)[1]
    )


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.relative_to(book.HTML).with_suffix("").as_posix())
def test_page_needs_no_network(path):
    p = page(path)
    assert not [u for u in p.loads if u.startswith(REMOTE)]
    assert not re.findall(r"url\(\s*['\"]?(?:https?:)?//[^)]*\)|@import\s+['\"]?(?:https?:)?//\S+", p.inline)
    for u in p.loads + p.links:
        if u.startswith((*REMOTE, "mailto:", "data:", "javascript:")):
            continue
        file, anchor = urldefrag(u)
        target = (path.parent / unquote(file.split("?")[0])).resolve() if file else path
        assert target.is_file(), f"{u} leads nowhere"
        if anchor and target.suffix == ".html":
            assert unquote(anchor) in page(target).ids, f"{u}: no such place on that page"


def test_style_sheets_need_no_network():
    for css in book.HTML.rglob("*.css"):
        found = re.findall(
            r"(?:url\(|@import)\s*['\"]?(?:https?:)?//[^)'\"]*", css.read_text(encoding="utf-8")
        )
        assert not found, f"{css.name}: {found[:3]}"


def test_formulas_need_no_network():
    with_math = [html(c) for c in CHAPTERS if 'class="math' in page(html(c)).source]
    assert with_math, "no page has a formula"
    for path in with_math:
        scripts = [u for u in page(path).loads if "mathjax" in u]
        assert scripts and all((path.parent / u.split("?")[0]).resolve().is_file() for u in scripts)
    assert list((book.HTML / "_static" / "mathjax" / "output").rglob("*.woff")), (
        "MathJax came without its fonts"
    )


def test_names_are_linked():
    "Backticked names of the package lead to the cell that defines them"
    marks = [c for c in CHAPTERS if 'class="pevl-export' in page(html(c)).source]
    modules = [c for c in CHAPTERS if c != "index" and not c.startswith("recipes/")]  # these export nothing
    assert marks == modules, "chapters without a visible exported cell"
    assert any(
        re.search(r'<a class="reference internal" href="[^"]*#api-', page(html(c)).source) for c in CHAPTERS
    )


def test_hidden_cells_are_hidden():
    for c in CHAPTERS:
        assert "pip install -q" not in re.sub(r"<[^>]+>", "", page(html(c)).source), c


def test_address_of_the_repository():
    assert settings()["git_url"] in page(html("index")).source
