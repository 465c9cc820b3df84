"""How our processes log: one line per event, to standard error, with the process's part in it."""

import logging

FORMAT = "%(asctime)s.%(msecs)03d %(levelname)-7s {part}: %(message)s"


def set_up_logging(part: str, level: str) -> None:
    """Every logger of this process writes lines of `level` and above; `part` is launcher, engine, ..."""
    logging.basicConfig(format=FORMAT.format(part=part), datefmt="%Y-%m-%d %H:%M:%S", level=level, force=True)
