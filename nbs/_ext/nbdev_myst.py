"""Read an nbdev notebook for Jupyter Book (MyST-NB's `nb_custom_formats`).

- `#| hide` cells go; `#| echo`, `#| output`, `#| code-fold` and figure captions become MyST-NB's tags.
- An exported cell gets a line that names its module and carries a link target for every public name it defines.
- `backticked` names of the package link to the cell that defines them, module names to their chapter.
"""

import ast
import re
from functools import lru_cache
from pathlib import Path

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


def split_directives(source):
    "The leading `#|` lines as a dict, and the rest of the source"
    lines, found = source.splitlines(), {}
    while lines and (m := DIRECTIVE.match(lines[0])):
        found[m[1]] = m[2]
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
            names += [t.id for t in targets if isinstance(t, ast.Name)]
    return [n for n in names if not n.startswith("_")]


def label(module, name):
    "The link target of a name; docutils folds case, so `Video` and `video` need different ones"
    return f"api-{module}-{name}".replace(".", "-").replace("_", "-") + ("-c" if name[:1].isupper() else "")


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


@lru_cache(maxsize=1)
def index():
    "({module: page}, {name: [module, ...]}) of all chapters in the table of contents"
    toc = yaml.safe_load((NBS / "_toc.yml").read_text(encoding="utf-8"))
    pages, names = {}, {}
    for page in (chapter["file"] for part in toc["parts"] for chapter in part["chapters"]):
        path = NBS / f"{page}.ipynb"
        if not path.exists():
            continue
        nb = nbformat.read(path, 4)
        module = module_of(nb)
        if module is None:
            continue
        pages[module] = page
        for cell in nb.cells:
            d, source = split_directives(cell.source)
            if cell.cell_type == "code" and d.keys() & EXPORTED:
                for name in defined_names(source):
                    if module not in names.setdefault(name, []):
                        names[name].append(module)
    return pages, names


def resolve(name, own):
    "The target of a backticked name seen in the chapter of module `own`: (kind, target), or None"
    pages, names = index()
    name = name.removeprefix("pevl.")
    if name in pages:
        return "page", f"/{pages[name]}.ipynb"
    module, _, rest = name.rpartition(".")
    full = next((m for m in pages if module and (m == module or m.endswith("." + module))), None)
    if full and full in names.get(rest, []):
        return "name", label(full, rest)
    first = name.split(".")[0]  # a method links to its class
    homes = names.get(first, [])
    home = own if own in homes else homes[0] if len(homes) == 1 else None
    return ("name", label(home, first)) if home else None


def link_names(text, own):
    "Link backticked names outside code fences"

    def link(m):
        found = resolve(m[1], own)
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
        f"{targets}:::{{div}} pevl-export\nexported to <code>pevl.{module}</code>\n:::"
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


def read_notebook(text):
    nb, cells, marked = nbformat.reads(text, as_version=4), [], set()
    own = module_of(nb)
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = link_names(cell.source, own)
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
        if d.get("fig-alt"):
            cell.metadata.setdefault("mystnb", {})["image"] = {"alt": d["fig-alt"].strip("\"'")}
        cells.append(cell)
    nb.cells = cells
    return nb


def setup(app):
    return {"parallel_read_safe": True}
