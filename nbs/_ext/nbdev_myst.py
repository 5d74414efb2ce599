"""Read an nbdev notebook for Jupyter Book (MyST-NB's `nb_custom_formats`).

- `#| hide` cells go; `#| echo`, `#| output`, `#| code-fold` and figure captions become MyST-NB's tags.
- An exported cell gets a line that names its module and carries a link target for every public name it defines.
- `backticked` names of the package link to the cell that defines them, module names to their chapter.
- "The paper is silent / inconsistent" boxes get a link target, pictures a text for those who cannot see them, and the line with the
  Colab badge links to the chapter as plain code and as Markdown (written by tools/book.py).

What is read here once, pevl_reference.py and tools/book.py use too.
"""

import ast
import contextlib
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import nbformat
import yaml

NBS = Path(__file__).resolve().parents[1]
DIRECTIVE = re.compile(r"^\s*#\s*\|\s*([\w-]+)\s*:?\s*(.*?)\s*$")
HIDDEN = {"hide", "default_exp", "default_cls_lvl"}
EXPORTED = {"export", "exports"}
NOT_RUN = {"gpu": "needs a GPU; its output is stored", "slow": "takes long; its output is stored"}
REMOTE_STYLE = re.compile(
    r'<link rel="stylesheet"\s+href="https?://[^>]*>'
)  # to_jshtml's icons; the theme has its own
FENCE = re.compile(r"\s*(`{3,}|~{3,})")
NAME = re.compile(r"(?<![`\[\w{}])`([A-Za-z_][\w.]*)(\(\))?`(?![`\]])")
HEADING = re.compile(r"(#{1,6})\s+(.+?)\s*$")
CALLOUT = re.compile(
    r"^(?P<fence>:{3,})\{admonition\}[ \t]+(?P<title>The paper\b[^\n]*)\n(?:[ \t]*:[\w-]+:[^\n]*\n)*(?P<text>.*?)^(?P=fence)[ \t]*$",
    re.M | re.S,
)
BADGE = re.compile(r"^\[!\[.*colab-badge\.svg\)\]\(\S+\)\s*$", re.M)


def split_directives(source):
    "The leading `#|` lines as a dict, and the rest of the source"
    lines, found = source.splitlines(), {}
    while lines and (m := DIRECTIVE.match(lines[0])):
        found[m[1]] = re.sub(r"^([\"'])(.*)\1$", r"\2", m[2])  # YAML's quotes
        lines.pop(0)
    return found, "\n".join(lines).strip("\n")


def defined_names(source):
    "Public names that the top level of a cell defines; methods of an exported class as `Class.method`"
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a magic; nbdev would not export it either
        return []
    names = []
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [
                t.id
                for target in targets
                for t in getattr(target, "elts", [target])
                if isinstance(t, ast.Name)
            ]
    return [n for n in names if not n.startswith("_")]


def label(module, name):
    "The link target of a name; docutils folds case, so `Video` and `video` need different ones"
    return f"api-{module}-{name}".replace(".", "-").replace("_", "-") + ("-c" if name[:1].isupper() else "")


def api_label(module):
    "The link target of a module in the API reference"
    return "mod-" + slug(module)


def module_of(nb):
    "What `#| default_exp` says, or None"
    return next(
        (
            d["default_exp"]
            for c in nb.cells
            if c.cell_type == "code" and (d := split_directives(c.source)[0]).get("default_exp")
        ),
        None,
    )


class Chapter(NamedTuple):
    "A page of the book as its source has it"

    page: str  # "model/05_p2v"; the file's name without its ending
    title: str
    question: str  # the quoted line under the title; "" if there is none
    module: str  # "model.p2v"; None for a page that exports nothing
    cells: list  # of the notebook; a page in Markdown has one


class Callout(NamedTuple):
    "A box that says what the paper leaves open"

    label: str  # link target
    title: str  # The paper is silent, The paper is inconsistent
    section: str  # the heading that it stands under
    text: str


def read_chapter(page):
    "The notebook or Markdown file of a page"
    path = source_of(page)
    if path.suffix == ".ipynb":
        nb = nbformat.read(path, 4)
    else:
        text = path.read_text(encoding="utf-8")
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    prose = "\n".join(c.source for c in nb.cells if c.cell_type == "markdown")
    title = re.search(r"^# (.+)", prose, re.M)
    quoted = re.search(r"^# .+\n\s*((?:> ?.*\n?)+)", prose, re.M)
    question = " ".join(line.lstrip("> ") for line in quoted[1].splitlines()) if quoted else ""
    return Chapter(page, title[1] if title else page, question, module_of(nb), nb.cells)


def source_of(page):
    "The file of a page: a notebook or Markdown; None if it is not there"
    return next((p for kind in (".ipynb", ".md") if (p := NBS / f"{page}{kind}").exists()), None)


