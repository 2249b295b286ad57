"""Every option is declared once: flag, recipe key, check, help and documentation follow."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import typer

from lpss_cli.cli import app
from lpss_cli.errors import InputError
from lpss_cli.jobs import config
from lpss_cli.training import method

ROOT = Path(__file__).parents[2]
GROUP = typer.main.get_command(app.app)
COMMANDS = GROUP.commands
#: Command, name of the field, option.
OPTIONS = [
    (command, name, item)
    for command, made in COMMANDS.items()
    for name, item in made.callback.shown.declared.items()
]
every_option = pytest.mark.parametrize(
    ("command", "name", "item"), OPTIONS, ids=[f"{c}-{item.key}" for c, _, item in OPTIONS]
)
DISTINCT = {(item.key, item.help): item for _, _, item in OPTIONS}.values()
every_distinct_option = pytest.mark.parametrize("item", DISTINCT, ids=lambda item: item.key)


def visible(lpss, *words):
    """The flags that a help shows, and its text on one line."""
    code, out, err = lpss(*words)
    assert (code, err) == (0, "")
    return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", out)), " ".join(out.split())


@every_option
def test_an_option_is_a_flag_with_its_aliases(command, name, item):
    (param,) = [p for p in COMMANDS[command].params if p.name == name]
    assert set(param.opts) == set(item.flags)
    assert param.default is None
    assert param.help
    assert not param.hidden


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_all_options_hides_none(lpss, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "200")
    flags, _ = visible(lpss, command, "--help-all")
    declared = COMMANDS[command].callback.shown.declared.values()
    assert flags >= {flag for item in declared for flag in (item.flag, item.short) if flag}
    assert not flags & {flag for item in declared for flag in item.alias_flags}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_first_help_is_short_and_says_how_to_see_the_rest(lpss, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "200")
    flags, text = visible(lpss, command, "--help")
    shown = COMMANDS[command].callback.shown
    hidden = {
        item.flag
        for name, item in shown.declared.items()
        if item.advanced or name in shown.of_methods
    }
    assert not flags & hidden
    assert {item.flag for item in shown.declared.values()} - hidden <= flags
    assert len(flags) <= 36  # short names are among them
    assert ("--help-all" in text) == bool(hidden)
    if hidden:
        assert f"{len(hidden)} more options" in text
    assert ("--method NAME --help" in text) == bool(shown.of_methods)


@pytest.mark.parametrize("name", method.registry())
@pytest.mark.parametrize("command", ["train", "sparsify", "init"])
def test_the_help_with_a_method_has_its_options_with_its_defaults(lpss, monkeypatch, command, name):
    monkeypatch.setenv("COLUMNS", "300")
    for words in (("--method", name, "--help"), ("-h", "-m", name)):
        flags, text = visible(lpss, command, *words)
        own = method.options_of(method.get(name))
        assert f"Options of {name}" in text
        assert {item.flag for item in own} <= flags
        others = {item.flag for item in method.all_options().values()} - {i.flag for i in own}
        assert not flags & others
        for item in own:
            if item.default_for():
                assert f"(default: {item.default_for()})" in text


def test_a_method_that_does_not_exist_leaves_the_general_help(lpss):
    code, out, _ = lpss("train", "--method", "gnp", "--help")
    assert code == 0
    assert "Options of a method" in out


@every_distinct_option
def test_an_option_of_a_recipe_is_a_key_of_it(item):
    known = config.recipe_options()
    if item.key in config.request_options() and item.recipe:
        assert known[item.key].key == item.key
        for key in item.keys:
            with pytest.raises(InputError, match=re.escape(item.flag)):
                config.read_options({key: object()})
    else:
        with pytest.raises(InputError, match="there is no option"):
            config.read_options({item.key: "x"})


@every_distinct_option
def test_a_value_that_is_not_allowed_is_refused_by_name(item):
    assert item.kind in (bool, int, float, str, Path) or item.parse or item.kind == tuple[str, ...]
    if item.choices:
        with pytest.raises(InputError, match=f"{item.flag} 'nonsense' is not a choice"):
            item.check("nonsense")
    if item.range_text:
        for value in (item.low - 1, item.high + 1, float("nan")):
            if value == float("inf"):
                continue
            with pytest.raises(InputError, match="is out of range") as error:
                item.check(value)
            assert error.value.do == f"give {item.flag} {item.range_text}"
    default = item.default
    item.check(default)
    for value in item.choices:
        item.check(value)


@every_option
def test_an_option_has_a_row_in_the_documentation(command, name, item):
    docs = ROOT / "docs"
    if not docs.exists():
        pytest.skip("the docs are not installed")
    if item.key in method.all_options():
        owners = [n for n, c in method.registry().items() if item in method.options_of(c)]
        pages = [docs / "methods" / f"{owner}.md" for owner in owners]
    else:
        pages = [docs / "options.md"]
    for page in pages:
        rows = [
            line for line in page.read_text().splitlines() if line.startswith(f"| `{item.flag}`")
        ]
        assert rows, page
        assert any(item.help.replace("|", "\\|") in row for row in rows)


def test_no_two_options_of_a_command_share_a_name():
    for command, made in COMMANDS.items():
        names = [flag for p in made.params for flag in (*p.opts, *p.secondary_opts)]
        assert len(names) == len(set(names)), command
    keys = [key for item in config.request_options().values() for key in item.keys]
    assert len(keys) == len(set(keys))


def test_a_command_declares_no_option_by_itself():
    for made in COMMANDS.values():
        signature = inspect.signature(inspect.unwrap(made.callback), eval_str=True)
        for parameter in signature.parameters.values():
            (info,) = getattr(parameter.annotation, "__metadata__", (None,))
            assert info is None or isinstance(info, typer.models.ArgumentInfo)
