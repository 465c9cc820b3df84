"""GET /threads: what each Python thread is doing, of the process that answers and of the engine."""

import os

from flask import Blueprint, Response
from marshmallow import fields

from app.backend import current_backend
from app.errors import plain_text
from app.policy import TEXT, Level, policy
from app.request_schema import LarderSchema, QueryInteger, Text, takes_query
from contract.commands import MAX_INTEGER, ShowThreads
from contract.errors import ContractError
from contract.thread_stacks import process_name, thread_blocks

router = Blueprint("threads", __name__)

MAX_NAME = 200


class ThreadsQuery(LarderSchema):
    name: fields.Field = Text(load_default="")
    thread_id: fields.Field = QueryInteger(load_default=None)


@router.get("/threads")
@policy(Level.ADMIN, TEXT)
@takes_query(ThreadsQuery)
def threads(name: str, thread_id: int | None) -> Response:
    """Live threads with their stacks, each process under its name, and their number. No match is no error."""
    own = thread_blocks(name, thread_id)
    sections, count, note = [_section(process_name(), own)], len(own), ""
    try:
        if len(name) <= MAX_NAME and abs(thread_id or 0) <= MAX_INTEGER:
            engine = current_backend().call(ShowThreads(name, thread_id))
            if engine["pid"] != os.getpid():
                sections.append(_section(engine["process"], engine["blocks"]))
                count += len(engine["blocks"])
    except ContractError as error:
        note = f"The engine's threads are missing here: {str(error) or type(error).__name__}\n\n"
    return plain_text("\n".join(sections) + f"\n{note}=== Thread Summary ===\nTotal threads: {count}\n")


def _section(process: str, blocks: list[str]) -> str:
    return f"=== Process: {process} ===\n\n" + "\n".join(blocks)
