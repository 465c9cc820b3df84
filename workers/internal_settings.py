"""The settings of internal API servers, as such a server takes them."""

from app.internal_server import InternalAPIConfig
from contract.settings import Settings


def internal_api_config(settings: Settings) -> InternalAPIConfig:
    """Those named `internal_api_server_*`, and what decides who may call what."""
    names = ("enabled", "host", "port_start", "include_index_list", "socket_path_prefix", "access_log", "log_level")
    values = {name: getattr(settings, f"internal_api_server_{name}") for name in names}
    own = {name: getattr(settings, name) for name in ("admin_token", "read_token", "run_script_enabled")}
    return InternalAPIConfig(**values, **own)
