"""Every Redis key of the system. No other module spells a key name.

`{I}` is the instance id in braces, so that all keys of one instance share a cluster slot.

key                           type    written by        what                                        lives
----------------------------  ------  ----------------  ------------------------------------------  ------------------
larder:{I}:engine             hash    engine            the heartbeat: boot, pid, state, beat       3 s after a beat
larder:{I}:commands           stream  web               commands waiting or running                 until answered
larder:{I}:command:ID         string  web, then engine  `seen`, or `started <boot id>`              10 min
larder:{I}:reply:ID           list    engine            one JSON reply                              60 s
larder:{I}:dead               stream  engine            commands given up on, with the reason       the newest 1000
larder:{I}:snapshot:NAME      hash    engine            body (JSON), number, taken_at, boot_id      stays, overwritten
larder:{I}:quota              hash    engine            salt -> limit in bytes, the authority       for ever
larder:{I}:quota:epoch        string  engine            EPOCH:GENERATION, life and changes of it    for ever
larder:{I}:usage              hash    engine            salt -> {"l1_bytes": n, "l2_bytes": m}      the engine's boot
larder:{I}:prefetch           zset    web, then engine  ids of prefetch jobs by time of submission  the newest 10000
larder:{I}:prefetch:ID        hash    web, then engine  the record of a prefetch job                1 h from its end
larder:{I}:prefetch:ID:input  string  web               its token ids (JSON)                        until its end
larder:{I}:loglevels          hash    any               logger -> level, applied by every process   the launcher's start
larder:{I}:metrics_baseline   hash    any               process group -> what a reset subtracts     one run of the group
larder:{I}:audit              stream  web               admin actions and their results             the newest 10000
larder:instances              hash    engine            instance id -> {"boot_id", "address", ...}  until a clean stop
"""

from dataclasses import dataclass

INSTANCES = "larder:instances"

PATTERNS = (
    "larder:{I}:engine",
    "larder:{I}:commands",
    "larder:{I}:command:ID",
    "larder:{I}:reply:ID",
    "larder:{I}:dead",
    "larder:{I}:snapshot:NAME",
    "larder:{I}:quota",
    "larder:{I}:quota:epoch",
    "larder:{I}:usage",
    "larder:{I}:prefetch",
    "larder:{I}:prefetch:ID",
    "larder:{I}:prefetch:ID:input",
    "larder:{I}:loglevels",
    "larder:{I}:metrics_baseline",
    "larder:{I}:audit",
    INSTANCES,
)

DEAD_MAX_ENTRIES = 1000
AUDIT_MAX_ENTRIES = 10_000
REPLY_TTL_S = 60
SEEN_TTL_S = 600
PREFETCH_MAX_JOBS = 10_000
#: From the submission of a prefetch job, whatever becomes of it, and from its end.
PREFETCH_TTL_S = 24 * 3600
PREFETCH_ENDED_TTL_S = 3600

# The salt of a request without one is the empty string. A hash field may not look empty to a reader.
DEFAULT_SALT_FIELD = "_default"


def salt_to_field(cache_salt: str) -> str:
    """The hash field under which a salt is kept; the empty salt has a name of its own."""
    return cache_salt or DEFAULT_SALT_FIELD


def field_to_salt(field: str) -> str:
    """The salt kept under a hash field."""
    return "" if field == DEFAULT_SALT_FIELD else field


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one instance."""

    instance_id: str

    def _key(self, rest: str) -> str:
        return f"larder:{{{self.instance_id}}}:{rest}"

    @property
    def engine(self) -> str:
        return self._key("engine")

    @property
    def commands(self) -> str:
        return self._key("commands")

    def command(self, command_id: str) -> str:
        return self._key(f"command:{command_id}")

    def reply(self, command_id: str) -> str:
        return self._key(f"reply:{command_id}")

    @property
    def dead(self) -> str:
        return self._key("dead")

    def snapshot(self, name: str) -> str:
        return self._key(f"snapshot:{name}")

    @property
    def quota(self) -> str:
        return self._key("quota")

    @property
    def quota_epoch(self) -> str:
        return self._key("quota:epoch")

    @property
    def usage(self) -> str:
        return self._key("usage")

    @property
    def prefetch_jobs(self) -> str:
        return self._key("prefetch")

    def prefetch(self, request_id: str) -> str:
        return self._key(f"prefetch:{request_id}")

    def prefetch_input(self, request_id: str) -> str:
        return self._key(f"prefetch:{request_id}:input")

    @property
    def loglevels(self) -> str:
        return self._key("loglevels")

    @property
    def metrics_baseline(self) -> str:
        return self._key("metrics_baseline")

    @property
    def audit(self) -> str:
        return self._key("audit")

    @property
    def instances(self) -> str:
        """Shared by all instances of this Redis."""
        return INSTANCES
