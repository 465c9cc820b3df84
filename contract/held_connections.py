"""Several Redis commands in one round trip, over connections that stay with their user.

The client's own calls cost a tenth of a millisecond each in Python: pool, retry, statistics. What is asked once per
command of the queue goes this way instead. Same connections, same time limits, same errors; nothing is repeated.
"""

import time
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import redis
from redis.connection import Connection

Words = Sequence[str | int | float]

#: A connection that was used so recently is taken to be alive: no Redis is back so soon after it died.
TRUSTED_S = 0.01


class HeldConnections:
    """Takes connections from a client's pool as threads need them and keeps them. Any thread may call.

    Closing the client ends them; as many are open as ever were in use at the same time.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._pool = client.connection_pool
        self._idle: deque[tuple[Connection, float]] = deque()

    def exchange(self, commands: Sequence[Words], replies: int) -> list[Any]:
        """Sends the commands at once and reads this many replies: one for each that was not told to be silent.

        Raises redis.RedisError: the connection failed, or the first command that Redis refused.
        """
        connection = self._take()
        try:
            connection.send_packed_command(connection.pack_commands(commands))  # type: ignore[no-untyped-call]
            answers = [connection.read_response() for _ in range(replies)]
        except BaseException:
            # Replies may be on their way that nobody would read.
            connection.disconnect()  # type: ignore[no-untyped-call]
            raise
        finally:
            self._idle.append((connection, time.monotonic()))
        return answers

    def _take(self) -> Connection:
        """A connection that Redis has not closed, unless it did so just now."""
        try:
            connection, idle_since = self._idle.pop()
        except IndexError:
            return self._pool.get_connection()
        if time.monotonic() - idle_since > TRUSTED_S and connection.is_connected and not _is_quiet(connection):
            connection.disconnect()  # type: ignore[no-untyped-call]  # it is opened again when it is used
        return connection

    def transaction(self, commands: Sequence[Words], *, keep_errors: bool = False) -> list[Any]:
        """The results of commands that Redis runs all or none. Raises redis.RedisError, also for a failed command.

        A command that fails when it is run, on a key of another type, does not keep the others from being run. With
        `keep_errors` its error stands in its place among the results.
        """
        answers = self.exchange([("MULTI",), *commands, ("EXEC",)], len(commands) + 2)
        results = cast(list[Any], answers[-1])
        for result in results:
            if isinstance(result, redis.RedisError) and not keep_errors:
                raise result
        return results


def _is_quiet(connection: Connection) -> bool:
    """Whether it is open and nothing waits to be read, not even its end."""
    try:
        return not connection.can_read(0)
    except (redis.RedisError, OSError):
        return False
