"""What the HTTP side needs to know, taken from the settings."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contract.settings import Settings

# Beyond this a body is refused with 413: the longest legitimate one names some ten thousand keys.
MAX_BODY_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class AppConfig:
    http_host: str
    http_port: int
    admin_token: str = ""
    read_token: str = ""
    max_body_bytes: int = MAX_BODY_BYTES
    run_script_enabled: bool = False
    #: Metrics of all workers together, in the files of PROMETHEUS_MULTIPROC_DIR: for a process that is all ours.
    multiprocess_metrics: bool = False

    @classmethod
    def from_settings(cls, settings: "Settings") -> "AppConfig":
        return cls(
            http_host=settings.http_host,
            http_port=settings.http_port,
            admin_token=settings.admin_token,
            read_token=settings.read_token,
            run_script_enabled=settings.run_script_enabled,
        )
