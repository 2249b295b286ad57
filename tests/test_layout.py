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

# Bottom to top. An import goes down, or stays within a folder.
TIERS = (
    "errors version",
    "utils",
    "sparsity",
    "data models distributed",
    "checkpoints optim",
    "training reporting",
    "methods export api",
    "jobs sparsifier",
    "cli",
    "__init__ __main__",
)
RANK = {name: rank for rank, names in enumerate(TIERS) for name in names.split()}
ROOT_MODULES = {"__init__", "__main__", "api", "errors", "sparsifier", "version"}
# What a method's file may import when it is imported ("methods": presets), what only where it is
# used, and what only as a type.
METHOD_EAGER = {"errors", "methods", "training.method"} | {
    f"sparsity.{name}" for name in ("patterns", "schedules", "targets")
}
METHOD_LAZY = METHOD_EAGER | {"sparsity", "utils", "data", "models", "optim"}
METHOD_TYPES = METHOD_LAZY | {"training.run"}


class Import:
    def __init__(self, target: str, when: str) -> None:
        self.target = target  # dotted, absolute
        self.when = when  # "module", "function" or "typing"
        parts = target.split(".")
        self.top = parts[0]
        self.within = ".".join(parts[1:]) if self.top == "lpss_cli" else None
        self.own = parts[1] if self.within else None

    def is_in(self, places: set[str]) -> bool:
        """Whether the module is one of the places, or within one that is a folder."""
        parts = (self.within or "").split(".")
        return any(".".join(parts[:i]) in places for i in range(1, len(parts) + 1))


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
    if base == "lpss_cli" or _is_folder(base):  # from lpss_cli.training import trainer
        return [f"{base}.{alias.name}" for alias in node.names]
    return [base]


def _is_folder(module: str) -> bool:
    top, *rest = module.split(".")
    return top == "lpss_cli" and ROOT.joinpath(*rest).is_dir()


def owner(path: Path) -> str:
    """The folder of ``lpss_cli`` that a file belongs to, or the module at the root."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


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
    found = {i.target for i in imports(ROOT / "models/__init__.py")}
    assert "lpss_cli.models.families" in found


def test_the_root_holds_what_users_import_and_nothing_else():
    assert {path.stem for path in ROOT.glob("*.py")} == ROOT_MODULES
    folders = {path.parent.relative_to(ROOT).parts[0] for path in FILES if path.parent != ROOT}
    assert folders | ROOT_MODULES == set(RANK)


@every_file
def test_imports_go_down_or_stay_within_a_folder(path):
    here = owner(path)
    others = [i for i in imports(path) if i.own in RANK and i.own != here]
    assert [i.target for i in others if RANK[i.own] >= RANK[here]] == []


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
    for when, allowed in (
        ("module", METHOD_EAGER),
        ("function", METHOD_LAZY),
        ("typing", METHOD_TYPES),
    ):
        assert [i.target for i in own if i.when == when and not i.is_in(allowed)] == []


LIGHT = [*(ROOT / "cli").rglob("*.py"), *(ROOT / "methods").glob("*.py")]
LIGHT += [
    ROOT / name
    for name in (
        "__init__.py",
        "__main__.py",
        "errors.py",
        "export/options.py",
        "jobs/callbacks.py",
        "jobs/config.py",
        "jobs/recipes/__init__.py",
        "jobs/report.py",
        "jobs/sparsify.py",
        "jobs/config.py",
        "training/method.py",
        "training/options.py",
        "utils/options.py",
        "training/options.py",
        "utils/options.py",
        "sparsity/hoyer.py",
        "sparsity/patterns.py",
        "sparsity/schedules.py",
        "sparsity/targets.py",
        "data/__init__.py",
        "data/spec.py",
        "models/__init__.py",
        "models/families.py",
        "models/info.py",
        "models/signatures.py",
    )
]


@pytest.mark.parametrize("path", sorted(LIGHT), ids=lambda p: str(p.relative_to(ROOT)))
def test_what_help_needs_imports_nothing_heavy_at_module_level(path):
    assert [i.target for i in imports(path) if i.when == "module" and i.top in HEAVY] == []


@pytest.mark.parametrize(
    "code",
    [
        "import lpss_cli",
        "import lpss_cli.cli.app",
        "from lpss_cli.training.method import registry; assert len(registry()) > 1",
        "import lpss_cli; lpss_cli.InputError, lpss_cli.__version__",
    ],
)
def test_torch_stays_unloaded(code):
    check = f"{code}\nimport sys\nprint(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_load_when_asked_for():
    assert all(getattr(lpss_cli, name) is not None for name in lpss_cli.__all__)
    # A folder of that name would take its place as soon as anything in it is imported.
    assert not set(lpss_cli.__all__) & {path.stem for path in ROOT.iterdir()}
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = lpss_cli.nonsense
