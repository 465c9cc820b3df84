"""Who besides us may command the engine: everybody whom Redis lets in. What of it is told at the start.

the URL of Redis                                   told
-------------------------------------------------  -------
has a password, or a certificate of the client's   nothing
names a Unix socket: its file mode says who may    nothing
has none, and names this machine                   INFO
has none, and names another host                   WARNING
"""

import logging

from redis.connection import parse_url

from contract.loopback import is_loopback_host
from contract.mask_text import mask_urls_in

logger = logging.getLogger(__name__)


def tell_exposure(url: str) -> None:
    """Logs one line where others can get in; `url` is one that the settings accept."""
    parts = parse_url(url)
    if parts.get("password") or parts.get("ssl_certfile") or "path" in parts:
        return
    shown = mask_urls_in(url)
    if is_loopback_host(str(parts.get("host", "localhost"))):
        logger.info("redis_url: %s has no password: every user of this machine can command this engine", shown)
        return
    logger.warning(
        "redis_url: %s has no password: whoever reaches that port can read what is kept there and command this engine, "
        "whatever the HTTP tokens; give Redis a password (requirepass, or an ACL user) and the URL too",
        shown,
    )
