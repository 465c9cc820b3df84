"""The queue of commands, the web tier's end: submit, wait, raise what went wrong.

One stream with one consumer group (the other end is in command_taker.py). An entry stays in the stream until it is
answered, so the stream's length is what is waiting and running. Full means refused, never trimmed.

reply            the caller gets
---------------  --------------------------
ok               the result
expired          DeadlinePassed
outcome_unknown  OutcomeUnknown
busy             QueueFull
any other        CommandFailed with that code
"""

import json
import time
import uuid
from typing import Any, cast

import redis

from contract.commands import Command
from contract.errors import (
    CommandFailed,
    DeadlinePassed,
    EngineAway,
    OutcomeUnknown,
    QueueFull,
    RedisAway,
)
from contract.keys import SEEN_TTL_S, Keys
from contract.redis_client import describe

EXPIRED = "expired"
OUTCOME_UNKNOWN = "outcome_unknown"
BUSY = "busy"

RETRY_AFTER_S = 1.0
#: The longest block of one wait. Open the blocking client with it, so that a silent Redis is noticed in time.
WAIT_SLICE_S = 0.5

# One step: a seen id is not added again, a queue without an engine or without room refuses, else XADD with the
# deadline in Redis's time. The bytes are asked of Redis, because a counter of our own could drift.
# KEYS: commands, command:ID, engine.
# ARGV: id, op, body, time in ms, issuer, trace, max length, max bytes, ttl of the seen marker in s
_SUBMIT = """
if redis.call('EXISTS', KEYS[2]) == 1 then return {'ok', ''} end
local engine = redis.call('HMGET', KEYS[3], 'state', 'error')
if engine[1] ~= 'ready' then return {'away', engine[1] or 'missing', engine[2] or ''} end
local length = redis.call('XLEN', KEYS[1])
if length >= tonumber(ARGV[7]) then
  return {'full', length .. ' commands are waiting or running, at most ' .. ARGV[7] .. ' may'}
end
if length > 0 then
  local bytes = redis.call('MEMORY', 'USAGE', KEYS[1], 'SAMPLES', '0') or 0
  if bytes + #ARGV[3] > tonumber(ARGV[8]) then
    return {'full', bytes .. ' bytes of commands are waiting or running, at most ' .. ARGV[8] .. ' may'}
  end
end
local now = redis.call('TIME')
local deadline = now[1] + now[2] / 1000000 + ARGV[4] / 1000
redis.call('SET', KEYS[2], 'seen', 'EX', ARGV[9])
redis.call('XADD', KEYS[1], '*', 'id', ARGV[1], 'op', ARGV[2], 'body', ARGV[3],
  'deadline', string.format('%.3f', deadline), 'issuer', ARGV[5], 'trace', ARGV[6])
return {'ok', ''}
"""


class CommandSubmitter:
    """Gives commands to the engine and waits for their replies. Any thread may call; it holds no state of its own.

    `client` is for calls that answer at once; `blocking_client` is opened with a block of WAIT_SLICE_S.
    """

    def __init__(
        self, client: redis.Redis, blocking_client: redis.Redis, keys: Keys, max_length: int, max_bytes: int
    ) -> None:
        self._client = client
        self._blocking = blocking_client
        self._keys = keys
        self._max_length = max_length
        self._max_bytes = max_bytes
        self._script = client.register_script(_SUBMIT)

    def call(
        self, command: Command, *, issuer: str = "", trace: str = "", command_id: str | None = None
    ) -> dict[str, Any]:
        """The engine's result. An id given again is not run again: the call waits for the first one's reply.

        Raises RedisAway, EngineAway, QueueFull, DeadlinePassed, OutcomeUnknown, CommandFailed.
        """
        command_id = command_id or uuid.uuid4().hex
        give_up_at = time.monotonic() + command.timeout_s
        self._submit(command, command_id, issuer, trace)
        return _result_of(self._wait(command, command_id, give_up_at))

    def _submit(self, command: Command, command_id: str, issuer: str, trace: str) -> None:
        body = command.encode()
        if len(body) > self._max_bytes:
            raise CommandFailed("bad_request", f"{command.op}: a body of {len(body)} bytes, at most {self._max_bytes}")
        keys = [self._keys.commands, self._keys.command(command_id), self._keys.engine]
        arguments = [command_id, command.op, body, int(command.timeout_s * 1000), issuer, trace]
        limits = [self._max_length, self._max_bytes, SEEN_TTL_S]
        answer = self._submit_once_more_if_cut_off(keys, [*arguments, *limits])
        if answer[0] == "away":
            raise EngineAway(answer[1], answer[2])
        if answer[0] == "full":
            raise QueueFull(answer[1], RETRY_AFTER_S)

    def _submit_once_more_if_cut_off(self, keys: list[str], arguments: list[Any]) -> list[str]:
        """The seen marker makes a second try safe; a connection cut in the first one (a Redis restart) is common."""
        try:
            return cast(list[str], self._script(keys, arguments))
        except redis.TimeoutError as error:
            raise RedisAway(describe(error)) from error
        except redis.ConnectionError:
            pass
        except redis.RedisError as error:
            raise RedisAway(describe(error)) from error
        try:
            return cast(list[str], self._script(keys, arguments))
        except redis.RedisError as error:
            raise RedisAway(describe(error)) from error

    def _wait(self, command: Command, command_id: str, give_up_at: float) -> dict[str, Any]:
        key = self._keys.reply(command_id)
        while (remaining_s := give_up_at - time.monotonic()) > 0:
            try:
                # A block of 0 would be for ever.
                popped = self._blocking.blpop([key], timeout=max(0.01, min(WAIT_SLICE_S, remaining_s)))
            except redis.RedisError as error:
                raise RedisAway(f"{describe(error)}; {command.op} may still be done") from error
            if popped is not None:
                return cast(dict[str, Any], json.loads(cast(list[str], popped)[1]))
        raise DeadlinePassed(f"{command.op}: no reply within {command.timeout_s:g} s")


def _result_of(reply: dict[str, Any]) -> dict[str, Any]:
    if reply.get("ok"):
        return cast(dict[str, Any], reply["result"])
    code, message = str(reply.get("code", "internal")), str(reply.get("message", ""))
    if code == EXPIRED:
        raise DeadlinePassed(message)
    if code == OUTCOME_UNKNOWN:
        raise OutcomeUnknown(message)
    if code == BUSY:
        raise QueueFull(message, RETRY_AFTER_S)
    raise CommandFailed(code, message)
