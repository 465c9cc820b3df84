"""`larder quota`: byte budgets of tenants. `_default` stands for the empty cache_salt."""

import json
import sys
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import click

from cli.commands.health import quota_line
from cli.errors import OK, REFUSED, CliError
from cli.options import Call, complete_from, remote
from cli.render import note, print_json, print_pairs, print_table, say
from cli.text import GIB, parse_size, percent, size

EMPTY_SALT = "_default"


class Tenant(click.ParamType):
    """A name that fits into a path of the server."""

    name = "tenant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """As it is."""
        if "/" in value:
            self.fail(f"{value!r}: no tenant has a / in its name", param, ctx)
        return str(value)


salt_argument = click.argument(
    "cache_salt",
    metavar="TENANT",
    type=Tenant(),
    shell_complete=complete_from("/quota", lambda body: sorted(body["users"])),
)


class Size(click.ParamType):
    """A number of bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Whole bytes."""
        try:
            return parse_size(str(value))
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)


@click.group()
def quota() -> None:
    """Byte budgets of tenants: list, get, set, delete.

    A tenant is a cache_salt; _default stands for the empty one. GB and GiB both mean 2^30 bytes.
    """


@quota.command("list")
@remote
def list_quotas(call: Call) -> int:
    """The tenants with a quota, and what they use."""
    body = call.server.get("/quota")
    if call.as_json:
        print_json(body)
        return OK
    users = body["users"]
    if users:
        columns = ("tenant", ">limit", ">used", ">of limit", ">in L1", ">in L2")
        print_table(columns, [(salt, *_cells(user)) for salt, user in users.items()])
    else:
        say("no tenant has a quota")
    _note_without_effect(call)
    return OK


@quota.command("get")
@salt_argument
@remote
def get_quota(call: Call, cache_salt: str) -> int:
    """The limit and the usage of one tenant."""
    user = call.server.get(_path(cache_salt))
    if call.as_json:
        print_json(user)
        return OK
    limit, used, share, in_l1, in_l2 = _cells(user)
    print_pairs(
        [
            ("tenant", user["cache_salt"]),
            ("limit", limit if user["exists"] else "none set, which means 0 where quotas act"),
            ("used", f"{used} ({share} of the limit)" if user["exists"] else used),
            ("in L1", in_l1),
            ("in L2", in_l2),
        ]
    )
    return OK


@quota.command("set", short_help="Set or replace the limit of a tenant.")
@salt_argument
@click.argument("limit_bytes", metavar="SIZE", type=Size())
@remote
def set_quota(call: Call, cache_salt: str, limit_bytes: int) -> int:
    """Set or replace the limit of a tenant: 10GiB, 512MB, or a number of GB.

    A tenant above its limit loses its oldest objects within a second.
    """
    body = json.dumps({"limit_gb": limit_bytes / GIB}).encode()
    answer = call.server.json("PUT", _path(cache_salt), body=body)
    if call.as_json:
        print_json(answer)
    else:
        say(f"{answer['cache_salt']} may hold {size(answer['limit_gb'] * GIB)} in each tier")
        _note_without_effect(call)
    return OK


@quota.command("delete")
@salt_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@remote
def delete_quota(call: Call, cache_salt: str, yes: bool) -> int:
    """Remove the limit of a tenant: its data goes where quotas act.

    Asks first when it runs on a terminal.
    """
    question = f"Where quotas act, {cache_salt!r} loses all its data within a second. Delete its quota?"
    if not yes and sys.stdin.isatty() and not click.confirm(question, err=True):
        note("nothing was changed")
        return REFUSED
    answer = call.server.json("DELETE", _path(cache_salt))
    if call.as_json:
        print_json(answer)
    else:
        was_there = answer["status"] == "removed"
        say(f"the quota of {cache_salt} is removed" if was_there else f"{cache_salt} had no quota")
    return OK


def _path(cache_salt: str) -> str:
    return f"/quota/{quote(cache_salt or EMPTY_SALT, safe='')}"


def _cells(user: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    limit, used = user["limit_gb"] * GIB, user["current_usage_gb"] * GIB
    in_l1, in_l2 = (user.get(f"{tier}_usage_gb", 0.0) * GIB for tier in ("l1", "l2"))
    return size(limit), size(used), percent(used, limit), size(in_l1), size(in_l2)


def _note_without_effect(call: Call) -> None:
    """Says so when limits do not act; a server that does not tell is no failure of a command that succeeded."""
    try:
        quotas = call.server.get("/status").get("quotas", {})
    except CliError:
        return
    if not quotas.get("enforced") or quotas.get("unregistered_suspended_because"):
        note(quota_line(quotas))
