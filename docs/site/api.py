"""A page for each module of the package: what it exports, with signatures, parameters and a link to the source.

Read from the files and never imported, so that signatures look as they are written: `images: torch.Tensor`, not what
the annotation evaluates to. The comment beside a parameter is its description.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CELL = re.compile(r"^# %% (?:\.\./)+(nbs/\S+\.ipynb) #(\S+)$")
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    "An exported module, read but not imported."

    name: str  # with dots, such as wegformer.kernels.launch
    path: Path
    lines: list[str]
    tree: ast.Module

    @property
    def summary(self) -> str:
        return (ast.get_docstring(self.tree) or "").partition("\n")[0]

    @property
    def exported(self) -> list[str]:
        "The public names of `__all__`, in the order in which the notebook defines them."
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                return [name for name in ast.literal_eval(node.value) if not name.startswith("_")]
        return []

    def cell(self, line: int) -> tuple[str, str] | None:  # notebook and cell that a line (from 1) comes from
        return next((m.groups() for text in self.lines[line - 1 :: -1] if (m := CELL.match(text))), None)


def read_modules(package: Path) -> list[Module]:
    "Every module that exports something."
    modules = []
    for path in sorted(package.rglob("*.py")):
        if path.name.startswith("_"):
            continue
        text = path.read_text(encoding="utf-8")
        name = ".".join(path.relative_to(package.parent).with_suffix("").parts)
        modules.append(Module(name, path, text.splitlines(), ast.parse(text)))
    return [module for module in modules if module.exported]


def module_page(
    module: Module,
    up: str,  # from the page to the site's root, such as "../"
    source: str,  # where the repository's files can be read, ending in "/"; "": nowhere
) -> str:  # Markdown
    "The page of a module."
    defined = {}
    for node in module.tree.body:
        for name in _names(node):
            defined.setdefault(name, node)
    parts = [f"# {module.name}\n\n> {module.summary}\n"]
    for name in module.exported:
        parts.append(f"## {name} {{ #{name} }}\n")
        node = defined[name]
        if isinstance(node, ast.ImportFrom):
            parts.append(f"Lives in [{_whole(module, node)}]({_whole(module, node)}.md#{name}).\n")
            continue
        parts += _described(module, node)
        links = []
        if cell := module.cell(node.lineno):
            links.append(f"[{Path(cell[0]).stem}.ipynb]({up}{cell[0].removesuffix('.ipynb')}.md#{cell[1]})")
        if source:
            path = module.path.relative_to(module.path.parents[len(module.name.split(".")) - 1])
            links.append(f"[{path.as_posix()}]({source}{path.as_posix()}#L{node.lineno})")
        if links:
            parts.append(f"Source: {', '.join(links)}\n{{ .source }}\n")
    return "\n".join(parts)


def _whole(module: Module, node: ast.ImportFrom) -> str:
    "The dotted name of the module that something is imported from."
    base = module.name.split(".")[: -node.level] if node.level else []
    return ".".join([*base, node.module or ""])


def _names(node: ast.stmt) -> list[str]:
    "What a statement of a module defines."
    if isinstance(node, Function | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    flat = [t for target in targets for t in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return [t.id for t in flat if isinstance(t, ast.Name)]


def _described(module: Module, node: ast.stmt) -> Iterator[str]:
    "Signature, docstring and table of a definition; a class with its public methods."
    if isinstance(node, Function):
        yield _fence(_signature(node))
        yield _doc(node)
        yield _table(*_parameters(module, node))
    elif isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, [*node.bases, *(k.value for k in node.keywords)]))
        yield _fence("".join(f"@{_written(d)}\n" for d in node.decorator_list) + f"class {node.name}({bases})")
        yield _doc(node)
        yield _table(*_fields(module, node))
        for method in node.body:
            if isinstance(method, Function) and (method.name == "__init__" or not method.name.startswith("_")):
                yield f"### {node.name}.{method.name} {{ #{node.name}.{method.name} }}\n"
                yield _fence(_signature(method))
                yield _doc(method)
                yield _table(*_parameters(module, method))
    else:
        text = _written(node)
        yield _fence(text if len(text) < 400 else text[:400].rpartition(" ")[0] + " ...")


def _written(node: ast.AST) -> str:
    "As code, with the double quotes of this house."
    return re.sub(r"'([^'\"\\]*)'", r'"\1"', ast.unparse(node))


def _fence(code: str) -> str:
    return f"```python\n{code.replace('()', '') if code.startswith(('class', '@')) else code}\n```\n"


def _doc(node: Function | ast.ClassDef) -> str:
    return f"{ast.get_docstring(node) or ''}\n"


def _signature(node: Function) -> str:
    "The definition's head, on one line where it fits."
    bare = type(node)(**{**{f: getattr(node, f, None) for f in node._fields}, "body": [ast.Pass()]})
    head = _written(ast.fix_missing_locations(bare)).removesuffix("pass").rstrip().removesuffix(":")
    if max(map(len, head.splitlines())) <= 88:
        return head
    bare.args, parts = ast.arguments([], [], None, [], [], None, []), _argument_texts(node.args)
    opened, closed = _written(bare).removesuffix("pass").rstrip().removesuffix(":").split("()", 1)
    return opened + "(\n" + "".join(f"    {part},\n" for part in parts) + ")" + closed


def _argument_texts(args: ast.arguments) -> list[str]:
    "Each parameter as it is written, with the marks / and * between them."
    return [text for text, _ in _arguments(args)]


def _arguments(args: ast.arguments) -> Iterator[tuple[str, ast.arg | None]]:
    plain = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(plain) - len(args.defaults)) + list(args.defaults)
    for i, (arg, default) in enumerate(zip(plain, defaults)):
        yield _argument(arg, default), arg
        if args.posonlyargs and i == len(args.posonlyargs) - 1:
            yield "/", None
    if args.vararg:
        yield "*" + _argument(args.vararg, None), args.vararg
    elif args.kwonlyargs:
        yield "*", None
    for arg, default in zip(args.kwonlyargs, args.kw_defaults):
        yield _argument(arg, default), arg
    if args.kwarg:
        yield "**" + _argument(args.kwarg, None), args.kwarg


def _argument(arg: ast.arg, default: ast.expr | None) -> str:
    kind = f": {_written(arg.annotation)}" if arg.annotation else ""
    return arg.arg + kind + ((" = " if kind else "=") + _written(default) if default else "")


Line = tuple[str, str, str, str]  # name, type, default, what it is


def _parameters(module: Module, node: Function) -> tuple[list[Line], str]:
    "The parameters with the comment beside each, and what is said of the result."
    comments = _comments(module, node.lineno, node.body[0].lineno)
    lines: list[Line] = []
    args = node.args
    plain = [*args.posonlyargs, *args.args]
    given = dict(zip([a.arg for a in plain[len(plain) - len(args.defaults) :]], args.defaults))
    given |= {a.arg: d for a, d in zip(args.kwonlyargs, args.kw_defaults) if d}
    for _, arg in _arguments(args):
        if arg and arg.arg not in ("self", "cls"):
            kind = _written(arg.annotation) if arg.annotation else ""
            default = _written(given[arg.arg]) if arg.arg in given else ""
            lines.append((arg.arg, kind, default, ""))
    ends = [(arg.arg, (given.get(arg.arg) or arg).end_lineno) for _, arg in _arguments(args) if arg]
    lines = _commented(lines, ends, comments)
    returns = node.returns and _written(node.returns)
    if returns and returns != "None":
        last = max([end for _, end in ends if end > node.lineno], default=node.lineno - 1)
        said = next((text for line, text in comments.items() if line > last), "")
        lines.append(("returns", returns, "", said))
    return lines, "parameter"


def _fields(module: Module, node: ast.ClassDef) -> tuple[list[Line], str]:
    "The annotated fields of a class, with the comment beside each."
    fields = [f for f in node.body if isinstance(f, ast.AnnAssign) and not _written(f.target).startswith("_")]
    comments = _comments(module, node.lineno, (node.end_lineno or node.lineno) + 1)
    lines = [(_written(f.target), _written(f.annotation), _written(f.value) if f.value else "", "") for f in fields]
    return _commented(lines, [(_written(f.target), f.end_lineno) for f in fields], comments), "field"


def _commented(lines: list[Line], ends: list[tuple[str, int]], comments: dict[int, str]) -> list[Line]:
    "A comment belongs to the last parameter that ends on its line."
    owner = {end: name for name, end in ends}
    said = {owner[line]: text for line, text in comments.items() if line in owner}
    return [(name, kind, default, said.get(name, "")) for name, kind, default, _ in lines]


def _comments(module: Module, first: int, last: int) -> dict[int, str]:
    "The comments on the lines first to last - 1, by line."
    text = "\n".join(module.lines[first - 1 : last - 1]) + "\n"
    found: dict[int, str] = {}
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                found[token.start[0] + first - 1] = token.string.lstrip("# ").strip()
    except (tokenize.TokenError, IndentationError):  # the text ends within the definition
        pass
    return found


def _table(lines: list[Line], kind: str) -> str:
    "Name, type, default and meaning; columns that say nothing are left out."
    if not any(said for *_, said in lines):
        return ""

    def code(text: str) -> str:
        return f"`{text}`" if text else ""

    rows = [(f"*{name}*" if name == "returns" else code(name), code(t), code(d), _cell(s)) for name, t, d, s in lines]
    head = (kind, "type", "default", "meaning")
    used = [i for i in range(4) if any(row[i] for row in rows)]
    table = [[head[i] for i in used], ["---" for _ in used], *([row[i] for i in used] for row in rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in table) + "\n"


def _cell(text: str) -> str:
    "Text of a comment that may hold what Markdown or a table reads as its own; code between ticks stays."
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = [re.sub(r"([\\*_<>\[\]$|])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)
