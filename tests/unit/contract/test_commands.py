"""Commands as text: what is written can be read, and nothing else can."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.commands import (
    COMMANDS,
    CancelPrefetch,
    ChecksumBlocks,
    ClearCache,
    DeleteQuota,
    PingEngine,
    SetQuota,
    StartPrefetch,
    decode,
)
from contract.errors import BadCommand
from contract.keys import SEEN_TTL_S


@pytest.mark.parametrize(
    "command",
    [
        PingEngine(),
        ClearCache(force=True),
        SetQuota("", 0),
        SetQuota("Zoë / 東京", 2**60),
        DeleteQuota("a"),
        ChecksumBlocks(7, (3, 1, 1), 2, True),
        StartPrefetch("0123456789abcdef" * 2),
        CancelPrefetch("0123456789abcdef" * 2),
    ],
)
def test_what_is_encoded_is_decoded_to_the_same(command: Any) -> None:
    assert decode(command.op, command.encode()) == command


def test_every_command_is_tried_above_and_named_once() -> None:
    assert set(COMMANDS) == {
        "engine.ping", "cache.clear", "quota.set", "quota.delete", "kvcache.check", "prefetch.start", "prefetch.cancel",
    }  # fmt: skip


@pytest.mark.parametrize("command", list(COMMANDS.values()))
def test_the_seen_marker_outlives_the_command(command: Any) -> None:
    assert 0 < command.timeout_s < SEEN_TTL_S / 2


@pytest.mark.parametrize(
    ("op", "body", "complaint"),
    [
        ("quota.sell", {}, "unknown command"),
        ("quota.set", {"cache_salt": "a"}, "exactly the fields"),
        ("quota.set", {"cache_salt": "a", "limit_bytes": 1, "more": 1}, "exactly the fields"),
        ("quota.set", ["a", 1], "exactly the fields"),
        ("quota.set", {"cache_salt": 1, "limit_bytes": 1}, "cache_salt must be a text"),
        ("quota.set", {"cache_salt": "a" * 1025, "limit_bytes": 1}, "cache_salt must be a text of at most 1024"),
        ("quota.set", {"cache_salt": "a", "limit_bytes": True}, "limit_bytes must be an integer"),
        ("quota.set", {"cache_salt": "a", "limit_bytes": 1.0}, "limit_bytes must be an integer"),
        ("quota.set", {"cache_salt": "a", "limit_bytes": -1}, "limit_bytes must be 0 or more"),
        ("quota.set", {"cache_salt": "a", "limit_bytes": 2**63}, "limit_bytes must be an integer of 64 bits"),
        ("cache.clear", {"force": "yes"}, "force must be true or false"),
        ("kvcache.check", {"instance_id": 0, "block_ids": [True], "chunk_size": 1, "layerwise": False}, "block_ids"),
        ("kvcache.check", {"instance_id": 0, "block_ids": 3, "chunk_size": 1, "layerwise": False}, "block_ids"),
        ("prefetch.start", {"request_id": "x" * 32}, "request_id must be the id of a prefetch job"),
        ("prefetch.cancel", {"request_id": None}, "request_id must be the id of a prefetch job"),
    ],
)
def test_a_body_of_another_shape_is_refused(op: str, body: object, complaint: str) -> None:
    with pytest.raises(BadCommand, match=complaint):
        decode(op, json.dumps(body))


@given(op=st.sampled_from([*COMMANDS, "x"]), body=st.text(max_size=200))
def test_any_text_is_read_or_refused(op: str, body: str) -> None:
    try:
        command = decode(op, body)
    except BadCommand:
        return
    assert command.op == op
