"""What can go wrong in the engine.

    EngineError
    ├── StartError           the engine cannot start; the text names the setting and the numbers
    ├── BadRequest           the caller's fault; nothing was changed
    │   ├── UnknownInstance      no such registration (http: not found)
    │   ├── NotEnoughBlocks      fewer block ids than the range needs
    │   ├── NoKVMemory           no worker registered KV memory that could be looked at
    │   ├── NoLayout             no worker registered this model and world size
    │   └── Unsupported          understood, but this engine does not do it
    ├── NoL2Adapter          the request is about storage, and none is configured
    ├── UnknownL2Adapter     no configured adapter is of this type
    ├── TooBusy              as many of these run as may; later there is room again
    └── ClientMemoryError    a client's registered memory went away or shrank during a copy

A missing object is not an error: it is a value (None, False or 0).
"""


class EngineError(Exception):
    """Base of everything the engine raises on purpose."""


class StartError(EngineError):
    """The engine cannot start. The text is for the operator."""


class BadRequest(EngineError):
    """The request breaks a rule; the text says which, with the offending value."""


class UnknownInstance(BadRequest):
    """The instance id has no registration of the kind the operation needs."""

    def __init__(self, instance_id: int) -> None:
        super().__init__(f"instance_id {instance_id} not registered")
        self.instance_id = instance_id


class NotEnoughBlocks(BadRequest):
    """A block id list is shorter than the token range needs."""


class NoKVMemory(BadRequest):
    """No worker, or not this one, registered KV memory that the server can read."""


class NoLayout(BadRequest):
    """No worker is registered for the model and world size, so nobody knows what an object looks like."""


class Unsupported(BadRequest):
    """A valid request for something this engine or this registration does not offer."""


class NoL2Adapter(EngineError):
    """No L2 adapter is configured."""


class UnknownL2Adapter(EngineError):
    """No configured L2 adapter is of the type that was named."""


class TooBusy(EngineError):
    """A bound on what may run at one time is reached."""


class ClientMemoryError(EngineError):
    """Registered client memory could not be read or written to its full length."""
