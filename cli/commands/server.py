"""`larder server`, for help and completion: it is started without this package, which would only slow it down."""

import dataclasses

import click

from contract.settings import Settings, flag_name

FLAGS = [item for item in dataclasses.fields(Settings) if item.metadata["flag"]]


@click.command(
    params=[click.Option([flag_name(item.name)], help=item.metadata["help"]) for item in FLAGS],
    add_help_option=False,
    short_help="Start Redis, the engine and the HTTP API.",
)
def server(**flags: object) -> None:
    """Start Redis (unless REDIS_URL is set), the engine and the HTTP API.

    `larder server --help` lists the flags.
    """
    raise click.UsageError("'server' comes first: larder server [flags]")
