"""The pages of the book that are made while it is built, so that they cannot drift from the chapters.

A page in Markdown asks for them with an empty fence, which is replaced before the page is parsed:

    ```{pevl-symbols}      the symbols, and ```{pevl-words} the words, of nbs/reference/symbols.toml
    ```{pevl-callouts}     every box of the chapters that says what the paper leaves open
    ```{pevl-api} model    signatures, comments and errors of a part's exported cells; without a name, a list of all modules

Nothing is imported: signatures and comments are read from the cells.
"""

import ast
import io
import re
import tokenize
import tomllib
from functools import lru_cache
from typing import NamedTuple

from nbdev_myst import (
    NBS,
    api_label,
    callouts,
    chapters,
    defined_names,
    exported,
    label,
    link_names,
)

FENCE = re.compile(r"^```\{(pevl-[\w-]+)\}[ \t]*(.*)\n```[ \t]*$", re.M)
TABLE = NBS / "reference" / "symbols.toml"


# --- signatures, from the source ---


class Parameter(NamedTuple):
    "One parameter, or one field of a dataclass"

    name: str
    type: str  # "" if it is not annotated
    default: str  # "" if it has none
    comment: str


class Entry(NamedTuple):
    "One public name of a module"

    name: str
    kind: str  # function, class, method, property or constant
    signature: str  # (x, y=1)
    doc: str  # the docstring
    parameters: list
    returns: Parameter  # None if the source says nothing about it
    errors: list  # "ValueError: norm …: expected max, sum or none"
    members: list  # methods of a class


def comments(source):
    "Line number -> comment; and the numbers of the lines that hold nothing else"
    found, alone, lines = {}, set(), source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source + "\n").readline):
        if token.type == tokenize.COMMENT:
            line = token.start[0]
            found[line] = token.string.lstrip("# ").strip()
            if not lines[line - 1][: token.start[1]].strip():
                alone.add(line)
    return found, alone


def comment_of(node, said, alone, last=None):
    "The comment at the end of a parameter's last line, or on the lines of their own above it"
    line = last or node.end_lineno
    above, k = [], node.lineno - 1
    while k in alone:
        above.insert(0, said[k])
        k -= 1
    return " ".join([*above, *([said[line]] if line in said and line not in alone else [])])


def shown(node):
    return "" if node is None else ast.unparse(node)


def arguments(f):
    "(prefix, arg, default) of a function, in order"
    a = f.args
    plain = [*a.posonlyargs, *a.args]
    for arg, default in zip(plain, [None] * (len(plain) - len(a.defaults)) + a.defaults, strict=True):
        yield "", arg, default
    if a.vararg:
        yield "*", a.vararg, None
    for arg, default in zip(a.kwonlyargs, a.kw_defaults, strict=True):
        yield "", arg, default
    if a.kwarg:
        yield "**", a.kwarg, None


def signature(f, bound):
    "(x, y=1): names and defaults; types stand in the table"
    a, parts, star = f.args, [], bool(f.args.vararg)
    for prefix, arg, default in arguments(f):
        if bound and arg is [*a.posonlyargs, *a.args][0]:
            continue
        if arg in a.kwonlyargs and not star:
            parts.append("*")
            star = True
        parts.append(f"{prefix}{arg.arg}" + (f"={shown(default)}" if default is not None else ""))
        if a.posonlyargs and arg is a.posonlyargs[-1]:
            parts.append("/")
    return f"({', '.join(parts)})"


def message(node):
    "The first words of an error, with … for what is filled in"
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return message(node.left) + message(node.right)
    return "…" if node is not None else ""


def errors(f):
    "What the body itself raises: 'ValueError: …'"
    found = []
    for node in ast.walk(f):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            text = message(node.exc.args[0] if node.exc.args else None)
            text = re.sub(r"(?:… ?)+", "… ", " ".join(text.split())).replace("… :", "…:").strip()
            found.append(f"{shown(node.exc.func)}: {text}" if text.strip("… ") else shown(node.exc.func))
    return list(dict.fromkeys(found))


