"""`larder completion`: the script that teaches a shell to complete this program's commands."""

import os
import sys
from pathlib import PurePath

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_LARDER_COMPLETE"


@click.command(short_help="Print a shell's completion script.")
@click.argument("shell", type=click.Choice(SHELLS), required=False)
def completion(shell: str | None) -> None:
    """Print the completion script for a shell, by default the one in $SHELL.

    \b
    bash:  source <(larder completion bash)        in ~/.bashrc
    zsh:   source <(larder completion zsh)         in ~/.zshrc, after compinit
    fish:  larder completion fish | source         in ~/.config/fish/config.fish
    """
    wanted = shell or PurePath(os.environ.get("SHELL", "")).name
    kind = get_completion_class(wanted) if wanted in SHELLS else None
    if kind is None:
        raise click.UsageError(f"name a shell: {', '.join(SHELLS)}")
    root = click.get_current_context().find_root().command
    sys.stdout.write(kind(root, {}, "larder", VARIABLE).source() + "\n")
