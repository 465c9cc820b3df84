"""The queue of commands, the web tier's end: submit, wait, raise what went wrong.

One stream with one consumer group (the other end is in command_taker.py). An entry stays in the stream until it is
answered, so the stream's length is what is waiting and running. Full means refused, never trimmed.

reply            the caller gets
---------------  --------------------------
ok               the result
away             EngineAway
full, busy       QueueFull
expired          DeadlinePassed
outcome_unknown  OutcomeUnknown
any other        CommandFailed with that code

A repeatable command is submitted and waited for in one round trip. One that must not run twice takes two, so that a
connection cut while it waits is told from one cut before: only then may it be submitted once more.
"""

import json
import os
import time
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
from contract.held_connections import HeldConnections
from contract.keys import SEEN_TTL_S, Keys
from contract.redis_client import describe

EXPIRED = "expired"
OUTCOME_UNKNOWN = "outcome_unknown"
BUSY = "busy"
AWAY = "away"
FULL = "full"

RETRY_AFTER_S = 1.0
#: The longest block of one wait. Open the blocking client with it, so that a silent Redis is noticed in time.
WAIT_SLICE_S = 0.5

# One step: a seen id is not added again, a queue without an engine or without room refuses, else XADD with the
# deadline in Redis's time. The bytes are asked of Redis, because a counter of our own could drift.
# Answers nil, or the refusal as the JSON of a reply; who asks for it finds the refusal in the reply list instead.
# KEYS: commands, command:ID, engine, reply:ID.
# ARGV: id, op, body, time in ms, issuer, trace, max length, max bytes, ttl of the seen marker in s, 'answer' or 'push'
_SUBMIT = """
local function refuse(refusal)
  refusal['ok'] = false
  local text = cjson.encode(refusal)
  if ARGV[10] == 'answer' then return text end
  redis.call('RPUSH', KEYS[4], text)
  redis.call('EXPIRE', KEYS[4], 1)
  return false
end
if redis.call('EXISTS', KEYS[2]) == 1 then return false end
local engine = redis.call('HMGET', KEYS[3], 'state', 'error')
if engine[1] ~= 'ready' then
  return refuse({code = 'away', state = engine[1] or 'missing', message = engine[2] or ''})
end
local length = redis.call('XLEN', KEYS[1])
if length >= tonumber(ARGV[7]) then
  return refuse({code = 'full', message = length .. ' commands are waiting or running, at most ' .. ARGV[7] .. ' may'})
end
if length > 0 then
  local bytes = redis.call('MEMORY', 'USAGE', KEYS[1], 'SAMPLES', '0') or 0
  if bytes + #ARGV[3] > tonumber(ARGV[8]) then
    local text = bytes .. ' bytes of commands are waiting or running, at most ' .. ARGV[8] .. ' may'
    return refuse({code = 'full', message = text})
  end
end
local now = redis.call('TIME')
local deadline = now[1] + now[2] / 1000000 + ARGV[4] / 1000
redis.call('SET', KEYS[2], 'seen', 'EX', ARGV[9])
redis.call('XADD', KEYS[1], '*', 'id', ARGV[1], 'op', ARGV[2], 'body', ARGV[3],
  'deadline', string.format('%.3f', deadline), 'issuer', ARGV[5], 'trace', ARGV[6])
return false
"""


