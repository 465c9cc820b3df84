"""The queue of commands, the engine's end: take, begin, answer; and what to do when Redis or the engine went away.

delivery               what happens
---------------------  ------------------------------------------------------------------------------------
first                  handed out; begin() says whether to run it
again, same process    skipped while it is in hand; an answer that could not be sent is sent, nothing runs again
again, next process    handed out, at most 3 deliveries in all; one that must not run twice and had begun is not run
past its deadline      not run: dead letter, reply `expired`
given up               dead letter with the reason, and an error reply

An entry leaves the stream in the same transaction that writes its reply, so none is lost without an answer.
"""

import json
import logging
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

import redis

from contract.command_queue import EXPIRED, OUTCOME_UNKNOWN
from contract.commands import Command, decode
from contract.errors import BadCommand, RedisAway
from contract.keys import DEAD_MAX_ENTRIES, REPLY_TTL_S, SEEN_TTL_S, Keys
from contract.redis_client import describe

logger = logging.getLogger(__name__)

GROUP = "engine"
CONSUMER = "engine"
MAX_DELIVERIES = 3
#: A dead letter shows this many characters of the body.
DEAD_BODY_CHARACTERS = 4096
#: Errors after which the group must be made again: it or the whole stream was removed.
LOST_GROUP = ("NOGROUP", "UNBLOCKED")

