"""`larder COMMAND`: the commands by name, each imported when it is called, and the exit code of what happened.

The module has to be light: `larder server` never comes here, but shells ask it at every press of the tab key.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click
from click.exceptions import NoArgsIsHelpError

from cli.errors import INTERRUPTED, OK, PIPE_CLOSED, REFUSED, USAGE, CliError
from cli.options import common_options
from cli.text import printable
from contract.version import VERSION

PROGRAM = "larder"
#: Command → the module that has a click command of that name.
COMMANDS = {
    "server": "server",
    "status": "health",
    "ping": "health",
    "describe": "describe",
    "quota": "quota",
    "keys": "keys",
    "prefetch": "prefetch",
    "clear": "clear",
    "scrub": "scrub",
    "threads": "diagnostics",
    "loglevel": "diagnostics",
    "top": "top",
    "bench": "bench",
    "completion": "completion",
}
EXIT_CODES = f"""\b
Exit codes:
  {OK}  done
  {REFUSED}  the server said no
  {USAGE}  wrong usage
  3  nobody answered
  4  the server is not well
"""


class OutputClosed(Exception):
    """Who read our output has gone."""


class Commands(click.Group):
    """Imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table above."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """None when there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"cli.commands.{COMMANDS[cmd_name]}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command. Raises OutputClosed in place of an error that click would end the program at."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise OutputClosed from error


@click.group(
    PROGRAM,
    cls=Commands,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(VERSION, message="%(version)s")
@common_options
def larder(url: str | None, as_json: bool, timeout: float | None) -> None:
    """Start Larder, a KV-cache server for LLM inference, and look after a running one.

    Every command but `server`, `bench NAME` and `completion` asks a running server over HTTP. A server with tokens
    wants LARDER_ADMIN_TOKEN or LARDER_READ_TOKEN in the environment.
    """


def main(arguments: Sequence[str]) -> int:
    """Runs one command and returns the exit code; what went wrong is one line on stderr."""
    try:
        code = larder.main(list(arguments), prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else OK
    except NoArgsIsHelpError as error:
        sys.stderr.write(error.format_message() + "\n")
        return USAGE
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else PROGRAM
        return _fail(f"{error.format_message()} (see {path} --help)", USAGE, path)
    except CliError as error:
        return _fail(str(error), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        if sys.stderr.isatty():
            sys.stderr.write("\n")  # the terminal shows ^C on a line that has begun
        return _fail("interrupted", INTERRUPTED)
    except (OutputClosed, BrokenPipeError):
        # What is still buffered must not fail once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED


def _fail(message: str, code: int, path: str = PROGRAM) -> int:
    line = " ".join(printable(message, keep="\n").split("\n"))
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass
    sys.stderr.write(f"{path}: {line}\n")
    return code
