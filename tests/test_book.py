"""The built book (make book): every chapter came out, it can be read without a network, on a phone and in the dark."""

import ast
import os
import re
import subprocess
import sys
import threading
from functools import lru_cache
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

import book
from book import nbdev_myst, pevl_reference
from settings import ROOT, settings

NBS = ROOT / settings()["nbs_path"]
ALL = [c for listed in nbdev_myst.chapters().values() for c in listed]
CHAPTERS = [c.page for c in ALL]
NOTEBOOKS = [c for c in ALL if nbdev_myst.source_of(c.page).suffix == ".ipynb"]
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
            self.images.append(a)
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


def words(text):
    return re.sub(r"<[^>]+>", "", text)


@pytest.mark.parametrize("chapter", ALL, ids=lambda c: c.page)
def test_chapter_came_out(chapter):
    p = page(html(chapter.page))
    prose = sum(len(c.source.split()) for c in chapter.cells if c.cell_type == "markdown")
    assert p.words > prose * 0.6, "the page holds less than its source says"
    stored = sum(
        1
        for c in chapter.cells
        for o in c.get("outputs", [])
        if any(k.startswith("image/") for k in o.get("data", {}))
    )
    shown = sum("_images/" in a["src"] or a["src"].startswith("data:image/") for a in p.images)
    assert shown >= stored, f"{stored} pictures in the notebook, {shown} on the page"
    assert chapter.title.replace("`", "").split()[0] in words(re.search(r"<h1>(.*?)</h1>", p.source, re.S)[1])
    assert len(re.findall("<h1>", p.source[p.source.index("<article") :])) == 1


def test_titles_differ():
    titles = [c.title for c in ALL]
    # a chapter and the recipe of the same data may share a name; the navigation shows them in different parts
    double = {t for t in titles if titles.count(t) > 1}
    assert double <= {"PeVL", "SimDive"}, double


@pytest.mark.parametrize("chapter", ALL, ids=lambda c: c.page)
def test_pictures_are_described(chapter):
    for a in page(html(chapter.page)).images:
        if "colab-badge" in a["src"] or "logo" in a.get("class", ""):
            continue
        alt = a.get("alt") or ""
        assert len(alt.split()) >= 2 and "_images/" not in alt, f"{a['src'][:80]}: alt {alt!r}"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.relative_to(book.HTML).as_posix())
def test_page_is_small(path):
    "A page with all its pictures stays below 3 MB; scripts and fonts are shared by all pages"
    files = {
        (path.parent / unquote(a["src"])).resolve()
        for a in page(path).images
        if not a["src"].startswith("data:")
    }
    assert path.stat().st_size + sum(f.stat().st_size for f in files) < 3e6


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
    assert marks == [c.page for c in ALL if c.module], "chapters without a visible exported cell"
    assert any(
        re.search(r'<a class="reference internal" href="[^"]*#api-', page(html(c)).source) for c in CHAPTERS
    )


def test_hidden_cells_are_hidden():
    for c in CHAPTERS:
        assert "pip install -q" not in re.sub(r"<[^>]+>", "", page(html(c)).source), c


def test_address_of_the_repository():
    assert settings()["git_url"] in page(html("index")).source


# --- the pages that are made ---


def test_every_open_place_is_collected():
    "The boxes of all notebooks stand on one page, each with a link to its place, which leads back to nothing else"
    counted = sum(
        len(re.findall(r"^:{3,}\{admonition\} The paper", cell["source"], re.M))
        for c in ALL
        for cell in c.cells
        if cell["cell_type"] == "markdown"
    )
    p = page(html("reference/02_paper"))
    boxes = [box for _, _, box in pevl_reference.all_callouts()]
    assert len(boxes) == counted > 40
    found = {urldefrag(u)[1] for u in p.links}
    for box in boxes:
        assert box.label in found and f"all-{box.label}" in found, box
    assert len(re.findall(r'<div class="[^"]*admonition', p.source)) == counted
    assert {e for n in range(1, 8) if (e := f"Eq. {n}") not in p.source} == set()


def test_numbers_beside_the_papers_were_computed():
    "Every number in our column of the paper page stands in the output of a notebook"
    text = (NBS / "reference" / "02_paper.md").read_text(encoding="utf-8")
    table = text[text.index("## What could be counted") : text.index("The accuracies of Tables")]
    rows = [row.split("|")[1:-1] for row in table.splitlines() if row.startswith("| ")][1:]
    printed = "".join(
        o.get("text") or o.get("data", {}).get("text/plain", "")
        for c in ALL
        if c.page in ("train/07_cost", "model/09_variants")
        for cell in c.cells
        for o in cell.get("outputs", [])
    )
    numbers = [n for row in rows for n in re.findall(r"\d+\.\d+", row[2] + row[3])]
    assert len(numbers) >= 10
    assert not [n for n in numbers if not re.search(rf"(?<![\d.]){re.escape(n)}(?![\d])", printed)]


