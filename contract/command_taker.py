"""The queue of commands, the engine's end: take, begin, answer; and what to do when Redis or the engine went away.

delivery               what happens
---------------------  ------------------------------------------------------------------------------------
first                  handed out; begin() says whether to run it
again, same process    skipped while it is in hand; an answer that could not be sent is sent, nothing runs again
again, next process    handed out, at most 3 deliveries in all; one that must not run twice and had begun is not run
past its deadline      not run: dead letter, reply `expired`
given up               dead letter with the reason, and an error reply
reply key of no list   dead letter with the reason; the others of its batch are answered

An entry leaves the stream in the same transaction that writes its reply, so none is lost without an answer.
Entries are read, and answers written, as many at a time as there are.
"""

import json
import logging
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import redis

from contract.command_queue import EXPIRED, OUTCOME_UNKNOWN
from contract.commands import Command, decode
from contract.errors import BadCommand, RedisAway
from contract.held_connections import HeldConnections, Words
from contract.keys import DEAD_MAX_ENTRIES, REPLY_TTL_S, SEEN_TTL_S, Keys
from contract.redis_client import describe, redis_time_s

logger = logging.getLogger(__name__)

GROUP = "engine"
CONSUMER = "engine"
MAX_DELIVERIES = 3
#: As many are read, or answered, in one round trip. A process that dies has used up one delivery of each.
BATCH = 16
#: A dead letter shows this many characters of the body.
DEAD_BODY_CHARACTERS = 4096
#: Errors after which the group must be made again: it or the whole stream was removed.
LOST_GROUP = ("NOGROUP", "UNBLOCKED")

