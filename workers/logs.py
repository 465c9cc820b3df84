"""How our processes log: one line per event, to standard error, with the process's part in it."""

import logging

from contract.masking import MaskedFormatter

FORMAT = "%(asctime)s.%(msecs)03d %(levelname)-7s {part}: %(message)s"


def set_up_logging(part: str, level: str) -> None:
    """Every logger of this process writes lines of `level` and above; `part` is launcher, engine, ..."""
    handler = logging.StreamHandler()
    handler.setFormatter(MaskedFormatter(FORMAT.format(part=part), "%Y-%m-%d %H:%M:%S"))
    logging.basicConfig(handlers=[handler], level=level, force=True)