def test_symbols_are_the_chapters():
    "What the table calls code stands in the code of that chapter, and every symbol of the paper's equations is there"
    chapters = {c.page: c for c in ALL}
    for s in (s for group in pevl_reference.table()["group"] for s in group["symbol"]):
        source = "\n".join(c.source for c in chapters[s["page"]].cells if c.cell_type == "code")
        for name in s["code"]:
            assert re.search(rf"\b{re.escape(name)}\b", source), f"{name}: not in {s['page']}"
    for w in pevl_reference.table()["word"]:
        source = "\n".join(c.source for c in chapters[w["page"]].cells).lower()
        assert w["word"].split(",")[0].lower() in source, f"{w['word']}: not in {w['page']}"
    listed = page(html("reference/01_symbols")).source
    assert all(f"Eq. {n}" in listed.replace("\u00a0", " ") for n in range(1, 8))
    assert len(set(re.findall(r'id="term-', listed))) == 1


def test_reference_has_every_name():
    "Chapter and reference lead to each other, name by name"
    for module, home in nbdev_myst.index()[0].items():
        p = page(html(f"reference/05_api_{module.split('.')[0]}"))
        places, back = ({(x or "").lower() for x in xs} for xs in (p.ids, (urldefrag(u)[1] for u in p.links)))
        code = ast.parse(
            (ROOT / settings()["lib_path"] / f"{module.replace('.', '/')}.py").read_text("utf-8")
        )
        names = next(
            ast.literal_eval(n.value)
            for n in code.body
            if isinstance(n, ast.Assign) and n.targets[0].id == "__all__"
        )
        for name in names:
            assert pevl_reference.anchor(module, name).lower() in places, f"{module}.{name}"
            assert nbdev_myst.label(module, name).lower() in back, f"{module}.{name}"
        forth = {urldefrag(u)[1] for u in page(html(home)).links}
        assert nbdev_myst.api_label(module) in forth


def test_a_name_that_the_chapter_binds_itself_is_no_link():
    cell = nbdev_myst.nbformat.v4.new_code_cell
    code = "from pevl.train.learner import train\ndef draw(rank, drop_path=0.1):\n    weights = rank\npevl.predict(1)"
    seen = nbdev_myst.words(nbdev_myst.nbformat.v4.new_notebook(cells=[cell(code), cell("%no python")]))

    def links(name):
        return nbdev_myst.link_names(f"so `{name}` is", "model.mask", seen) != f"so `{name}` is"

    assert all(
        map(
            links, ["train", "predict", "PeVL", "group_softmax", "pose_mask", "PeVL.encode_clip", "pevl.rank"]
        )
    )
    assert not any(map(links, ["rank", "drop_path", "weights", "draw", "evaluate", "ablate.csv", "train.lr"]))


def test_reference_reads_signatures():
    source = """
def f(
    x,  # (B, E) first
    # on a line of its own
    y: int = 3,
    *rest,
    z: str = "a",  # last
) -> float:  # the result
    "What it does"
    if y:
        raise ValueError(f"y {y}: expected 0")


def g(a, b):  # -> both
    "Both"
    return a, b
"""
    f, g = pevl_reference.read_cell(source)
    assert f.signature == "(x, y=3, *rest, z='a')" and f.doc == "What it does"
    assert [p.comment for p in f.parameters] == ["(B, E) first", "on a line of its own", "", "last"]
    assert (f.returns.type, f.returns.comment) == ("float", "the result")
    assert f.errors == ["ValueError: y …: expected 0"]
    assert g.returns.comment == "-> both" and [p.comment for p in g.parameters] == ["", ""]


# --- for programs ---


def test_llms_txt():
    text = (book.HTML / "llms.txt").read_text(encoding="utf-8")
    assert text.startswith(f"# {settings()['title']}\n\n> ")
    links = re.findall(r"\[[^\]]+\]\(([^)]+)\)", text)
    assert {f"{c.page}.html.md" for c in ALL} <= set(links)
    for link in links:
        assert link.startswith("http") or (book.HTML / link).is_file(), link
    for c in ALL:
        assert not c.module or f"Module pevl.{c.module}: " in text


