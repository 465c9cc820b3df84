"""The settings of a running engine: what they are now, and changing those that can change until its next start."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import redis

from contract.errors import RedisAway
from contract.keys import Keys
from contract.log_levels import APPLIED, MAX_LOGGERS, ROOT, effective_level, read_levels, write_level
from contract.masking import mask_secrets
from contract.settings import SettingError, Settings, parse_value
from engine.engine import Engine
from engine.errors import BadRequest
from engine.movement.steering import CHANGEABLE

logger = logging.getLogger(__name__)

LOG_LEVEL = "log_level"

UNKNOWN = "Unknown config"
FIXED = "Config is not mutable at runtime"
FAILED = "Failed to set config value"
#: A refusal repeats the value that was given.
MAX_REASON_CHARACTERS = 300


class SharedLevels:
    """The log levels in Redis, which every process of the server follows. Any thread may call."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client, self._keys = client, keys

    def set_root(self, level: str) -> None:
        """For all processes; this one follows at once. Raises RedisAway, BadRequest."""
        if not APPLIED.write(ROOT, level, lambda name, level: write_level(self._client, self._keys, name, level)):
            raise BadRequest(f"{MAX_LOGGERS} loggers have a level of their own already")
        self.follow()

    def follow(self) -> None:
        """Applies what Redis has; without it all levels stay."""
        try:
            APPLIED.sync(lambda: read_levels(self._client, self._keys))
        except RedisAway as error:
            logger.debug("log levels stay as they are: %s", error)


class LiveSettings:
    """Any thread may call. What cannot change keeps the value with which the engine started."""

    def __init__(self, settings: Settings, engine: Engine, levels: SharedLevels | None = None) -> None:
        """Without `levels` the log level is this process's own."""
        self._settings, self._engine, self._levels = settings, engine, levels

    def shown(self) -> dict[str, Any]:
        """Every setting by name, secrets masked."""
        values = {item.name: getattr(self._settings, item.name) for item in dataclasses.fields(self._settings)}
        values.update({name: getattr(self._engine.config, name) for name in CHANGEABLE})
        values[LOG_LEVEL] = effective_level(ROOT)
        return dict(mask_secrets(values))

    def change(self, values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Changes each for itself: {"updated": {name: value}, "errors": {name: reason}}."""
        updated: dict[str, Any] = {}
        errors: dict[str, str] = {}
        for name, given in values.items():
            try:
                updated[name] = self._change_one(name, given)
            except (SettingError, BadRequest) as error:
                errors[name] = f"{FAILED}: {str(error)[:MAX_REASON_CHARACTERS]}"
            except LookupError as error:
                errors[name] = str(error.args[0])
        return {"updated": updated, "errors": errors}

    def _change_one(self, name: str, given: Any) -> Any:
        if name not in {item.name for item in dataclasses.fields(Settings)}:
            raise LookupError(UNKNOWN)
        if name != LOG_LEVEL and name not in CHANGEABLE:
            raise LookupError(FIXED)
        value = parse_value(name, given)
        if name == LOG_LEVEL:
            self._set_log_level(value)
        else:
            self._engine.steering.change({name: value})
        return value

    def _set_log_level(self, level: str) -> None:
        try:
            if self._levels is not None:
                self._levels.set_root(level)
                return
        except RedisAway as error:
            if not APPLIED.apply_alone(ROOT, level):
                raise BadRequest(f"{MAX_LOGGERS} loggers have a level of their own already") from error
            logger.warning("the log level becomes %s in this process alone until Redis answers: %s", level, error)
            return
        logging.getLogger().setLevel(level)

    def follow_log_levels(self) -> None:
        """Goes by the levels that were set until now."""
        if self._levels is not None:
            self._levels.follow()