class CommandSubmitter:
    """Gives commands to the engine and waits for their replies. Any thread may call; nothing is kept between calls.

    `client` is for calls that answer at once; `blocking_client` is opened with a block of WAIT_SLICE_S.
    """

    def __init__(
        self, client: redis.Redis, blocking_client: redis.Redis, keys: Keys, max_length: int, max_bytes: int
    ) -> None:
        self._connections = HeldConnections(blocking_client)
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
        command_id = command_id or os.urandom(16).hex()
        body = command.encode()
        if len(body) > self._max_bytes:
            raise CommandFailed("bad_request", f"{command.op}: a body of {len(body)} bytes, at most {self._max_bytes}")
        give_up_at = time.monotonic() + command.timeout_s
        name = self._keys.command(command_id)
        keys = [self._keys.commands, name, self._keys.engine, self._keys.reply(command_id)]
        ours = [command_id, command.op, body, int(command.timeout_s * 1000), issuer, trace]
        arguments = [*ours, self._max_length, self._max_bytes, SEEN_TTL_S]
        reply = self._ask_at_once(keys, arguments, command) if command.repeatable else None
        if reply is None:
            # Not asked yet, or it takes longer: an id that Redis has seen is not added again.
            reply = self._submit(command, keys, arguments) or self._wait(command, keys[3], give_up_at)
        return _result_of(reply)

    def _ask_at_once(self, keys: list[str], arguments: list[Any], command: Command) -> dict[str, Any] | None:
        """Submits and waits a while for the reply or the refusal, both of which come in the reply list."""
        commands = [
            ("CLIENT", "REPLY", "SKIP"),
            # In full: nobody reads the answer, so a Redis that does not know it by its digest could not say so.
            ("EVAL", _SUBMIT, len(keys), *keys, *arguments, "push"),
            ("BLPOP", keys[3], min(WAIT_SLICE_S, command.timeout_s)),
        ]
        try:
            popped = self._exchange_once_more_if_cut_off(commands)
        except redis.RedisError as error:
            raise _cut_off(command, error) from error
        return None if popped is None else cast(dict[str, Any], json.loads(popped[1]))

    def _exchange_once_more_if_cut_off(self, commands: list[tuple[Any, ...]]) -> list[str] | None:
        """The command is repeatable, so a second try is safe; a connection cut before the first (a Redis restart) is
        common."""
        try:
            return cast(list[str] | None, self._connections.exchange(commands, 1)[0])
        except redis.TimeoutError:
            raise
        except redis.ConnectionError:
            return cast(list[str] | None, self._connections.exchange(commands, 1)[0])

    def _submit(self, command: Command, keys: list[str], arguments: list[Any]) -> dict[str, Any] | None:
        """The refusal, or None when the command is in the queue. The seen marker makes a second try safe."""
        try:
            answer = self._script(keys, [*arguments, "answer"])
        except redis.TimeoutError as error:
            raise _cut_off(command, error) from error
        except redis.ConnectionError:
            answer = self._submit_again(command, keys, arguments)
        except redis.RedisError as error:
            raise RedisAway(describe(error)) from error
        return None if answer is None else cast(dict[str, Any], json.loads(cast(str, answer)))

    def _submit_again(self, command: Command, keys: list[str], arguments: list[Any]) -> object:
        try:
            return self._script(keys, [*arguments, "answer"])
        except redis.RedisError as error:
            raise _cut_off(command, error) from error

    def _wait(self, command: Command, key: str, give_up_at: float) -> dict[str, Any]:
        while (remaining_s := give_up_at - time.monotonic()) > 0:
            try:
                # A block of 0 would be for ever.
                (popped,) = self._connections.exchange([("BLPOP", key, max(0.01, min(WAIT_SLICE_S, remaining_s)))], 1)
            except redis.RedisError as error:
                raise _cut_off(command, error) from error
            if popped is not None:
                return cast(dict[str, Any], json.loads(popped[1]))
        raise DeadlinePassed(f"{command.op}: no reply within {command.timeout_s:g} s")


def _cut_off(command: Command, error: redis.RedisError) -> RedisAway:
    """Redis may have the command already, so it may take effect although its caller gets an error."""
    return RedisAway(f"{describe(error)}; {command.op} may still be done")


def _result_of(reply: dict[str, Any]) -> dict[str, Any]:
    if reply.get("ok"):
        return cast(dict[str, Any], reply["result"])
    code, message = str(reply.get("code", "internal")), str(reply.get("message", ""))
    if code == AWAY:
        raise EngineAway(str(reply.get("state")), message)
    if code == EXPIRED:
        raise DeadlinePassed(message)
    if code == OUTCOME_UNKNOWN:
        raise OutcomeUnknown(message)
    if code in (FULL, BUSY):
        raise QueueFull(message, RETRY_AFTER_S)
    raise CommandFailed(code, message)