def read_toc():
    "_toc.yml; below a page NAME stand those of NAME_data.md, NAME_model.md ... that exist, one for each part of the book"
    toc = yaml.safe_load((NBS / "_toc.yml").read_text(encoding="utf-8"))
    for chapter in (c for part in toc["parts"] for c in part["chapters"]):
        below = [f"{chapter['file']}_{part['caption'].lower()}" for part in toc["parts"]]
        if found := [{"file": page} for page in below if source_of(page)]:
            chapter["sections"] = found
    return toc


def pages(toc):
    "{caption: names of its pages}, in reading order; the root comes first, without a caption"
    listed = {"": [toc["root"]]}
    for part in toc["parts"]:
        listed[part["caption"]] = [
            page["file"] for c in part["chapters"] for page in [c, *c.get("sections", [])]
        ]
    return listed


@lru_cache(maxsize=1)
def chapters():
    "All pages of the table of contents that are there, part by part: {caption: [Chapter, ...]}"
    return {
        caption: [read_chapter(p) for p in listed if source_of(p)]
        for caption, listed in pages(read_toc()).items()
    }


@lru_cache(maxsize=1)
def index():
    "({module: page}, {name: [module, ...]}) of all chapters in the table of contents"
    homes, names = {}, {}
    for chapter in (c for part in chapters().values() for c in part if c.module):
        homes[chapter.module] = chapter.page
        for source in exported(chapter):
            for name in defined_names(source):
                if chapter.module not in names.setdefault(name, []):
                    names[name].append(chapter.module)
    return homes, names


def exported(chapter):
    "The sources of the exported cells, without their directives"
    for cell in chapter.cells:
        d, source = split_directives(cell.source)
        if cell.cell_type == "code" and d.keys() & EXPORTED:
            yield source


def slug(page):
    return re.sub(r"[^a-z0-9]+", "-", page.lower()).strip("-")


def callouts(chapter):
    "The boxes that say what the paper leaves open, in order"
    found, section = [], chapter.title
    for cell in chapter.cells:
        if cell.cell_type != "markdown":
            continue
        boxes = {m.start(): m for m in CALLOUT.finditer(cell.source)}
        at = 0
        for line in cell.source.splitlines(keepends=True):
            if m := HEADING.match(line):
                section = m[2]
            if m := boxes.get(at):
                label = f"paper-{slug(chapter.page)}-{len(found) + 1}"
                found.append(Callout(label, m["title"].strip(), section, m["text"].strip()))
            at += len(line)
    return found


def words(nb):
    "(names that a notebook takes from the package, names that it binds itself: variables, parameters, keywords)"
    taken, bound = set(), set()
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        with contextlib.suppress(SyntaxError):
            for node in ast.walk(ast.parse(split_directives(cell.source)[1])):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pevl"):
                    taken |= {a.asname or a.name for a in node.names}
                elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "pevl":
                    taken.add(node.attr)
                elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                    bound.add(node.name)
                elif isinstance(node, ast.arg | ast.keyword):
                    bound.add(node.arg)
                elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    bound.add(node.id)
    return taken, bound


def resolve(name, own, seen=None):
    """The target of a backticked name in the chapter of module `own`: (kind, target), or None

    `seen` is what `words` says of the notebook. A name that the notebook binds itself means that, and a plain word
    means a function of the package only where the notebook takes it from there.
    """
    pages, names = index()
    seen = None if name.startswith("pevl.") else seen
    name = name.removeprefix("pevl.")
    if name in pages:
        return "page", f"/{pages[name]}.ipynb"
    module, _, rest = name.rpartition(".")
    full = next((m for m in pages if module and (m == module or m.endswith("." + module))), None)
    if full and full in names.get(rest, []):
        return "name", label(full, rest)
    first, _, rest = name.partition(".")  # a method links to its class
    if rest and not first[0].isupper():
        return None
    homes = names.get(first, [])
    home = own if own in homes else homes[0] if len(homes) == 1 else None
    if seen and home != own and first not in seen[0] and (first in seen[1] or re.fullmatch("[a-z]+", first)):
        return None
    return ("name", label(home, first)) if home else None


def link_names(text, own, seen=None):
    "Link backticked names outside code fences"

    def link(m):
        found = resolve(m[1], own, seen)
        if found is None:
            return m[0]
        kind, target = found
        return f"[{m[0]}]({target if kind == 'page' else '#' + target})"

    out, fence = [], None
    for line in text.splitlines():
        m = FENCE.match(line)
        if m and fence is None:
            # `:::` and ```{note} hold prose; only plain code fences are left alone
            fence = (
                None
                if re.match(r"\s*`{3,}\{(?!code|bibliography|math|figure|image|toctree|mermaid)", line)
                else m[1]
            )
        elif m and fence is not None and m[1].startswith(fence[:3]):
            fence = None
        elif fence is None and not line.lstrip().startswith(("#", ":")):
            line = NAME.sub(link, line)
        out.append(line)
    return "\n".join(out)