def read_function(f, said, alone, owner=False):
    static = any(shown(d) in ("staticmethod",) for d in f.decorator_list)
    bound = owner and not static
    params, listed = [], list(arguments(f))
    lines = [(d or arg).end_lineno for _, arg, d in listed]
    body = f.body[0].lineno
    for i, (prefix, arg, default) in enumerate(listed):
        if bound and i == 0:
            continue
        line = max(lines[i], arg.end_lineno)
        own = line == body or line in lines[i + 1 :] or line in range(1, f.lineno + 1)
        text = "" if own else comment_of(arg, said, alone, line)
        params.append(Parameter(prefix + arg.arg, shown(arg.annotation), shown(default), text))
    head = f.lineno if not lines else max(f.lineno, *lines)
    last = f.returns.end_lineno if f.returns else head
    text = next(
        (
            said[k]
            for k in range(last, body)
            if k in said and k not in alone and (k not in lines or k == f.lineno)
        ),
        "",
    )
    returns = Parameter("", shown(f.returns), "", text) if f.returns or text else None
    kind = "method" if owner else "function"
    if any(shown(d).split(".")[-1] in ("property", "cached_property") for d in f.decorator_list):
        kind = "property"
    doc = ast.get_docstring(f) or ""
    return Entry(f.name, kind, signature(f, bound), doc, params, returns, errors(f), [])


