"""`larder clear`: empties L1."""

import sys

import click

from cli.errors import OK, REFUSED
from cli.options import Call, remote
from cli.render import note, print_json, say


@click.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@remote
def clear(call: Call, yes: bool) -> int:
    """Empty L1. L2, quotas and registered clients stay.

    Asks first when it runs on a terminal.
    """
    question = f"Drop every object of L1 of {call.address.shown}?"
    if not yes and sys.stdin.isatty() and not click.confirm(question, err=True):
        note("nothing was changed")
        return REFUSED
    answer = call.server.json("POST", "/clear-cache")
    if call.as_json:
        print_json(answer)
    else:
        say("L1 is empty; L2, quotas and registered clients are as they were")
    return OK
