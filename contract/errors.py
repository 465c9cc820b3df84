"""What can go wrong between the web tier and the engine, as exceptions.

ContractError
├── RedisAway        Redis cannot be reached, or did not answer in time
│   └── OthersAway   and so what was asked is done in this process alone, until Redis answers again
├── EngineAway       no engine that answers commands: .state says why
├── QueueFull        too many commands wait: .retry_after_s says when to come back
├── DeadlinePassed   no reply within the command's time
├── OutcomeUnknown   a command that must not run twice was delivered twice; its first run may have happened
├── CommandFailed    the engine refused or failed: .code is one of FAILURE_CODES, .message is for people
└── BadCommand       the text of a command cannot be understood
"""

FAILURE_CODES = ("bad_request", "not_found", "unsupported", "conflict", "unavailable", "internal")


class ContractError(Exception):
    """Root of everything the contract raises by itself."""


class RedisAway(ContractError):
    """Redis cannot be reached, refuses, or does not answer in time."""


class OthersAway(RedisAway):
    """Done in this process; the others are told once Redis answers again."""


class EngineAway(ContractError):
    """There is no engine to answer; `state` is missing, starting, draining or failed."""

    def __init__(self, state: str, error: str = "") -> None:
        super().__init__(f"engine {state}: {error}" if error else f"engine {state}")
        self.state = state
        self.error = error


class QueueFull(ContractError):
    """The engine has more commands waiting than it may; come back in `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlinePassed(ContractError):
    """The command got no reply within its time. It may still have had its effect."""


class OutcomeUnknown(ContractError):
    """The command must not run twice and may have run once; nobody knows how that ended."""


class CommandFailed(ContractError):
    """The engine answered with a failure."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code if code in FAILURE_CODES else "internal"
        self.message = message


class BadCommand(ContractError):
    """A command's name or body cannot be understood."""
