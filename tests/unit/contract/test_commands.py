"""Commands as text: what is written can be read, and nothing else can."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.commands import (
    COMMANDS,
    CancelPrefetch,
    ChangeSettings,
    ChecksumBlocks,
    ChecksumSlots,
    ClearCache,
    ControlScrub,
    CountChunks,
    DeleteKeys,
    DeleteL1Keys,
    DeleteQuota,
    FindL1Objects,
    ListKeys,
    MoveMockTokens,
    PingEngine,
    PublishMetrics,
    Reconfigure,
    RunScript,
    SetQuota,
    SetSwitch,
    ShowLoggers,
    ShowThreads,
    StartPrefetch,
    decode,
)
from contract.errors import BadCommand
from contract.keys import SEEN_TTL_S
from contract.object_keys import EncodedKey


@pytest.mark.parametrize(
    "command",
    [
        PingEngine(),
        ShowThreads("", None),
        ShowThreads("loop", 140037265110720),
        ShowLoggers(),
        PublishMetrics(),
        RunScript("result = '東京'"),
        ClearCache(force=True),
        SetQuota("", 0),
        SetQuota("Zoë / 東京", 2**60),
        DeleteQuota("a"),
        ChecksumBlocks(7, (3, 1, 1), 2, True),
        ChecksumSlots(None, (3, 1, 1), None, False),
        ChecksumSlots(7, (), 2, True),
        ChangeSettings({"eviction_ratio": 0.5, "log_level": "debug", "odd": None}),
        SetSwitch("bypass", "0-fs", True),
        CountChunks("reset"),
        StartPrefetch("0123456789abcdef" * 2),
        CancelPrefetch("0123456789abcdef" * 2),
        DeleteKeys(None, ()),
        DeleteKeys("fs", (EncodedKey("00ff", "m/東京", 16777472), EncodedKey("", "", -1, 2, "alice"))),
        DeleteL1Keys((EncodedKey("00ff", "m/東京", 16777472),), True),
        FindL1Objects("00ff"),
        MoveMockTokens("retrieve", 0, 512),
        ListKeys(None, None, 1, None),
        ListKeys("", "m", 5000, "abc"),
        ControlScrub("dax", "start"),
        Reconfigure("dax", "add", -1, {"device_path": "/x", "size": "1GiB", "more": [None, 1.5]}),
    ],
)
def test_what_is_encoded_is_decoded_to_the_same(command: Any) -> None:
    assert decode(command.op, command.encode()) == command


def test_every_command_is_tried_above_and_named_once() -> None:
    assert set(COMMANDS) == {
        "engine.ping", "cache.clear", "quota.set", "quota.delete", "kvcache.check", "prefetch.start", "prefetch.cancel",
        "l2.delete", "l2.list", "l2.scrub", "l2.reconfigure", "engine.threads", "engine.loggers",
        "metrics.publish", "script.run", "engine.settings", "engine.switch", "engine.chunks", "kvcache.slots",
        "l1.delete", "l1.find", "kvcache.mock",
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
        ("l1.find", {"hash_prefix": "00f"}, "hash_prefix must be 4 to 128 lower-case"),
        ("l1.find", {"hash_prefix": "00fF"}, "hash_prefix must be 4 to 128 lower-case"),
        ("cache.clear", {"force": "yes"}, "force must be true or false"),
        ("kvcache.check", {"instance_id": 0, "block_ids": [True], "chunk_size": 1, "layerwise": False}, "block_ids"),
        ("kvcache.check", {"instance_id": 0, "block_ids": 3, "chunk_size": 1, "layerwise": False}, "block_ids"),
        ("l2.delete", {"adapter": 1, "keys": []}, "adapter must be a text"),
        ("l2.delete", {"adapter": None, "keys": [["", "m", 1, 0, ""]] * 10_001}, "a list of at most 10000 keys"),
        ("l2.delete", {"adapter": None, "keys": [["", "m", 1, 0]]}, "keys must be lists of chunk_hash_hex"),
        ("l2.delete", {"adapter": None, "keys": [["", "m", 1, -1, ""]]}, "keys must be 0 or more"),
        ("l2.list", {"adapter": None, "model_name": None, "page_size": 5001, "page_token": None}, "from 1 to 5000"),
        ("l2.scrub", {"adapter": None, "action": "polish"}, "action must be one of start, stop, state"),
        ("l2.reconfigure", {"backend": "d", "operation": "x", "adapter_index": 0, "fields": []}, "fields must be an"),
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
