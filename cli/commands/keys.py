"""`larder keys`: what an L2 adapter holds, page by page."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import click

from cli.errors import OK
from cli.options import Call, adapter_option, remote
from cli.render import note, print_json, print_table, say
from cli.text import size

MAX_PAGE = 1000
DEFAULT_LIMIT = 1000


@click.command()
@click.option("--model", "model_name", metavar="NAME", default=None, help="Only keys of exactly this model.")
@adapter_option
@click.option(
    "--limit",
    type=click.IntRange(0),
    default=DEFAULT_LIMIT,
    show_default=True,
    metavar="N",
    help="How many keys at most; 0 for all.",
)
@remote
def keys(call: Call, model_name: str | None, adapter: str | None, limit: int) -> int:
    """The keys that an L2 adapter holds. With --json one object per line.

    The listing is not a snapshot: what is written or deleted meanwhile may be in it or not.
    """
    shown = 0
    for entries, has_more in pages(call, adapter, model_name, limit):
        if call.as_json:
            for entry in entries:
                print_json(entry)
        elif entries:
            print_table(KEY_COLUMNS, map(key_row, entries), with_heading=shown == 0, fold=False)
        sys.stdout.flush()
        shown += len(entries)
        if limit and shown >= limit and has_more:
            note(f"there may be more than these {shown:,} keys; --limit 0 lists all")
    if not shown and not call.as_json:
        say("no keys")
    return OK


def pages(
    call: Call, adapter: str | None, model_name: str | None, limit: int = 0
) -> Iterator[tuple[list[dict[str, Any]], bool]]:
    """Pages of entries, at most `limit` in all (0: no limit), and whether more may follow. Some may be empty."""
    token, left = None, limit
    while True:
        page_size = min(MAX_PAGE, left) if limit else MAX_PAGE
        query = {"adapter": adapter, "model_name": model_name, "page_size": page_size, "page_token": token}
        page = call.server.get("/l2/keys", query)
        entries, token = page["entries"], page["next_page_token"]
        left -= len(entries)
        yield entries, token is not None
        if token is None or (limit and left <= 0):
            return


KEY_COLUMNS = ("chunk hash", ">size", "model", "rank", ">group", "tenant")


def key_row(entry: Mapping[str, Any]) -> tuple[object, ...]:
    """One row for KEY_COLUMNS."""
    key = entry["key"]
    return (
        key["chunk_hash_hex"],
        size(entry["size_bytes"]),
        key["model_name"],
        rank_text(key["kv_rank"]),
        key["object_group_id"],
        key["cache_salt"] or "_default",
    )


def rank_text(kv_rank: int) -> str:
    """Rank and world size, which are packed into one number; the number itself where it is none of that kind."""
    if not 0 <= kv_rank < 1 << 32:
        return str(kv_rank)
    return f"{kv_rank >> 16 & 0xFF} of {kv_rank >> 24 & 0xFF}"
