"""What the commands do that ask for single objects of L1."""

from typing import Any

from contract.commands import MAX_FOUND, FindL1Objects
from engine.engine import Engine
from engine.object_key import key_to_json


def find(engine: Engine, command: FindL1Objects) -> dict[str, Any]:
    found, has_more = engine.l1.find(command.hash_prefix, MAX_FOUND)
    entries = [
        {
            "key": key_to_json(item.key),
            "size_bytes": item.nbytes,
            "state": item.state,
            "leases": item.leases,
            "pins": item.pins,
            "to_be_written_to": engine.l2.write_back.waiting_for(item.key),
            "colder_objects": item.colder,
            "ordered_objects": item.ordered,
        }
        for item in found
    ]
    return {"entries": entries, "has_more": has_more}