# Whether a delivery may run, by Redis's clock. What must not run twice is marked as started in the same step.
# KEYS: command:ID. ARGV: deadline in s, 'once' or 'again', the mark, a mark to overlook or '', ttl in s
_BEGIN = """
if ARGV[2] == 'once' then
  local mark = redis.call('GET', KEYS[1])
  if mark and string.sub(mark, 1, 7) == 'started' and mark ~= ARGV[4] then return {'started', mark} end
end
local now = redis.call('TIME')
local late = now[1] + now[2] / 1000000 - tonumber(ARGV[1])
if late > 0 then return {'expired', string.format('%.1f', late)} end
if ARGV[2] == 'once' then redis.call('SET', KEYS[1], ARGV[3], 'EX', ARGV[5]) end
return {'run', ''}
"""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What is to be written for an entry; `reason` makes it a dead letter too."""

    text: str
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Delivery:
    """One command in hand. Call begin(), run it if that says so, then exactly one of reply and fail."""

    taker: "CommandTaker"
    entry_id: str
    fields: dict[str, str]
    command: Command
    deliveries: int

    @property
    def command_id(self) -> str:
        return self.fields["id"]

    def begin(self) -> bool:
        """Whether to run it now; False means that it is already answered. Raises RedisAway: it comes again later."""
        return self.taker.begin(self)

    def reply(self, result: dict[str, Any]) -> None:
        """Sends the result, or keeps it until Redis is back. Any thread may call."""
        try:
            text = json.dumps({"ok": True, "result": result})
        except (TypeError, ValueError) as error:
            logger.exception("the result of command %s is no JSON", self.command_id)
            self.fail("internal", f"the result is no JSON: {error}")
            return
        self.taker.answer(self.entry_id, self.fields, _Answer(text), "replied")

    def fail(self, code: str, message: str) -> None:
        """Sends a failure, or keeps it until Redis is back. Any thread may call."""
        self.taker.answer(self.entry_id, self.fields, _Answer(_failure(code, message)), "failed")


class CommandTaker:
    """Takes commands for one engine boot. take() is for one thread; deliveries may be answered from any.

    `blocking_client` is opened with the longest `block_s` that take() is called with. `boot_id` names this process
    in the marks of commands that must not run twice.
    """

    def __init__(self, client: redis.Redis, blocking_client: redis.Redis, keys: Keys, boot_id: str) -> None:
        self._client = client
        self._blocking = blocking_client
        self._keys = keys
        self._boot_id = boot_id
        self._begin_script = client.register_script(_BEGIN)
        self._recovery_is_due = threading.Event()
        self._recovery_is_due.set()
        self._recover_after: str | None = None  # the search for pending entries goes on behind it; None = done
        self._lock = threading.Lock()
        self._in_hand: set[str] = set()
        self._unsent: dict[str, tuple[dict[str, str], _Answer]] = {}
        self._never_ran: set[str] = set()
        self._counts: Counter[str] = Counter()

    def counts(self) -> dict[str, int]:
        """How many were taken, replied, failed, expired, dead; for people and metrics."""
        with self._lock:
            return {name: self._counts[name] for name in ("taken", "replied", "failed", "expired", "dead")}

    def in_hand(self) -> int:
        """How many deliveries are not answered yet, unsent answers included."""
        with self._lock:
            return len(self._in_hand)

    def take(self, block_s: float) -> Delivery | None:
        """The next command, or None after `block_s` or after one that needed no running. Raises RedisAway."""
        try:
            if self._recovery_is_due.is_set():
                self._recovery_is_due.clear()
                self._make_group()
                self._recover_after = "-"
            self._send_unsent()
            if self._recover_after is not None:
                return self._next_pending()
            return self._next_new(block_s)
        except redis.ResponseError as error:
            self.recover()
            if str(error).startswith(LOST_GROUP):
                logger.warning("the queue's consumer group is gone (%s), making it again", describe(error))
                return None
            raise RedisAway(describe(error)) from error
        except redis.RedisError as error:
            self.recover()
            raise RedisAway(describe(error)) from error

    def recover(self) -> None:
        """Makes the next take() look again for what was delivered and not answered."""
        self._recovery_is_due.set()

    def begin(self, delivery: Delivery) -> bool:
        """See Delivery.begin."""
        mark = f"started {self._boot_id} {delivery.entry_id}"
        with self._lock:
            overlook = mark if delivery.entry_id in self._never_ran else ""
        mode = "again" if delivery.command.repeatable else "once"
        arguments: list[str | int] = [delivery.fields["deadline"], mode, mark, overlook, SEEN_TTL_S]
        try:
            verdict, detail = cast(list[str], self._begin_script([self._keys.command(delivery.command_id)], arguments))
        except redis.RedisError as error:
            self._put_back(delivery.entry_id)
            raise RedisAway(describe(error)) from error
        with self._lock:
            self._never_ran.discard(delivery.entry_id)
        if verdict == "run":
            return True
        op = delivery.command.op
        if verdict == "expired":
            self._give_up(delivery.entry_id, delivery.fields, EXPIRED, f"{op}: taken {detail} s after its deadline")
        else:
            text = f"{op}: outcome unknown, it had begun ({detail}) and must not run twice"
            self._give_up(delivery.entry_id, delivery.fields, OUTCOME_UNKNOWN, text)
        return False

    def answer(self, entry_id: str, fields: dict[str, str], answer: _Answer, outcome: str) -> None:
        """Writes reply and dead letter and removes the entry, all or nothing; kept for later while Redis is away."""
        with self._lock:
            self._counts[outcome] += 1
        try:
            self._send(entry_id, fields, answer)
        except redis.RedisError as error:
            with self._lock:
                self._unsent[entry_id] = (fields, answer)
            logger.warning("the answer to command %s waits for Redis: %s", fields.get("id", "?"), describe(error))

    def _put_back(self, entry_id: str) -> None:
        """The delivery stays pending in Redis and is found again by the recovery that is now due."""
        with self._lock:
            self._in_hand.discard(entry_id)
            self._never_ran.add(entry_id)
        self.recover()

    def _make_group(self) -> None:
        try:
            self._client.xgroup_create(self._keys.commands, GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    def _send_unsent(self) -> None:
        with self._lock:
            waiting = list(self._unsent.items())
        for entry_id, (fields, answer) in waiting:
            self._send(entry_id, fields, answer)

    def _send(self, entry_id: str, fields: dict[str, str], answer: _Answer) -> None:
        with self._client.pipeline(transaction=True) as pipeline:
            if answer.reason:
                letter = _dead_letter(fields, answer.reason)
                pipeline.xadd(self._keys.dead, letter, maxlen=DEAD_MAX_ENTRIES, approximate=False)
            if command_id := fields.get("id"):
                pipeline.rpush(self._keys.reply(command_id), answer.text)
                pipeline.expire(self._keys.reply(command_id), REPLY_TTL_S)
            pipeline.xack(self._keys.commands, GROUP, entry_id)
            pipeline.xdel(self._keys.commands, entry_id)
            pipeline.execute()
        with self._lock:
            self._unsent.pop(entry_id, None)
            self._in_hand.discard(entry_id)

    def _next_pending(self) -> Delivery | None:
        """The next entry that was delivered and not answered, whoever it was delivered to."""
        start = "-" if self._recover_after == "-" else f"({self._recover_after}"
        found = cast(list[dict[str, Any]], self._client.xpending_range(self._keys.commands, GROUP, start, "+", 1))
        if not found:
            self._recover_after = None
            return None
        entry_id = str(found[0]["message_id"])
        self._recover_after = entry_id
        if self._has_in_hand(entry_id):
            return None
        claimed = cast(
            list[tuple[str | None, dict[str, str] | None]],
            self._client.xclaim(self._keys.commands, GROUP, CONSUMER, 0, [entry_id]),
        )
        if not claimed or not claimed[0][1]:
            self._client.xack(self._keys.commands, GROUP, entry_id)
            return None
        return self._open(entry_id, claimed[0][1], int(found[0]["times_delivered"]) + 1)

    def _next_new(self, block_s: float) -> Delivery | None:
        answer = cast(
            list[tuple[str, list[tuple[str, dict[str, str]]]]] | None,
            self._blocking.xreadgroup(
                GROUP, CONSUMER, {self._keys.commands: ">"}, count=1, block=max(1, int(block_s * 1000))
            ),
        )
        if not answer:
            return None
        entry_id, fields = answer[0][1][0]
        return None if self._has_in_hand(entry_id) else self._open(entry_id, fields, 1)

    def _has_in_hand(self, entry_id: str) -> bool:
        with self._lock:
            return entry_id in self._in_hand

    def _open(self, entry_id: str, fields: dict[str, str], deliveries: int) -> Delivery | None:
        with self._lock:
            self._in_hand.add(entry_id)
            self._counts["taken"] += 1
        if deliveries > MAX_DELIVERIES:
            reason = f"{fields.get('op', '?')}: given up after {MAX_DELIVERIES} deliveries without an answer"
            self._give_up(entry_id, fields, "internal", reason)
            return None
        try:
            command = _read(fields)
        except BadCommand as error:
            self._give_up(entry_id, fields, "bad_request", str(error))
            return None
        return Delivery(self, entry_id, fields, command, deliveries)

    def _give_up(self, entry_id: str, fields: dict[str, str], code: str, reason: str) -> None:
        logger.warning("command %s given up: %s", fields.get("id", entry_id), reason)
        outcome = "expired" if code == EXPIRED else "dead"
        self.answer(entry_id, fields, _Answer(_failure(code, reason), reason), outcome)


def _read(fields: dict[str, str]) -> Command:
    """The command of an entry; whoever can reach Redis can write one, so nothing of it is trusted."""
    if not fields.get("id"):
        raise BadCommand("the entry has no id")
    try:
        float(fields.get("deadline", ""))
    except ValueError as error:
        raise BadCommand(f"deadline {fields.get('deadline')!r} is no number") from error
    return decode(fields.get("op", ""), fields.get("body", ""))


def _failure(code: str, message: str) -> str:
    return json.dumps({"ok": False, "code": code, "message": message})


def _dead_letter(fields: dict[str, str], reason: str) -> dict[Any, Any]:
    body = fields.get("body", "")
    shown = {name: fields.get(name, "") for name in ("id", "op", "deadline", "issuer", "trace")}
    return {**shown, "reason": reason, "body": body[:DEAD_BODY_CHARACTERS], "body_bytes": str(len(body))}
