"""Runs a person's Python in this process: POST /run_script. It can reach everything; who may ask decides who rules.

What a script sees: the global `app`, a few builtins, and an import that lets exactly the allowed names through. Globals
and locals are separate mappings, so a function of the script does not see the script's own top-level names.
A script has a thread of its own. After its deadline an exception is raised in it, and again while it goes on; one that
hangs in a C function cannot be ended, counts as running, and leaves less room for others.
"""

import builtins
import ctypes
import importlib
import logging
import threading
import time
from collections.abc import Collection, Sequence
from types import ModuleType
from typing import Any

from engine.errors import TooBusy

logger = logging.getLogger(__name__)

BUILTINS = ("print", "str", "int", "float", "list", "dict", "tuple", "set")
DEADLINE_S = 30.0
#: How often the exception is raised, and how long after each the script may take to end.
ATTEMPTS = 4
GRACE_S = 0.5
MAX_RUNNING = 2
MAX_RESULT_CHARACTERS = 1024 * 1024
MAX_REASON_CHARACTERS = 4096
DONE = "Script executed successfully"


class ScriptDeadline(BaseException):
    """Raised inside a script that takes too long."""


class ScriptRunner:
    """Runs scripts over `app`. Any thread may call `run`."""

    def __init__(self, app: object, allowed_imports: Collection[str], deadline_s: float = DEADLINE_S) -> None:
        self._app = app
        self._allowed = frozenset(allowed_imports)
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._running: list[_Script] = []

    def run(self, source: str) -> dict[str, str]:
        """{"text": ...} for what the script set as `result`, or {"error": ...}. Raises TooBusy."""
        script = _Script(source, self._globals())
        with self._lock:
            self._running = [other for other in self._running if other.is_alive()]
            if len(self._running) >= MAX_RUNNING:
                raise TooBusy(f"{MAX_RUNNING} scripts are running already")
            self._running.append(script)
            script.start()
        script.join(self._deadline_s)
        if not script.is_alive():
            return script.outcome
        return self._end(script)

    def _end(self, script: "_Script") -> dict[str, str]:
        for _ in range(ATTEMPTS):
            script.interrupt()
            script.join(GRACE_S)
            if not script.is_alive():
                return {"error": f"ended after its deadline of {self._deadline_s:g} s"}
        logger.error("a script goes on after its deadline of %g s, in thread %s", self._deadline_s, script.name)
        return {"error": f"it goes on after its deadline of {self._deadline_s:g} s and could not be ended"}

    def _globals(self) -> dict[str, Any]:
        allowed = {name: getattr(builtins, name) for name in BUILTINS}
        return {"__builtins__": {**allowed, "__import__": self._import}, "app": self._app}

    def _import(
        self,
        name: str,
        global_names: Any = None,
        local_names: Any = None,
        names: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        if level or name not in self._allowed:
            raise _refusal(name)
        module = importlib.import_module(name)
        if names and hasattr(module, "__path__"):
            self._check_members(module, names)
        return __import__(name, global_names, local_names, names, level)

    def _check_members(self, package: ModuleType, names: Sequence[str]) -> None:
        """`from package import module` also imports what only stands in its folder."""
        listed = getattr(package, "__all__", ()) if "*" in names else ()
        for member in {*names, *listed} - {"*"}:
            full_name = f"{package.__name__}.{member}"
            if not hasattr(package, member) and full_name not in self._allowed:
                raise _refusal(full_name)


class _Script(threading.Thread):
    """One run. `outcome` is there when the thread has ended."""

    def __init__(self, source: str, global_names: dict[str, Any]) -> None:
        super().__init__(name=f"larder-script-{time.time_ns() // 1_000_000}", daemon=True)
        self._source = source
        self._globals = global_names
        self.outcome: dict[str, str] = {"error": "it ended without an outcome"}

    def run(self) -> None:
        try:
            self.outcome = {"text": self._execute()}
        except BaseException as error:  # whatever a script raises is its outcome
            self.outcome = {"error": _reason(error)}
            logger.debug("a script failed", exc_info=True)

    def _execute(self) -> str:
        local_names: dict[str, Any] = {}
        exec(compile(self._source, "<script>", "exec"), self._globals, local_names)
        text = str(local_names["result"]) if "result" in local_names else DONE
        if len(text) <= MAX_RESULT_CHARACTERS:
            return text
        return text[:MAX_RESULT_CHARACTERS] + f"\n(cut off: the result has {len(text)} characters)"

    def interrupt(self) -> None:
        """Has an exception raised in the thread at its next bytecode."""
        if self.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident), ctypes.py_object(ScriptDeadline))


def _refusal(name: str) -> ImportError:
    return ImportError(f"import of {name!r} is not allowed (script_allowed_imports)")


def _reason(error: BaseException) -> str:
    try:
        text = str(error)
    except BaseException:  # a script's own exception may fail to say what it is
        logger.debug("an exception of a script cannot be shown", exc_info=True)
        text = ""
    return (text or type(error).__name__)[:MAX_REASON_CHARACTERS]
