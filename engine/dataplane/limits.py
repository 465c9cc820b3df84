"""Bounds of the data plane: nothing a client sends or leaves unread may grow without one of these."""

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True)
class DataPlaneLimits:
    """Sizes in bytes, times in seconds."""

    #: One message frame; a larger one closes its connection. Message-mode clients send a whole store in one frame.
    max_message_bytes: int = 1024 * MIB
    #: KV bytes that travel inside messages and are held at one time: waiting, being copied, or not yet sent. Keys of
    #: very long requests that wait for a thread count too.
    max_message_mode_bytes: int = 2048 * MIB
    #: Copies waiting for or held by the transfer threads.
    max_queued_transfers: int = 1024
    #: Short operations waiting behind copies of the same client, on top of the copies.
    max_queued_short: int = 8192
    #: Clients waiting for a lookup at one time.
    max_parked: int = 1024
    #: The longest a client may wait for a lookup in one message.
    max_wait_s: float = 60.0
    #: A connection is asked for a sign of life so often, and closed when none comes, or nothing is read from it, for so
    #: long: a frozen client would keep its answers in memory. ZMQ answers by itself, however busy its client is.
    heartbeat_interval_s: float = 10.0
    heartbeat_timeout_s: float = 30.0
    transfer_threads: int = 2
    #: Messages queued per connection, in each direction; replies beyond are dropped.
    high_water_mark: int = 1000