@pytest.mark.parametrize("chapter", NOTEBOOKS, ids=lambda c: c.page)
def test_twins(chapter):
    code = (book.HTML / "code" / f"{chapter.page}.py").read_text(encoding="utf-8")
    ast.parse(code)
    text = (book.HTML / f"{chapter.page}.html.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {chapter.title}")
    for source in nbdev_myst.exported(chapter):
        assert source in code and source in text
    assert "google.colab" not in code and "#| " not in code
    links = page(html(chapter.page)).links
    assert any(u.endswith(f"code/{chapter.page}.py") for u in links) and any(
        u.endswith(".html.md") for u in links
    )


def test_code_of_a_chapter_runs(tmp_path):
    "The code alone is a program: it needs nothing that a notebook has and a script has not"
    path = (book.HTML / "code" / "loss" / "01_contrastive.py").resolve()
    ran = subprocess.run(
        [sys.executable, path],
        cwd=tmp_path,
        env=os.environ | {"MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
    )
    assert not ran.returncode, ran.stderr


@pytest.mark.parametrize("chapter", ALL, ids=lambda c: c.page)
def test_links_of_the_markdown(chapter):
    path = book.HTML / f"{chapter.page}.html.md"
    for u in re.findall(r"\]\(([^)\s]+\.html\.md)", path.read_text(encoding="utf-8")):
        assert (path.parent / u).is_file(), u


# --- in a browser ---

CHECK = re.sub(r"^//.*\n", "", (ROOT / "tests" / "book.js").read_text(encoding="utf-8"), flags=re.M)


NOT_ONE = {"unseen": "controls that cannot be seen", "raw": "tables that stayed text"}


@pytest.fixture(scope="module")
def site():
    "The book on a server of this process"

    class Quiet(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def __init__(self, *args):
            super().__init__(*args, directory=book.HTML)

        def log_message(self, *args): ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def phone(site):
    "A page of a browser, as wide as a phone"
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
    with playwright.sync_playwright() as p:
        path = next((x for x in ("/usr/bin/chromium", "/usr/bin/chromium-browser") if Path(x).exists()), None)
        try:
            browser = p.chromium.launch(
                executable_path=os.environ.get("CHROMIUM") or path, args=["--no-sandbox"]
            )
        except playwright.Error as e:
            pytest.skip(f"no browser: {str(e).splitlines()[0]}")
        yield browser.new_page(viewport={"width": 390, "height": 844})
        browser.close()


def test_pages_in_a_browser(phone, site):
    "All pages in one browser: phone width, no word too faint in light and dark, nothing loaded from elsewhere, no error"
    said, faults = [], []
    phone.on("console", lambda m: said.append(m.text) if m.type == "error" else None)
    phone.on("pageerror", lambda e: said.append(str(e)))
    phone.on(
        "request",
        lambda r: None if r.url.startswith((site, "data:", "blob:")) else said.append(f"asks {r.url}"),
    )
    for path in PAGES:
        name = path.relative_to(book.HTML).as_posix()
        said.clear()
        phone.goto(f"{site}/{name}", wait_until="load")
        found = phone.evaluate(CHECK)
        faults += [f"{name}: {x}" for x in said]
        if found["wide"] > 390:
            faults.append(f"{name}: {found['wide']} pixels wide on a phone of 390")
        faults += [f"{name}: {found[k]} {what}" for k, what in NOT_ONE.items() if found[k]]
        faults += [f"{name}: contrast {ratio}: {what}" for what, ratio in found["faint"].items()]
    assert not faults, f"{len(faults)} faults\n" + "\n".join(faults)


@pytest.mark.parametrize(
    "word, page", [("mask", "model/04_mask"), ("masked_softmax", "model/05_p2v"), ("UCMR", "model/07_pevl")]
)
def test_search_finds(phone, site, word, page):
    phone.goto(f"{site}/search.html?q={word}")
    phone.wait_for_selector("#search-results li", timeout=20_000)
    phone.wait_for_function(
        "!document.querySelector('#search-progress, #search-results .search-summary')?.textContent.includes('Preparing')"
    )
    phone.wait_for_function(
        f"[...document.querySelectorAll('#search-results a')].some(a => a.getAttribute('href').includes('{page}'))"
    )


def test_filter_of_a_table(phone, site):
    phone.goto(f"{site}/reference/02_paper.html")
    box = phone.locator("div.pevl-filter").first
    rows = box.locator("tbody tr:visible")
    before = rows.count()
    box.locator("input").fill("inconsistent")
    assert 0 < rows.count() < before
