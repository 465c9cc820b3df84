"""Token ids from a file or a pipe: a JSON list, or numbers divided by white space or commas."""

import re
import sys
from pathlib import Path

from contract.token_ids import MAX_TOKEN_IDS, read_token_ids, write_token_ids

#: A million ids of ten digits with a comma and a space each, and some room.
MAX_CHARACTERS = 16 << 20
_BETWEEN = re.compile(r"\s*,\s*|\s+")


def read_tokens(source: str) -> tuple[str, int]:
    """The ids as a JSON list, and how many they are; `-` is stdin. Raises ValueError, OSError."""
    if source == "-":
        text = sys.stdin.read(MAX_CHARACTERS + 1)
    else:
        with Path(source).open(encoding="utf-8") as lines:
            text = lines.read(MAX_CHARACTERS + 1)
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"more than {MAX_CHARACTERS} characters")
    ids = read_token_ids(as_list(text.strip()))
    if len(ids) > MAX_TOKEN_IDS:
        raise ValueError(f"{len(ids):,} token ids, at most {MAX_TOKEN_IDS:,} are taken")
    return write_token_ids(ids), len(ids)


def as_list(text: str) -> str:
    """The text of a JSON list; what already is one stays as it is. Raises ValueError."""
    if text.startswith("["):
        return text
    words = _BETWEEN.split(text.strip(",").strip()) if text else []
    strange = next((word for word in words if not (word.isascii() and word.isdigit())), None)
    if strange is not None:
        raise ValueError(f"{strange[:40]!r} is no whole number")
    return f"[{','.join(words)}]"
