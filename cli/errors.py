"""How a command ends when it does not succeed: one line on stderr, and a code that a script can act on.

code  class         meaning
----  ------------  ----------------------------------------------------------------------
0                   done
1     Refused       the server said no, or the job did not end well
2     click's own,  the command line makes no sense
      BadToken      a token in the environment cannot be one
3     Unreachable   nobody answered, or nobody that speaks like a Larder
4     Unhealthy     the server is there and is not well: a 5xx (but 501, and no L2 adapter), or a part is sick
130                 interrupted with Ctrl-C
"""

OK = 0
REFUSED = 1
USAGE = 2
UNREACHABLE = 3
UNHEALTHY = 4
INTERRUPTED = 130
#: What a shell shows for a program that a closed pipe ended.
PIPE_CLOSED = 141


class CliError(Exception):
    """Ends the command; the text is one line for people."""

    exit_code = REFUSED


class BadToken(CliError):
    """What stands in the environment is no token. The text does not repeat it."""

    exit_code = USAGE


class Refused(CliError):
    """The server answered, and the answer is no. `status` is that of HTTP, 0 where the no is not an HTTP one."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Unreachable(CliError):
    """No answer, or none that can be read."""

    exit_code = UNREACHABLE


class Unhealthy(CliError):
    """The server answered that it cannot, for now."""

    exit_code = UNHEALTHY
