"""How the package is laid out: folders, imports, the files that a command enters, declarations.

    python benchmarks/structure.py [--root TREE] [--json FILE] [--before FILE] [--static]
                                   [--verbose]

Reads the sources of `lpss_cli` in TREE, any checkout (default: this one), without importing them,
then runs three commands of that tree with this Python. `--json` writes the figures to FILE and the
table beside it as .md, `--before` adds a column with the figures of an earlier FILE, `--static`
leaves the commands out, and `--verbose` lists every room, import and file behind the figures.

**Imports.** An import statement is an arrow from its file to the file that it names:
`from lpss_cli.data import split` leads to `data/split.py` if there is one, and to
`data/__init__.py` otherwise. Statements at module level (classes, `try` and `if` included), in
functions, and under `if TYPE_CHECKING:` are told apart. Modules that are imported by a string at
run time (plug-ins, lazy attributes of a package) are not arrows, and neither is the `__init__.py`
that Python runs on the way to a submodule.

**Rooms.** Each folder directly under `lpss_cli` is a room with everything below it, and each module
at the root of the package, `__init__` and `__main__` included, is a room of its own. "By second
level" makes each folder inside those folders a room too; there, a folder and its own subfolder can
form a cycle. An arrow between two rooms counts once, however many imports it stands for.

**Cycles.** The rooms, or files, that reach each other by imports at module level and in functions.

**Floors.** The number of rooms on the longest path of imports: once for the imports that run
(module level and functions), and once with those for type checking, which a reader follows too.
A cycle counts as one room, so the number says little as long as there are cycles.

**Chains.** The number of files on the longest path of imports, which is also the number of floors
that the files need: once for imports at module level and in functions, once for module level alone.

**Entered files.** The files of `lpss_cli` in which the body of at least one function, method or
lambda runs, in the process of the command, from `python -m lpss_cli` to its end: in an empty
folder, with one thread, `lpss train`, then `lpss sparsify model.pt --p 0.5`, then `lpss export`, on
digits. Functions that are called during an import count. The code of modules, class bodies and
comprehensions does not.

**Declarations of `batch_size`.** The places that give it a type, a default or limits:

- *field*: `batch_size: int` or `batch_size = ...` in the body of a class;
- *parameter*: a parameter with a default (one without only receives a value);
- *entry*: a key `"batch_size"` of a dict, or of `dict(...)`, whose value is a type, a literal, a
  tuple or list of these, or a call that is given one of these: `flag(int, "--batch-size")`;
- *option*: outside the places above, a call whose name has option, flag, field, arg or param in it
  and that is given `"batch_size"` or `"--batch-size"`;
- *fallback*: `x.batch_size or VALUE`, a conditional expression that tests whether `x.batch_size`
  is None, and `get`, `pop` or `getattr` of `"batch_size"` with a default other than None.

Values that are passed on (`f(batch_size=size)`), attributes that methods set, local variables and
tests of local variables (`batch_size or 1`) are not declarations.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = "lpss_cli"
OPTION = "batch_size"
FLAG = "--batch-size"
MODULE, FUNCTION, TYPING = "module level", "function", "type checking"
RUNS = (MODULE, FUNCTION)
#: The commands that run, in this order, in one folder.
COMMANDS: dict[str, list[str]] = {
    "train": ["train"],
    "sparsify": ["sparsify", "model.pt", "--p", "0.5"],
    "export": ["export"],
}
#: Those whose files are counted.
COUNTED = ("sparsify", "export")
#: Runs `lpss` and writes which files below a folder it enters: RESULT FOLDER ARGUMENT...
RUNNER = """
import inspect, json, runpy, sys, threading
result, folder, *arguments = sys.argv[1:]
folder += "/"
comprehensions = {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"}
entered = set()

def see(frame, event, argument):
    code = frame.f_code
    # Modules and class bodies lack the flag.
    if event == "call" and code.co_flags & inspect.CO_OPTIMIZED:
        if code.co_filename.startswith(folder) and code.co_name not in comprehensions:
            entered.add(code.co_filename[len(folder):])

sys.argv = ["lpss", *arguments]
threading.setprofile(see)
sys.setprofile(see)
try:
    runpy.run_module("lpss_cli", run_name="__main__", alter_sys=True)
finally:
    sys.setprofile(None)
    found = sys.modules["lpss_cli"].__file__
    assert found.startswith(folder), f"{found} is not below {folder}"
    with open(result, "w") as file:
        json.dump(sorted(entered), file)
"""


@dataclass(frozen=True)
class Import:
    """One import of a file by another.

    Attributes:
        source: path of the importing file, relative to the package.
        target: path of the imported file, relative to the package.
        when: MODULE, FUNCTION or TYPING.
        line: of the statement in ``source``.
    """

    source: str
    target: str
    when: str
    line: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target} ({self.when})"


# Imports


def statements(node: ast.AST, when: str = MODULE) -> Iterator[tuple[ast.stmt, str]]:
    """All import statements below a node, and when each of them runs."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, when
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from statements(child, FUNCTION if when == MODULE else when)
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            yield from statements(ast.Module(child.body, []), TYPING)
            yield from statements(ast.Module(child.orelse, []), when)
        else:
            yield from statements(child, when)


def names(statement: ast.stmt, package: str) -> list[list[str]]:
    """What a statement imports: dotted names, for each the preferred reading first.

    Args:
        statement: `import ...` or `from ... import ...`.
        package: dotted name of the package that its file lies in.
    """
    if isinstance(statement, ast.Import):
        return [[alias.name] for alias in statement.names]
    assert isinstance(statement, ast.ImportFrom)
    base = statement.module or ""
    if statement.level:
        parts = package.split(".")
        base = ".".join([*parts[: len(parts) - statement.level + 1], *([base] if base else [])])
    return [[f"{base}.{alias.name}", base] for alias in statement.names]


def imports(trees: dict[str, ast.Module]) -> list[Import]:
    """All imports of files of the package by other files of it."""
    modules = {dotted(path): path for path in trees}
    found = []
    for path, tree in trees.items():
        package = dotted(str(Path(path).parent / "__init__.py"))
        for statement, when in statements(tree):
            for readings in names(statement, package):
                known = [modules[name] for name in readings if name in modules]
                if known and known[0] != path:
                    found.append(Import(path, known[0], when, statement.lineno))
                elif not known and readings[-1].split(".")[0] == PACKAGE:
                    raise SystemExit(f"{path}:{statement.lineno}: there is no {readings[-1]}")
    return found


def dotted(path: str) -> str:
    """Name of the module in a file: `data/__init__.py` → `lpss_cli.data`."""
    parts = [PACKAGE, *Path(path).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(path: str, levels: int) -> str:
    """The folder of a file, cut to a number of levels; a module at the root is its own room."""
    parts = Path(path).parts
    return "/".join(parts[:-1][:levels]) + "/" if len(parts) > 1 else parts[0]


# Graphs


@dataclass(frozen=True)
class Graph:
    """Arrows between nodes, and the longest path among its cycles and single nodes.

    Attributes:
        arrows: pairs of nodes, each once, none from a node to itself.
        cycles: groups of nodes that reach each other, of two nodes or more.
        path: the longest path, a cycle as one step: its nodes joined by " + ".
    """

    arrows: list[tuple[str, str]]
    cycles: list[list[str]]
    path: list[str]

    def inside(self, cycle: list[str]) -> list[tuple[str, str]]:
        """The arrows within a cycle."""
        return [(a, b) for a, b in self.arrows if a in cycle and b in cycle]


def graph(pairs: Iterable[tuple[str, str]]) -> Graph:
    """Build the graph of some arrows; those from a node to itself are left out."""
    arrows = sorted({(a, b) for a, b in pairs if a != b})
    following: dict[str, list[str]] = {node: [] for pair in arrows for node in pair}
    for a, b in arrows:
        following[a].append(b)
    reached = {node: reachable(node, following) for node in following}
    group = {
        node: tuple(sorted({node} | {other for other in reached[node] if node in reached[other]}))
        for node in following
    }

    @cache
    def longest(start: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        below = {group[b] for a in start for b in following[a]} - {start}
        return start, *max(map(longest, sorted(below)), key=len, default=())

    groups = sorted(set(group.values()))
    path = max(map(longest, groups), key=len, default=())
    cycles = [list(nodes) for nodes in groups if len(nodes) > 1]
    return Graph(arrows, cycles, [" + ".join(nodes) for nodes in path])


def reachable(start: str, following: dict[str, list[str]]) -> set[str]:
    """All nodes at the end of a path from ``start``."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = set(following[waiting.pop()]) - seen
        seen |= new
        waiting += new
    return seen


# Declarations


def declarations(path: str, tree: ast.Module) -> list[str]:
    """Where a file declares the option: `PATH:LINE (KIND)`."""
    found: list[tuple[int, str]] = []
    covered: set[ast.AST] = set()  # an option inside a field or a parameter is not one more
    for node in ast.walk(tree):  # from the outside to the inside
        for kind, parts in declared(node):
            if parts[0] not in covered:
                found.append((parts[0].lineno, kind))
                covered |= {inner for part in parts for inner in ast.walk(part)}
    return [f"{path}:{line} ({kind})" for line, kind in sorted(found)]


def declared(node: ast.AST) -> Iterator[tuple[str, list[Any]]]:
    """The declarations that a node itself makes: the kind of each, and its parts in the tree."""
    if isinstance(node, ast.ClassDef):
        yield from (("field", [part]) for part in node.body if is_field(part))
    elif isinstance(node, ast.arguments):
        yield from (("parameter", list(pair)) for pair in defaults(node) if pair[0].arg == OPTION)
    elif isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        yield from (("entry", [v]) for k, v in pairs if literal(k) == OPTION and is_declared(v))
    elif isinstance(node, ast.Call) and called(node) == "dict":
        own = [keyword.value for keyword in node.keywords if keyword.arg == OPTION]
        yield from (("entry", [value]) for value in own if is_declared(value))
    elif isinstance(node, ast.Call) and is_option(node):
        yield "option", [node]
    elif is_fallback(node):
        yield "fallback", [node]


def is_field(node: ast.stmt) -> bool:
    """Whether a statement of a class body declares the option."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return any(isinstance(target, ast.Name) and target.id == OPTION for target in targets)


def defaults(node: ast.arguments) -> list[tuple[ast.arg, ast.expr]]:
    """The parameters that have a default, each with it."""
    places = [*node.posonlyargs, *node.args]
    pairs = [*zip(reversed(places), reversed(node.defaults), strict=False)]
    keywords = zip(node.kwonlyargs, node.kw_defaults, strict=True)
    return pairs + [(part, default) for part, default in keywords if default is not None]


def is_declared(node: ast.expr) -> bool:
    """Whether a value is a type, a literal, some literals, or a call that is given one of these."""
    if isinstance(node, (ast.Tuple, ast.List)):
        return all(map(is_declared, node.elts))
    if isinstance(node, ast.Call):
        return any(map(is_declared, given(node)))
    try:
        ast.literal_eval(node)
    except ValueError:  # not a literal
        kinds = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        plain = isinstance(node, (ast.Name, ast.BinOp, ast.Subscript))
        return plain and bool(kinds & {"int", "float", "str", "bool"})
    return True


def is_option(node: ast.Call) -> bool:
    """Whether a call declares the option by its name."""
    named = {OPTION, FLAG} & {literal(value) for value in given(node)}
    return bool(named) and bool(re.search(r"option|flag|field|arg|param", called(node), re.I))


def is_fallback(node: ast.AST) -> bool:
    """Whether an expression replaces the option of an object where it is missing."""
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
        return is_attribute(node.values[0])
    if isinstance(node, ast.IfExp) and isinstance(node.test, ast.Compare):
        return is_attribute(node.test.left) and ast.unparse(node.test.comparators[0]) == "None"
    if isinstance(node, ast.Call) and called(node) in ("get", "pop", "getattr"):
        texts = [literal(value) for value in node.args]
        after = node.args[texts.index(OPTION) + 1 :] if OPTION in texts else []
        return any(ast.unparse(value) != "None" for value in after)
    return False


def is_attribute(node: ast.expr) -> bool:
    """Whether an expression reads the option of an object."""
    return isinstance(node, ast.Attribute) and node.attr == OPTION


def given(node: ast.Call) -> list[ast.expr]:
    """All arguments of a call."""
    return [*node.args, *(keyword.value for keyword in node.keywords)]


def called(node: ast.Call) -> str:
    """Last name of what is called: `typer.Option(...)` → `Option`."""
    function = node.func
    return str(getattr(function, "attr", getattr(function, "id", "")))


def literal(node: ast.AST | None) -> Any:
    """The value of a literal, None for anything else."""
    return node.value if isinstance(node, ast.Constant) else None


# Runs


def entered(root: Path) -> dict[str, list[str]]:
    """The files that each counted command enters, in a new folder."""
    found = {}
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    # A checkout is only read: no compiled files in it.
    environment = os.environ | one | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in COMMANDS.items():
            result = Path(folder) / f"{name}.json"
            command = [sys.executable, "-c", RUNNER, str(result), str(root / PACKAGE), *arguments]
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SystemExit(f"lpss {' '.join(arguments)} failed:\n{done.stderr}")
            if name in COUNTED:
                found[name] = json.loads(result.read_text())
    return found


# Figures


def measured(root: Path, static: bool) -> dict[str, Any]:
    """All figures of a tree, and what is behind each.

    Returns:
        ``figures``: label → number, in the order of the table; ``behind``: label → lines.
    """
    package = root / PACKAGE
    texts = {
        path.relative_to(package).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(package.rglob("*.py"))
    }
    if not texts:
        raise SystemExit(f"there are no Python files in {package}")
    trees = {path: ast.parse(text) for path, text in texts.items()}
    at_root = [path for path in texts if "/" not in path]
    figures: dict[str, int] = {
        "modules at the root": len(at_root),
        "files": len(texts),
        "lines": sum(len(text.splitlines()) for text in texts.values()),
    }
    behind: dict[str, list[str]] = {"modules at the root": at_root}
    arrows = imports(trees)
    for levels, suffix in ((1, ""), (2, ", by second level")):
        count_rooms(arrows, levels, suffix, figures, behind)
    count_chains(arrows, figures, behind)
    for name, files in ({} if static else entered(root)).items():
        label = f"files entered by `lpss {' '.join(COMMANDS[name])}`"
        figures[label], behind[label] = len(files), files
    label = f"declarations of `{OPTION}`"
    behind[label] = [line for path, tree in trees.items() for line in declarations(path, tree)]
    figures[label] = len(behind[label])
    return {"figures": figures, "behind": behind}


def count_rooms(
    arrows: list[Import],
    levels: int,
    suffix: str,
    figures: dict[str, int],
    behind: dict[str, list[str]],
) -> None:
    """Add what there is to say about rooms of one or two levels of folders."""
    pairs = [(room(i.source, levels), room(i.target, levels), i) for i in arrows]
    running = graph((a, b) for a, b, i in pairs if i.when in RUNS)
    reading = graph((a, b) for a, b, _ in pairs)
    in_cycle = f"rooms in a cycle{suffix}"
    figures |= {
        f"rooms{suffix}": len({node for a, b, _ in pairs for node in (a, b)}),
        f"arrows between rooms{suffix}": len(running.arrows),
        in_cycle: sum(map(len, running.cycles)),
        f"rooms in a cycle, with type checking{suffix}": sum(map(len, reading.cycles)),
        f"floors{suffix}": len(running.path),
        f"floors, with type checking{suffix}": len(reading.path),
    }
    behind[f"arrows between rooms{suffix}"] = [f"{a} → {b}" for a, b in running.arrows]
    for label, found, kinds in (
        (in_cycle, running, RUNS),
        (f"rooms in a cycle, with type checking{suffix}", reading, (*RUNS, TYPING)),
    ):
        behind[label] = []
        for cycle in found.cycles:
            behind[label].append(f"cycle of {', '.join(cycle)}")
            for a, b in found.inside(cycle):
                own = [str(i) for x, y, i in pairs if (x, y) == (a, b) and i.when in kinds]
                more = f", and {len(own) - 1} more" if len(own) > 1 else ""
                behind[label].append(f"  {a} → {b}: {own[0]}{more}")
    behind[f"floors{suffix}"] = running.path
    behind[f"floors, with type checking{suffix}"] = reading.path


def count_chains(
    arrows: list[Import], figures: dict[str, int], behind: dict[str, list[str]]
) -> None:
    """Add the longest chains of files, and the files in a cycle."""
    running = graph((i.source, i.target) for i in arrows if i.when in RUNS)
    loading = graph((i.source, i.target) for i in arrows if i.when == MODULE)
    figures |= {
        "files in a cycle": sum(map(len, running.cycles)),
        "imports between files": len(running.arrows),
        "longest chain of files": len(running.path),
        "longest chain of files, module level": len(loading.path),
    }
    behind["files in a cycle"] = [", ".join(cycle) for cycle in running.cycles]
    behind["longest chain of files"] = running.path
    behind["longest chain of files, module level"] = loading.path


def table(figures: dict[str, int], before: dict[str, int] | None) -> str:
    """Lay the figures out as Markdown, beside those of before if there are any."""
    columns = [figures] if before is None else [before, figures]
    heads = ["this tree"] if before is None else ["before", "now"]
    lines = [f"| | {' | '.join(heads)} |", "|---|" + "--:|" * len(columns)]
    for label in dict.fromkeys([*figures, *(before or {})]):
        cells = [f"{column[label]:,}" if label in column else "-" for column in columns]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


#: What is listed without --verbose.
SHORT = (
    "rooms in a cycle",
    "files in a cycle",
    "floors",
    "floors, with type checking",
    "longest chain of files",
    "longest chain of files, module level",
    f"declarations of `{OPTION}`",
)


def listing(behind: dict[str, list[str]], verbose: bool) -> str:
    """What is behind the figures: cycles, longest paths and places; with ``verbose``, all of it."""
    blocks = (
        "\n".join([f"\n{label}:", *(f"  {line}" for line in lines)])
        for label, lines in behind.items()
        if lines and (verbose or label in SHORT)
    )
    return "\n".join(blocks)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--static", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    chosen = parser.parse_args(arguments)
    found = measured(chosen.root.resolve(), chosen.static)
    before = json.loads(chosen.before.read_text())["figures"] if chosen.before else None
    text = table(found["figures"], before)
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        head = "`python benchmarks/structure.py`"
        chosen.json.with_suffix(".md").write_text(f"{head}\n\n{text}\n")
    print(text)
    print(listing(found["behind"], chosen.verbose))


if __name__ == "__main__":
    main()
