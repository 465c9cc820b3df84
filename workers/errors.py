"""What stops a process of ours before it serves, and what a command is refused with."""

#: Exit code of a process that cannot start, and would not on another try either.
EXIT_CANNOT_START = 78


class CannotStart(Exception):
    """The text is for the operator: it names the setting, its value, and what is wrong."""


class WillNotStart(CannotStart):
    """Another try would not help: the process ends with EXIT_CANNOT_START."""


class CommandRefused(Exception):
    """A command's answer is a failure of this kind: one of contract.errors.FAILURE_CODES."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
