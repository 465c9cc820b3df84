"""What every command that asks the server takes: --url, --json and --timeout, before or after the command's name.

    @click.command()
    @remote
    def status(call: Call) -> int | None: ...

The nearest one counts: after the command's name, before it, LARDER_URL in the environment, the default.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from cli.connection import Address, BadAddress, Connection
from cli.errors import CliError

DEFAULT_URL = "http://127.0.0.1:8080"
URL_VARIABLE = "LARDER_URL"
DEFAULT_TIMEOUT_S = 10.0
COMPLETION_TIMEOUT_S = 1.0

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Call:
    """One run of a command: whom to ask, and how to answer."""

    server: Connection
    as_json: bool

    @property
    def address(self) -> Address:
        return self.server.address


def common_options(function: Command) -> Command:
    """The options by themselves; those that were not given are None, or False."""
    url = (
        f"The server: http://host:port, https://host:port or unix:/path. [env: {URL_VARIABLE}; default: {DEFAULT_URL}]"
    )
    timeout = f"Seconds one request may take. [default: {DEFAULT_TIMEOUT_S:g}]"
    for decorator in (
        click.option("--timeout", type=click.FloatRange(0.1, 3600), metavar="SECONDS", default=None, help=timeout),
        click.option("--json", "as_json", is_flag=True, help="Machine-readable JSON on stdout, and nothing else."),
        click.option("--url", metavar="URL", default=None, help=url),
    ):
        function = decorator(function)
    return function


def remote(function: Callable[..., int | None]) -> Callable[..., int | None]:
    """Adds the common options and hands their sum over as the first argument."""

    @functools.wraps(function)
    def command(*arguments: Any, url: str | None, as_json: bool, timeout: float | None, **options: Any) -> int | None:
        given = click.get_current_context().find_root().params
        chosen_s = timeout or given.get("timeout") or DEFAULT_TIMEOUT_S
        server = Connection(_address(url or given.get("url")), chosen_s, os.environ)
        return function(Call(server, as_json or bool(given.get("as_json"))), *arguments, **options)

    return common_options(command)


def complete_from(path: str, names_in: Callable[[Any], list[str]]) -> Callable[..., list[str]]:
    """Completion of a value from what the server says; nothing when it does not answer within a second."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        url = context.params.get("url") or context.find_root().params.get("url")
        try:
            answer = Connection(_address(url), COMPLETION_TIMEOUT_S, os.environ).get(path)
        except (CliError, click.UsageError):
            return []
        return [name for name in names_in(answer) if name.startswith(incomplete)]

    return complete


adapter_option = click.option(
    "--adapter",
    metavar="TYPE",
    default=None,
    help="The L2 adapter, by its type; the first of that type. [default: the primary]",
    shell_complete=complete_from("/l2/adapters", lambda body: [entry["type_name"] for entry in body["adapters"]]),
)


def _address(url: str | None) -> Address:
    try:
        return Address.parse(url or os.environ.get(URL_VARIABLE) or DEFAULT_URL)
    except BadAddress as error:
        raise click.UsageError(f"--url or {URL_VARIABLE}: {error}") from error