# Whether a delivery that must not run twice may run, by Redis's clock; it is marked as started in the same step.
# KEYS: command:ID. ARGV: deadline in s, the mark, a mark to overlook or '', ttl in s
_BEGIN_ONCE = """
local mark = redis.call('GET', KEYS[1])
if mark and string.sub(mark, 1, 7) == 'started' and mark ~= ARGV[3] then return {'started', mark} end
local now = redis.call('TIME')
local late = now[1] + now[2] / 1000000 - tonumber(ARGV[1])
if late > 0 then return {'expired', string.format('%.1f', late)} end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[4])
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

    def age_s(self) -> float:
        """Seconds since it was submitted, by Redis's clock."""
        return self.taker.now_s() - float(self.fields["deadline"]) + self.command.timeout_s

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
        self._keys = keys
        self._boot_id = boot_id
        self._begin_script = client.register_script(_BEGIN_ONCE)
        self._reading = HeldConnections(blocking_client)
        self._writing = HeldConnections(client)
        self._clock_ahead_s = 0.0  # Redis's clock less ours, as of the last read
        self._recovery_is_due = threading.Event()
        self._recovery_is_due.set()
        self._recover_after: str | None = None  # the search for pending entries goes on behind it; None = done
        self._lock = threading.Lock()
        self._read: deque[tuple[str, dict[str, str]]] = deque()  # in hand, and not handed out yet
        self._in_hand: set[str] = set()
        self._unsent: dict[str, tuple[dict[str, str], _Answer]] = {}
        self._is_sending = False
        self._never_ran: set[str] = set()
        self._counts: Counter[str] = Counter()

    def counts(self) -> dict[str, int]:
        """How many were taken, replied, failed, expired, dead; for people and metrics."""
        with self._lock:
            return {name: self._counts[name] for name in ("taken", "replied", "failed", "expired", "dead")}

    def now_s(self) -> float:
        """Redis's clock, as far as the last read tells it."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) + self._clock_ahead_s

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
            if self._recover_after is not None and not self._read:
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
        verdict, detail = self._judge(delivery) if delivery.command.repeatable else self._judge_once(delivery)
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
        """Writes reply and dead letter and removes the entry, all or nothing; kept for later while Redis is away.

        While another thread is sending, that one takes this answer along with its next.
        """
        with self._lock:
            self._counts[outcome] += 1
            self._unsent[entry_id] = (fields, answer)
        try:
            self._send_unsent()
        except redis.RedisError as error:
            logger.warning("the answer to command %s waits for Redis: %s", fields.get("id", "?"), describe(error))

    def _judge(self, delivery: Delivery) -> tuple[str, str]:
        """What may run again needs no mark, so Redis's clock, known from the last read, is enough."""
        late_s = self.now_s() - float(delivery.fields["deadline"])
        return ("expired", f"{late_s:.1f}") if late_s > 0 else ("run", "")

    def _judge_once(self, delivery: Delivery) -> tuple[str, str]:
        mark = f"started {self._boot_id} {delivery.entry_id}"
        with self._lock:
            overlook = mark if delivery.entry_id in self._never_ran else ""
        arguments: list[str | int] = [delivery.fields["deadline"], mark, overlook, SEEN_TTL_S]
        try:
            answer = self._begin_script([self._keys.command(delivery.command_id)], arguments)
        except redis.RedisError as error:
            self._put_back(delivery.entry_id)
            raise RedisAway(describe(error)) from error
        with self._lock:
            self._never_ran.discard(delivery.entry_id)
        verdict, detail = cast(list[str], answer)
        return verdict, detail

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
        """Sends answers until none waits, unless another thread does. Raises redis.RedisError; they are kept then."""
        with self._lock:
            if self._is_sending or not self._unsent:
                return
            self._is_sending = True
        while True:
            with self._lock:
                batch = dict(islice(self._unsent.items(), BATCH))
                if not batch:
                    self._is_sending = False
                    return
            try:
                self._send(batch)
            except BaseException:
                with self._lock:
                    self._is_sending = False
                raise

    def _send(self, batch: dict[str, tuple[dict[str, str], _Answer]]) -> None:
        commands: list[tuple[str, Words]] = []  # each with the id of the entry that it is for
        for entry_id, (fields, answer) in batch.items():
            if answer.reason:
                commands.append((entry_id, self._bury(fields, answer.reason)))
            if command_id := fields.get("id"):
                reply_key = self._keys.reply(command_id)
                commands.append((entry_id, ("RPUSH", reply_key, answer.text)))
                commands.append((entry_id, ("EXPIRE", reply_key, REPLY_TTL_S)))
        commands.append(("", ("XACK", self._keys.commands, GROUP, *batch)))
        commands.append(("", ("XDEL", self._keys.commands, *batch)))
        results = self._writing.transaction([words for _, words in commands], keep_errors=True)
        failures = {
            entry_id: result
            for (entry_id, _), result in zip(commands, results, strict=True)
            if isinstance(result, redis.RedisError)
        }
        if "" in failures:
            raise failures[""]
        with self._lock:
            for entry_id in batch:
                self._unsent.pop(entry_id, None)
                self._in_hand.discard(entry_id)
        for entry_id, error in failures.items():
            self._note_unwritten(entry_id, *batch[entry_id], error)

    def _bury(self, fields: dict[str, str], reason: str) -> Words:
        letter = [word for pair in _dead_letter(fields, reason).items() for word in pair]
        return ("XADD", self._keys.dead, "MAXLEN", DEAD_MAX_ENTRIES, "*", *letter)

    def _note_unwritten(self, entry_id: str, fields: dict[str, str], answer: _Answer, error: redis.RedisError) -> None:
        """A key of the entry's answer is of another type, so that nobody will ever get it.

        The entry has left the stream with the rest of its batch, or it would be tried for ever. A dead letter tells,
        unless it is one already.
        """
        reason = f"{fields.get('op', '?')}: the answer cannot be written: {describe(error)}"
        logger.error("command %s: %s", fields.get("id", entry_id), reason)
        if answer.reason:
            return
        with self._lock:
            self._counts["dead"] += 1
        try:
            self._writing.exchange([self._bury(fields, reason)], 1)
        except redis.RedisError as second:
            logger.error("command %s: no dead letter either: %s", fields.get("id", entry_id), describe(second))

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
        self._note_clock(redis_time_s(self._client))
        with self._lock:
            self._in_hand.add(entry_id)
        return self._open(entry_id, claimed[0][1], int(found[0]["times_delivered"]) + 1)

    def _next_new(self, block_s: float) -> Delivery | None:
        if not self._read:
            self._read_new(block_s)
        return self._open(*self._read.popleft(), 1) if self._read else None

    def _read_new(self, block_s: float) -> None:
        block = ("BLOCK", max(1, int(block_s * 1000)))
        read = ("XREADGROUP", "GROUP", GROUP, CONSUMER, "COUNT", BATCH, *block, "STREAMS", self._keys.commands, ">")
        streams, (seconds, microseconds) = self._reading.exchange([read, ("TIME",)], 2)
        self._note_clock(int(seconds) + int(microseconds) / 1e6)
        found = cast(list[tuple[str, list[str]]], streams[0][1]) if streams else []
        entries = [(entry_id, dict(zip(words[::2], words[1::2], strict=True))) for entry_id, words in found]
        with self._lock:
            entries = [entry for entry in entries if entry[0] not in self._in_hand]
            self._in_hand.update(entry_id for entry_id, _ in entries)
        self._read.extend(entries)

    def _note_clock(self, redis_time_s: float) -> None:
        self._clock_ahead_s = redis_time_s - time.clock_gettime(time.CLOCK_BOOTTIME)

    def _has_in_hand(self, entry_id: str) -> bool:
        with self._lock:
            return entry_id in self._in_hand

    def _open(self, entry_id: str, fields: dict[str, str], deliveries: int) -> Delivery | None:
        with self._lock:
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