def export_mark(module, names):
    "The line above an exported cell, with the link targets of the names that the cell defines"
    targets = "".join(f"({label(module, name)})=\n" for name in names)
    return nbformat.v4.new_markdown_cell(
        f"{targets}:::{{div}} pevl-export\nexported to [<code>pevl.{module}</code>](#{api_label(module)})\n:::"
    )


def tags(d):
    if d.get("echo") == "false":
        yield "remove-input"
    if d.get("code-fold") == "true":
        yield "hide-input"
    if d.get("output") == "false" or d.get("include") == "false":
        yield "remove-output"
    if d.get("include") == "false":
        yield "remove-input"
    if d.keys() & NOT_RUN.keys() or d.get("eval") == "false":
        yield "skip-execution"


def mark_callouts(text, page, number):
    "The text with a link target above each box, and the number of boxes so far"

    def mark(m):
        nonlocal number
        number += 1
        return f"\n(paper-{slug(page)}-{number})=\n{m[0]}"

    return CALLOUT.sub(mark, text), number


def twins(page):
    "The line with the Colab badge also leads to the chapter as plain code and as Markdown"
    up = "../" * page.count("/")
    name = page.rpartition("/")[2]
    return (
        f'\\g<0> <span class="pevl-twins"><a href="{up}code/{page}.py">code only</a> · '
        f'<a href="{name}.html.md">Markdown</a></span>'
    )


def plain(text):
    "Markdown as plain words"
    text = re.sub(r"\{[\w:]+\}`[^`]*`|`{3,}.*|:{3,}.*|^[#>|-]+ ?", "", text, flags=re.M)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return " ".join(re.sub(r"[`*_$]", "", text).split())


def described(d, section, prose):
    "What a picture shows, for those who cannot see it: its caption, or the words that lead to it"
    said = d.get("fig-alt") or d.get("fig-cap")
    said = plain(said) if said else f"Figure in the section {plain(section)}. {plain(prose)}"
    return said if len(said) <= 300 else said[:300].rpartition(" ")[0] + " …"


def page_of(nb, module):
    "The page that a notebook is, by the module that it exports or by its title"
    for chapter in (c for part in chapters().values() for c in part):
        if (chapter.module or chapter.cells[0].source) == (module or nb.cells[0].source):
            return chapter.page


def read_notebook(text):
    nb, cells, marked = nbformat.reads(text, as_version=4), [], set()
    own, seen = module_of(nb), words(nb)
    page, boxes, section, prose = page_of(nb, own), 0, "", ""
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            section = next(
                (m[2] for x in reversed(cell.source.splitlines()) if (m := HEADING.match(x))), section
            )
            prose = re.split(r"\n\s*\n", cell.source.strip())[-1]
            if page:
                cell.source, boxes = mark_callouts(cell.source, page, boxes)
                cell.source = BADGE.sub(twins(page), cell.source)
            cell.source = link_names(cell.source, own, seen)
        if cell.cell_type != "code":
            cells.append(cell)
            continue
        d, cell.source = split_directives(cell.source)
        if d.keys() & HIDDEN or (not cell.source and not cell.outputs):
            continue
        for output in cell.outputs:
            if "text/html" in output.get("data", {}):
                output["data"]["text/html"] = REMOTE_STYLE.sub("", output["data"]["text/html"])
        cell.metadata["tags"] = [*cell.metadata.get("tags", []), *tags(d)]
        if own and d.keys() & EXPORTED:
            names = [n for n in dict.fromkeys(defined_names(cell.source)) if n not in marked]
            marked.update(names)
            cell.metadata["tags"].append("pevl-export")
            cells.append(export_mark(own, names))
        for flag in d.keys() & NOT_RUN.keys():
            cells.append(
                nbformat.v4.new_markdown_cell(f":::{{div}} pevl-flag\nthis cell {NOT_RUN[flag]}\n:::")
            )
        if "label" in d or "fig-cap" in d:
            figure = {"name": d.get("label"), "caption": d.get("fig-cap")}
            cell.metadata["mystnb"] = {"figure": {k: v for k, v in figure.items() if v}}
        if any(kind.startswith("image/") for o in cell.outputs for kind in o.get("data", {})):
            alt = described(d, section, prose)
            cell.metadata.setdefault("mystnb", {})["image"] = {"alt": alt}
        cells.append(cell)
    nb.cells = cells
    return nb


def without_thebe(app, page, template, context, doctree):
    "Leave out the scripts for live cells, which come from another host and are declared twice"
    scripts = context.get("script_files", [])
    context["script_files"] = [
        f for f in scripts if "thebe" not in f"{f} {getattr(f, 'attributes', {}).get('body', '')}".lower()
    ]


def setup(app):
    app.connect("html-page-context", without_thebe, priority=900)
    return {"parallel_read_safe": True}
