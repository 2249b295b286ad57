"""What the documents say exists."""

import re
import runpy
from pathlib import Path

import pytest

from lpss_cli.cli import app
from lpss_cli.jobs import recipes
from lpss_cli.training import method

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("[C-S]*.md"), *(ROOT / "docs").rglob("*.md")])
READMES = [ROOT / "benchmarks" / "README.md", ROOT / "sample_models" / "README.md"]
pytestmark = pytest.mark.skipif(not (ROOT / "docs").exists(), reason="the docs are not installed")


def name_of(document):
    """The name of a document; the pages of the methods count as one."""
    return "methods" if document.parent.name == "methods" else document.name


def commands():
    """Every line of a code block that begins with lpss, with its document (or folder of them)."""
    for document in DOCUMENTS:
        inside = False
        for line in document.read_text(encoding="utf-8").splitlines():
            if line.startswith("```"):
                inside = not inside
            elif inside and re.match(r"(\$ )?lpss \w", line):
                yield name_of(document), line.removeprefix("$ ").partition("  #")[0].strip()


def files_of(name):
    """Name → text of the files that a document tells its readers to save: blocks ``# NAME.py``."""
    texts = (d.read_text(encoding="utf-8") for d in DOCUMENTS if name_of(d) == name)
    return {
        file: block
        for text in texts
        for block, file in re.findall(r"```python\n(# ([\w/]+\.py)\n.*?)```", text, re.S)
    }


def flags(words):
    return [word.partition("=")[0] for word in words if word.startswith("--")]


@pytest.mark.parametrize(("document", "line"), sorted(set(commands())))
def test_every_command_and_flag_in_the_documents_exists(document, line):
    import typer

    words = line.split()
    group = typer.main.get_command(app.app)
    command = group.commands[words[1]]
    known = {
        flag for parameter in command.params for flag in parameter.opts + parameter.secondary_opts
    }
    assert set(flags(words[2:])) <= known, line
    for index, word in enumerate(words[:-1]):
        if word == "--recipe" and not words[index + 1].endswith(".toml"):
            assert words[index + 1] in recipes.names()
        if word == "--method":
            assert words[index + 1] in method.registry()


def test_every_method_has_its_place_in_the_documents():
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    pages = {page.stem for page in (ROOT / "docs" / "methods").glob("*.md")}
    assert pages == set(method.registry())
    for name in pages:
        assert f"(methods/{name}.md)" in text


def test_every_page_is_in_the_index():
    text = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"({page})" not in text} == set()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 220


def test_tables_of_the_documents_are_those_of_the_code_and_the_results():
    made = runpy.run_path(str(ROOT / "docs" / "make_tables.py"))
    for document in made["DOCUMENTS"]:
        text = document.read_text(encoding="utf-8")
        assert made["filled"](document) == text, "run python docs/make_tables.py"


def test_every_page_of_a_method_has_its_parts():
    for page in (ROOT / "docs" / "methods").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for part in ("What it does", "When to use it", "Flags", "Measured"):
            assert f"\n## {part}\n" in text


def anchors(document):
    """The anchors that GitHub gives the headings of a document."""
    outside = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", outside, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS + READMES, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", text):
        if not target.startswith("http"):
            place = document.parent / target if target else document
            assert place.exists(), target
            assert not anchor or anchor in anchors(place), f"{target}#{anchor}"


@pytest.mark.parametrize("document", DOCUMENTS + READMES, ids=lambda path: path.name)
def test_scripts_and_files_that_are_named_exist(document):
    text = document.read_text(encoding="utf-8")
    pattern = r"`(?:python )?((?:benchmarks|examples|tests|lpss_cli|docs)/[\w./-]+)"
    for name in re.findall(pattern, text):
        assert (ROOT / name).exists(), name


def test_every_benchmark_is_in_their_list():
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    paths = (ROOT / "benchmarks").glob("*.py")
    programs = {path.name for path in paths if "__main__" in path.read_text(encoding="utf-8")}
    assert set(re.findall(r"`python benchmarks/(\w+\.py)", text)) == programs
