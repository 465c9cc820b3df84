"""docs/cli.md shows each command of `larder`, each option, each exit code, and no command that is not there."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cli import errors
from cli.commands.completion import SHELLS
from cli.program import larder

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "cli.md").read_text()
COMMON = {"--url", "--json", "--timeout", "--help"}


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that does something, with its words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


ALL = dict(commands(larder))


def examples() -> list[list[str]]:
    """The words after `larder` in each example of the page."""
    lines = re.findall(r"^\$ (.*\blarder .*)$", PAGE, re.MULTILINE)
    return [shlex.split(re.split(r"[|>]", line[line.index("larder ") + 7 :])[0]) for line in lines]


def named_by(words: list[str]) -> tuple[str, ...]:
    return tuple(words[:2]) if tuple(words[:2]) in ALL else tuple(words[:1])


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_each_command_has_an_example(path: tuple[str, ...]) -> None:
    if path == ("completion",):
        assert [shell for shell in SHELLS if f"larder completion {shell}" not in PAGE] == []
    else:
        assert path in map(named_by, examples())


@pytest.mark.parametrize("path", [path for path in ALL if path != ("server",)], ids=" ".join)
def test_each_option_of_a_command_is_on_the_page(path: tuple[str, ...]) -> None:
    options = {name for parameter in ALL[path].params for name in parameter.opts if name.startswith("--")}

    assert {name for name in options - COMMON if name not in PAGE} == set()


@pytest.mark.parametrize("words", examples(), ids=" ".join)
def test_each_example_is_understood(words: list[str]) -> None:
    path = named_by(words)
    command = ALL[path]

    command.make_parser(click.Context(command)).parse_args(words[len(path) :])


def test_common_options_and_exit_codes_are_on_the_page() -> None:
    codes = {errors.OK, errors.REFUSED, errors.USAGE, errors.UNREACHABLE, errors.UNHEALTHY, errors.INTERRUPTED}

    assert {name for name in COMMON - {"--help"} if f"| `{name}`" not in PAGE} == set()
    assert {code for code in codes if f"\n| {code} | " not in PAGE} == set()


def test_the_help_shows_each_command_and_the_exit_codes() -> None:
    shown = larder.get_help(click.Context(larder, info_name="larder"))

    assert [path[0] for path in ALL if f"\n  {path[0]} " not in shown] == []
    assert re.findall(r"^ +(\d+)  ", shown, re.MULTILINE) == ["0", "1", "2", "3", "4"]
    assert "..." not in shown.replace("[ARGS]...", ""), "short helps are short"
