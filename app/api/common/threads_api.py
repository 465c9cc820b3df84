"""GET /threads: what each Python thread is doing, of the process that answers and of the engine."""

import os

from flask import Blueprint, Response
from marshmallow import fields

from app.backend import current_backend
from app.declarations import PLAIN, answers
from app.errors import plain_text
from app.policy import TEXT, Level, policy
from app.request_schema import LarderSchema, QueryInteger, Text, takes_query
from contract.commands import MAX_INTEGER, ShowThreads
from contract.errors import ContractError
from contract.thread_stacks import process_name, thread_blocks

router = Blueprint("threads", __name__)

MAX_NAME = 200
EXAMPLE = """\
=== Process: larder-web-0 (pid 4711) ===

Thread: <Thread(ThreadPoolExecutor-0_0, started 140037265110720)>
Stack trace:
  File "/opt/larder/app/api/common/threads_api.py", line 33, in threads
=== Thread Summary ===
Total threads: 1
"""


class ThreadsQuery(LarderSchema):
    name: fields.Field = Text(load_default="", metadata={"description": "Part of a thread's name, in any case."})
    thread_id: fields.Field = QueryInteger(load_default=None, metadata={"description": "A thread's number."})


@router.get("/threads")
@policy(Level.ADMIN, TEXT)
@takes_query(ThreadsQuery)
@answers(200, str, example=EXAMPLE, content=PLAIN)
def threads(name: str, thread_id: int | None) -> Response:
    """Live threads with their stacks, of the process that answers and of the engine. Each process under its name, and
    how many threads there are; no match is no error."""
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
