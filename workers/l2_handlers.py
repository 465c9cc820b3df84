"""What the commands about L2 adapters do, and what is published about the adapters."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from contract.commands import ControlScrub, DeleteKeys, ListKeys, Reconfigure
from contract.mask_text import mask_text
from contract.object_keys import EncodedKey
from engine.errors import NoL2Adapter, UnknownL2Adapter
from engine.l2.reconfigure import ReconfigureError
from engine.l2.reconfiguring import reconfigure, statuses
from engine.movement.second_tier import SecondTier
from engine.object_key import ObjectKey, key_from_json, key_to_json
from workers.errors import CommandRefused
from workers.slow_commands import Lane

MAX_WORDS = 500


def describe_adapters(l2: SecondTier) -> dict[str, Any]:
    """The snapshot `adapters`: all of them, and those that can be changed at runtime with what they are now."""
    return {"adapters": l2.adapters(), "reconfigurable": statuses(l2.tiers)}


def delete_keys(l2: SecondTier, command: DeleteKeys) -> dict[str, Any]:
    """A failure of the storage is part of the answer: what was deleted before it is deleted."""
    with _refusals():
        result = l2.delete_keys(command.adapter, [object_key(key) for key in command.keys])
    reply: dict[str, Any] = {"adapter": result.adapter, "deleted": result.deleted, "ok": not result.error}
    return {**reply, "error": mask_text(result.error)} if result.error else reply


def list_keys(l2: SecondTier, command: ListKeys) -> dict[str, Any]:
    with _refusals():
        tier = l2.find(command.adapter)
        page = l2.listings.page(
            tier, model_name=command.model_name, page_size=command.page_size, token=command.page_token
        )
    entries = [{"key": key_to_json(key), "size_bytes": size} for key, size in page.entries]
    shared = {"shared": tier.spec.shared}
    return {"adapter": tier.type_name, **shared, "entries": entries, "next_page_token": page.next_token}


def control_scrub(l2: SecondTier, command: ControlScrub) -> dict[str, Any]:
    verbs = {"start": l2.start_scrub, "stop": l2.stop_scrub, "state": l2.scrub_state}
    with _refusals():
        return verbs[command.action](command.adapter)


def change_adapter(l2: SecondTier, command: Reconfigure) -> dict[str, Any]:
    """A refusal is an answer too, since it has fields of its own."""
    try:
        body = reconfigure(l2.tiers, command.backend, command.operation, command.adapter_index, command.fields)
    except ReconfigureError as error:
        return {"refused": error.code, "message": str(error), "fields": error.fields}
    return {"body": body}


def lane_of(l2: SecondTier, op: str, adapter: str | None) -> Lane:
    """That of the adapter's storage; where there is no such adapter the command says so soon enough."""
    try:
        return Lane(f"l2-{l2.find(adapter).label}", is_storage=True)
    except (NoL2Adapter, UnknownL2Adapter):
        return Lane(op)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except NoL2Adapter as error:
        raise CommandRefused("unavailable", str(error)) from error
    except UnknownL2Adapter as error:
        raise CommandRefused("not_found", str(error)) from error
    except OSError as error:
        raise CommandRefused("unavailable", f"the storage failed: {mask_text(str(error))[:MAX_WORDS]}") from error


def object_key(key: EncodedKey) -> ObjectKey:
    """The key as the engine has it."""
    return key_from_json(key._asdict())
