"""How all our processes log: one line per event, to standard error, with the process's part in it and no secret."""

import logging

from contract.mask_text import mask_text


class LineFormatter(logging.Formatter):
    """Lines of one part: launcher, engine, web. Storages and libraries name URLs and settings in their errors; no line
    shows a secret of one."""

    def __init__(self, part: str) -> None:
        """`part` may have fields of the record, as in `web %(process)d`."""
        super().__init__(f"%(asctime)s.%(msecs)03d %(levelname)-7s {part}: %(message)s", "%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        return mask_text(super().format(record))


def set_up_logging(part: str, level: str) -> None:
    """Every logger of this process writes lines of `level` and above."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(part))
    logging.basicConfig(handlers=[handler], level=level, force=True)
