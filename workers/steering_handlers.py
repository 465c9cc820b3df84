"""What the commands do that change a running engine: settings, switches, statistics of chunks."""

from typing import Any

from contract.commands import ChangeSettings, CountChunks, SetSwitch
from engine.engine import Engine
from workers.errors import CommandRefused
from workers.live_settings import LiveSettings

#: Settings in one command.
MAX_SETTINGS = 100


def change_settings(live: LiveSettings | None, command: ChangeSettings) -> dict[str, Any]:
    if live is None:
        raise CommandRefused("unsupported", "this engine was started without settings of its own")
    if len(command.values) > MAX_SETTINGS:
        raise CommandRefused(
            "bad_request", f"{len(command.values)} settings, at most {MAX_SETTINGS} are changed at once"
        )
    return dict(live.change(command.values))


def set_switch(engine: Engine, command: SetSwitch) -> dict[str, Any]:
    steering, on = engine.steering, command.on
    if command.switch == "bypass":
        name, was = steering.set_bypass(command.name, on)
        return {"name": name, "was": was}
    switches = {"freeze": steering.set_frozen, "hot_cache": steering.set_hot, "block_log": steering.set_log_blocks}
    return {"name": "", "was": switches[command.switch](on)}


def count_chunks(engine: Engine, command: CountChunks) -> dict[str, Any]:
    statistics = engine.prefixes.chunk_statistics
    steps = {"start": statistics.start, "stop": statistics.stop, "reset": statistics.reset}
    steps[command.step]()
    return {}
