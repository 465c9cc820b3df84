"""The settings of a running engine: what they are now, and changing those that can change until its next start."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from contract.masking import mask_secrets
from contract.settings import SettingError, Settings, parse_value
from engine.engine import Engine
from engine.errors import BadRequest
from engine.movement.steering import CHANGEABLE

LOG_LEVEL = "log_level"

UNKNOWN = "Unknown config"
FIXED = "Config is not mutable at runtime"
FAILED = "Failed to set config value"
#: A refusal repeats the value that was given.
MAX_REASON_CHARACTERS = 300


class LiveSettings:
    """Any thread may call. What cannot change keeps the value with which the engine started."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings, self._engine = settings, engine
        self._log_level = settings.log_level

    def shown(self) -> dict[str, Any]:
        """Every setting by name, secrets masked."""
        values = {item.name: getattr(self._settings, item.name) for item in dataclasses.fields(self._settings)}
        values.update({name: getattr(self._engine.config, name) for name in CHANGEABLE}, log_level=self._log_level)
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
            logging.getLogger().setLevel(value)
            self._log_level = value
        else:
            self._engine.steering.change({name: value})
        return value