def read_class(c, said, alone):
    init = next((n for n in c.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init:
        made = read_function(init, said, alone, True)
        params, sig, raised = made.parameters, made.signature, made.errors
    else:
        fields = [n for n in c.body if isinstance(n, ast.AnnAssign) and not n.target.id.startswith("_")]
        params = [
            Parameter(n.target.id, shown(n.annotation), shown(n.value), comment_of(n, said, alone))
            for n in fields
        ]
        sig, raised = (
            "(" + ", ".join(p.name + (f"={p.default}" if p.default else "") for p in params) + ")",
            [],
        )
    methods = [n for n in c.body if isinstance(n, ast.FunctionDef)]
    members = [
        read_function(n, said, alone, True)
        for n in methods
        if not n.name.startswith("_") or (n.name == "__call__" and ast.get_docstring(n))
    ]
    post = [e for n in methods if n.name == "__post_init__" for e in errors(n)]
    doc = ast.get_docstring(c) or ""
    bases = ", ".join(map(shown, c.bases))
    return Entry(c.name, "class", sig, doc, params, Parameter("", bases, "", ""), raised + post, members)


def read_cell(source):
    "The public names of an exported cell"
    said, alone = comments(source)
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
            yield read_function(node, said, alone)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield read_class(node, said, alone)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for name in defined_names(shown(node)):
                value = shown(node.value)
                value = value if len(value) <= 90 else value[:88].rstrip() + " …"
                yield Entry(name, "constant", value, comment_of(node, said, alone), [], None, [], [])


@lru_cache(maxsize=None)
def entries(module):
    "The public names of a module, in the order of its chapter"
    chapter = next(c for part in chapters().values() for c in part if c.module == module)
    found = {}
    for source in exported(chapter):
        for entry in read_cell(source):
            found.setdefault(entry.name, entry)
    return list(found.values())


# --- Markdown ---


def escape(text):
    "Plain text as Markdown, its `code` left as it is"
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(
        p if p.startswith("`") and len(p) > 1 else re.sub(r"([\\`*_\[\]<>$|{}#~])", r"\\\1", p) for p in parts
    )


def code(text, cell=True):
    "A literal, by default one that may stand in a table"
    text = " ".join(text.split())
    text = text.replace("|", "\\|") if cell else text
    return f"`` {text} ``" if "`" in text else f"`{text}`" if text else ""


def row(*cells):
    return "| " + " | ".join(cells) + " |\n"


def parameter_table(params, returns):
    "Name, type, default and comment; without the columns, and the table, that the source says nothing about"
    rows = [
        [code(p.name), code(p.type), code(p.default), link_names(escape(p.comment), None)] for p in params
    ]
    if returns and (returns.type or returns.comment):
        rows.append(["*returns*", code(returns.type), "", link_names(escape(returns.comment), None)])
    kept = [i for i in range(4) if i == 0 or any(r[i] for r in rows)]
    if len(kept) == 1:
        return ""
    lines = [["name", "type", "default", "meaning"], ["---"] * 4, *rows]
    return "".join(row(*(line[i] for i in kept)) for line in lines) + "\n"


def anchor(module, name):
    return label(module, name).replace("api-", "ref-", 1)


def entry_text(entry, module, page, level=0):
    "One name as an object of Sphinx's Python domain"
    fence = ":" * (6 - level)
    kinds = {"constant": "data"}
    out = f"{fence}{{py:{kinds.get(entry.kind, entry.kind)}}} {entry.name}"
    out += entry.signature + "\n" if entry.kind not in ("constant", "property") else "\n"
    if entry.kind == "constant":
        out += (
            "\n" + code(entry.signature, False) + ("\\\n" + escape(entry.doc) if entry.doc else "") + "\n\n"
        )
    else:
        out += "\n" + link_names(escape(" ".join(entry.doc.split())), module) + "\n\n"
    if not level:
        said = out.rstrip() + " " if entry.doc or entry.kind == "constant" else out
        out = f"({anchor(module, entry.name)})=\n{said}[→ chapter](#{label(module, entry.name)})\n\n"
    if entry.kind == "class" and entry.returns.type:
        out += f"Base: {code(entry.returns.type)}\n\n"
    out += parameter_table(entry.parameters, None if entry.kind == "class" else entry.returns)
    if entry.errors:
        out += "Errors: " + "; ".join(escape(e[:120]) for e in entry.errors) + "\n\n"
    for member in entry.members:
        out += entry_text(member, module, page, level + 1)
    return out + fence + "\n\n"


def api(part):
    "The reference of one part"
    out = ""
    for caption, listed in chapters().items():
        for chapter in listed:
            if not chapter.module or part != chapter.module.split(".")[0]:
                continue
            out += f"({api_label(chapter.module)})=\n## `pevl.{chapter.module}`\n\n"
            out += f"[{caption}: {chapter.title}](/{chapter.page}.ipynb). {chapter.question}\n\n"
            out += f"```{{py:module}} pevl.{chapter.module}\n:no-typesetting:\n```\n\n"
            out += "".join(entry_text(e, chapter.module, chapter.page) for e in entries(chapter.module))
    return out


def api_index():
    "The modules with the names that they export"
    out = ":::{div} pevl-filter\n" + row("module", "names") + row("---", "---")
    for listed in chapters().values():
        for c in listed:
            if c.module:
                names = " · ".join(f"[`{e.name}`](#{anchor(c.module, e.name)})" for e in entries(c.module))
                out += row(f"[`pevl.{c.module}`](#{api_label(c.module)})", names)
    return out + ":::\n"


# --- what the paper leaves open ---


@lru_cache(maxsize=None)
def switches(module):
    "Every argument and field that could be a switch in the chapter of a module"
    known = {
        p.name for m in ("model.pevl", "train.recipe", module) if m for e in entries(m) for p in e.parameters
    }
    known |= {p.name for m in (module,) if m for e in entries(m) for x in e.members for p in x.parameters}
    return {name.lstrip("*") for name in known}


def named_switches(callout, module):
    "The arguments that a box names in `code`"
    found = []
    for span in re.findall(r"`([^`]+)`", callout.text):
        m = re.match(r"(?:--)?([A-Za-z_][\w.-]*?)(?:\s*=.*)?$", span)
        if m and m[1].split(".")[-1].replace("-", "_") in switches(module):
            found.append(m[1])
    return list(dict.fromkeys(found))


def moved(text, chapter):
    "A chapter's text as it reads on another page: its links start at the top of the book"
    folder = chapter.page.rpartition("/")[0]

    def link(m):
        target, _, place = m[2].partition("#")
        if not target or re.match(r"\w+:|/|#", m[2]):
            return m[0]
        parts = []
        for part in f"{folder}/{target}".split("/"):
            parts = parts[:-1] if part == ".." else [*parts, part]
        return f"[{m[1]}](/{'/'.join(parts)}{'#' + place if place else ''})"

    return link_names(re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)", link, text), chapter.module)


def all_callouts():
    "(part, chapter, callout), in reading order"
    return [(p, c, box) for p, listed in chapters().items() for c in listed for box in callouts(c)]


def callout_pages():
    "A table of all boxes, then the boxes themselves"
    listed = all_callouts()
    out = (
        ":::{div} pevl-filter\n"
        + row("chapter", "about", "the paper is", "arguments it names")
        + row(*["---"] * 4)
    )
    for _, chapter, box in listed:
        about = f"[{box.section.replace('|', '')}](#all-{box.label})"
        named = ", ".join(f"`{name}`" for name in named_switches(box, chapter.module))
        out += row(
            f"[{chapter.title}](/{chapter.page}.ipynb)", about, box.title.removeprefix("The paper "), named
        )
    out = out.replace("| is ", "| ") + ":::\n\n"
    part = page = None
    for caption, chapter, box in listed:
        if caption != part:
            out += f"## {caption}: the boxes\n\n"
        if chapter.page != page:
            out += f"### {chapter.title}\n\n"
        part, page = caption, chapter.page
        kind = "warning" if box.title.endswith(("silent", "inconsistent")) else "note"
        out += f"(all-{box.label})=\n::::::{{admonition}} {box.title}: {box.section}\n:class: {kind}\n"
        out += moved(box.text, chapter) + f"\n\n[In the chapter {chapter.title}](#{box.label})\n::::::\n\n"
    return out


# --- symbols and words ---


@lru_cache(maxsize=1)
def table():
    "nbs/reference/symbols.toml"
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))


