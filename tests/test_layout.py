"""The import arrows point one way, and help needs no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lpss_cli

ROOT = Path(lpss_cli.__file__).parent
HEAVY = {"torch", "torchvision", "onnx", "onnxruntime", "sklearn", "timm", "safetensors", "numpy",
         "matplotlib", "zstandard", "transformers"}  # fmt: skip

# Folders that only gather modules: each of these has a tier of its own.
GROUPS = {"checkpoints", "exports", "optim", "processes", "runs"}
# Lower tiers know nothing of higher ones; any other package counts as one module.
TIERS = (
    "errors version targets checkpoints exports optim processes runs",
    "data models sphere lpsgd masks schedule patterns weights files tasks folding loading snapshot"
    " nesting lookup described torchpickle torchfile safetensorsfile manifest record entries kinds"
    " threads topology imports rules rowstep native lamp masking maskedweights compute exponents"
    " prediction amenable fading watching packed sizes"
    " interrupts apart randomness optimizerstate generations"
    " idle channels wiring constants layersizes cutting compacting onnxruntimes gaps onnxproof"
    " latency"
    " layertargets distillation launch distributed joining layers streaming modelfolder sharding"
    " bisection tally groups histograms closeups arrays forms hoyer modes",
    "recognising foreign fitting artifact state method",
    "methods starting stepping engine planning reporting"
    " exporting evaluation packing onnxfile quantizing onnxjob",
    "request resolving given recipes resuming stopping job jobrecord jobs tickets comparing"
    " plotting verifying pages api exportjob cleaning doctor oneshot outcome trial measuring"
    " runstore labels sparsifier stephooks recording drafting searching warmstart origins weighing"
    " filesizes ownoptimizer",
    "cli",
    "__init__ __main__",
)
RANK = {name: rank for rank, names in enumerate(TIERS) for name in names.split()}
# What a method's file may import when it is imported, and what only where it is used.
METHOD_EAGER = {
    "targets",
    "method",
    "methods",
    "schedule",
    "patterns",
    "exponents",
    "fading",
    "errors",
}  # "methods": presets
METHOD_LAZY = METHOD_EAGER | {
    "topology",
    "prediction",
    "rules",
    "lpsgd",
    "masking",
    "masks",
    "modes",
    "sphere",
    "weights",
    "models",
    "data",
    "tasks",
}


class Import:
    def __init__(self, target: str, when: str) -> None:
        self.target = target  # dotted, absolute
        self.when = when  # "module", "function" or "typing"
        parts = target.split(".")
        self.top = parts[0]
        self.own = _module(parts[1:]) if self.top == "lpss_cli" and len(parts) > 1 else None


def _module(parts: list[str]) -> str:
    return parts[1] if parts[0] in GROUPS and len(parts) > 1 else parts[0]


def imports(path: Path) -> list[Import]:
    return list(_walk(ast.parse(path.read_text()), path, "module"))


def _walk(node: ast.AST, path: Path, when: str) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, when) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (Import(target, when) for target in _targets(child, path))
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from _walk(child, path, "function" if when == "module" else when)
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            yield from (i for part in child.body for i in _walk_one(part, path, "typing"))
            yield from (i for part in child.orelse for i in _walk_one(part, path, when))
        else:
            yield from _walk(child, path, when)


def _walk_one(node: ast.stmt, path: Path, when: str) -> Iterator[Import]:
    return _walk(ast.Module([node], []), path, when)


def _targets(node: ast.ImportFrom, path: Path) -> list[str]:
    base = node.module or ""
    if node.level:
        package = ["lpss_cli", *path.relative_to(ROOT).parts[:-1]]
        base = ".".join(package[: len(package) - node.level + 1] + ([base] if base else []))
    parts = base.split(".")
    if parts[0] == "lpss_cli" and set(parts[1:]) <= GROUPS:  # from lpss_cli import engine, models
        return [f"{base}.{alias.name}" for alias in node.names]
    return [base]


def owner(path: Path) -> str:
    """The module of ``lpss_cli`` that a file belongs to."""
    return _module(list(path.relative_to(ROOT).with_suffix("").parts))


FILES = sorted(ROOT.rglob("*.py"))
every_file = pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])


def test_the_parser_sees_what_is_imported_when(tmp_path):
    source = tmp_path / "x.py"
    source.write_text(
        "import a\nfrom b.c import d\n"
        "if TYPE_CHECKING:\n    import e\nelse:\n    import f\n"
        "def g():\n    import h\n    if True:\n        from lpss_cli import i, j\n"
        "class K:\n    import k\ntry:\n    import m\nexcept ImportError:\n    import n\n"
    )
    found = {(i.target, i.when) for i in imports(source)}
    eager = {(name, "module") for name in ("a", "b.c", "f", "k", "m", "n")}
    inside = {(name, "function") for name in ("h", "lpss_cli.i", "lpss_cli.j")}
    assert found == eager | inside | {("e", "typing")}
    spec = next(i for i in imports(ROOT / "models/__init__.py") if i.target.endswith("spec"))
    assert spec.target == "lpss_cli.models.spec"


@every_file
def test_imports_point_to_the_same_tier_or_below(path):
    assert owner(path) in RANK, f"give {owner(path)} a tier in TIERS"
    names = [i for i in imports(path) if i.own is not None and i.own in RANK]
    upwards = [i.target for i in names if RANK[i.own] > RANK[owner(path)] and i.when != "typing"]
    assert upwards == []


@every_file
def test_nothing_imports_the_command_line(path):
    if owner(path) not in ("cli", "__main__"):
        assert [i.target for i in imports(path) if i.own == "cli"] == []


def test_errors_imports_nothing():
    assert [i.target for i in imports(ROOT / "errors.py") if i.when == "module"] == ["__future__"]
    assert [i.target for i in imports(ROOT / "errors.py") if i.own] == []


@pytest.mark.parametrize("path", sorted((ROOT / "methods").glob("*.py")), ids=lambda p: p.name)
def test_a_method_imports_the_interface_and_the_tier_below(path):
    own = [i for i in imports(path) if i.own is not None]
    assert {i.own for i in own if i.when == "module"} <= METHOD_EAGER
    assert {i.own for i in own if i.when == "function"} <= METHOD_LAZY
    assert {i.own for i in own if i.when == "typing"} <= METHOD_LAZY | {"state"}


LIGHT = [*(ROOT / "cli").rglob("*.py"), *(ROOT / "methods").glob("*.py")]
LIGHT += [
    ROOT / f
    for f in ("method.py", "schedule.py", "fading.py", "patterns.py", "errors.py", "__init__.py")
]
LIGHT += [ROOT / f for f in ("data/spec.py", "models/__init__.py", "models/spec.py", "__main__.py")]


@pytest.mark.parametrize("path", sorted(LIGHT), ids=lambda p: str(p.relative_to(ROOT)))
def test_what_help_needs_imports_nothing_heavy_at_module_level(path):
    assert [i.target for i in imports(path) if i.when == "module" and i.top in HEAVY] == []


@pytest.mark.parametrize(
    "code",
    [
        "import lpss_cli",
        "import lpss_cli.cli.app",
        "from lpss_cli.method import registry; assert len(registry()) > 1",
        "import lpss_cli; lpss_cli.InputError, lpss_cli.__version__",
    ],
)
def test_torch_stays_unloaded(code):
    check = f"{code}\nimport sys\nprint(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_load_when_asked_for():
    assert all(getattr(lpss_cli, name) is not None for name in lpss_cli.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = lpss_cli.nonsense
