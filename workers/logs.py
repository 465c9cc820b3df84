"""How our processes log: one line per event, to standard error, with the process's part in it."""

import logging

from contract.redis_client import mask_password

FORMAT = "%(asctime)s.%(msecs)03d %(levelname)-7s {part}: %(message)s"


class _WithoutPasswords(logging.Formatter):
    """Storages and libraries name URLs in their errors; no line shows a password of one."""

    def format(self, record: logging.LogRecord) -> str:
        return mask_password(super().format(record))


def set_up_logging(part: str, level: str) -> None:
    """Every logger of this process writes lines of `level` and above; `part` is launcher, engine, ..."""
    handler = logging.StreamHandler()
    handler.setFormatter(_WithoutPasswords(FORMAT.format(part=part), "%Y-%m-%d %H:%M:%S"))
    logging.basicConfig(handlers=[handler], level=level, force=True)