def titled(page):
    return next(c for listed in chapters().values() for c in listed if c.page == page)


def symbols():
    "One table for each group of symbols"
    out = ""
    for group in table()["group"]:
        out += f"## {group['title']}\n\n{group.get('text', '')}\n\n:::{{div}} pevl-filter\n"
        out += row("symbol", "in code", "shape", "meaning", "chapter", "paper") + row(*["---"] * 6)
        for s in group["symbol"]:
            names = ", ".join(code(name) for name in s["code"])
            chapter = titled(s["page"])
            meaning = s["meaning"] + (f" ({s['unit']})" if s.get("unit") else "")
            out += row(
                f"${s['symbol']}$" if s["symbol"] else "",
                link_names(names, chapter.module),
                code(s.get("shape", "")),
                meaning,
                f"[{chapter.title}](/{chapter.page}.ipynb)",
                s.get("paper", "").replace(" ", "\u00a0", 1),
            )
        out += ":::\n\n"
    return out


def words():
    "The words, as a glossary that other pages and the search find"
    out = "```````{glossary}\n:sorted:\n\n"
    for w in table()["word"]:
        chapter = titled(w["page"])
        out += f"{w['word']}\n  : {w['meaning']} → [{chapter.title}](/{chapter.page}.ipynb)\n\n"
    return out + "```````\n"


MADE = {
    "pevl-symbols": lambda _: symbols(),
    "pevl-words": lambda _: words(),
    "pevl-callouts": lambda _: callout_pages(),
    "pevl-api": lambda part: api(part) if part else api_index(),
}


def expand(text):
    "The text of a page, with what it asks for"
    return FENCE.sub(lambda m: MADE[m[1]](m[2].strip()), text)


def read_source(app, page, source):
    if (NBS / f"{page}.md").exists():
        source[0] = expand(link_names(source[0], None))


def setup(app):
    app.connect("source-read", read_source)
    return {"parallel_read_safe": True}
