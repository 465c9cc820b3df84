"""Masking of secrets in what is shown or published: configurations, environments, queries, lines of logs.

By the name that a value stands under (secret_names.py), and inside every text by form (mask_text.py).
"""

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_plus

from contract.mask_text import MASK, mask_text, mask_urls_in
from contract.secret_names import is_secret_name, is_secret_variable, may_be_number

_SECRET_PARAMETER = re.compile(r"(?:token|secret|password|passwd|pwd|key|sig|signature)$", re.I)
_USER_INFO = re.compile(r"(?<!\w)(\w[\w+.-]{0,40}+://)[^\s\"'/?#]*@")


def mask_secrets(value: Any) -> Any:
    """The same JSON value, with secrets replaced by `***`: by the name they stand under, and inside texts."""
    if isinstance(value, dict):
        return {name: _mask_member(str(name), member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        flags = (None, *value)  # in a command line, a flag and its value
        return [
            _mask_member(flag, member) if _is_flag(flag) else mask_secrets(member)
            for flag, member in zip(flags, value, strict=False)
        ]
    return _mask_string(value) if isinstance(value, str) else value


def mask_urls(value: Any) -> Any:
    """The same JSON value with the secrets in its URLs replaced by `***`, whatever names they stand under."""
    if isinstance(value, dict):
        return {mask_urls(name): mask_urls(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [mask_urls(member) for member in value]
    return mask_urls_in(value) if isinstance(value, str) else value


def _is_flag(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("-")


def _mask_member(name: str, member: Any) -> Any:
    if not is_secret_name(name):
        return mask_secrets(member)
    return _mask_all(member, numbers=not may_be_number(name))


def _mask_all(member: Any, *, numbers: bool) -> Any:
    """All that is in it; what is empty, a truth value or null tells nothing."""
    if isinstance(member, dict):
        return {name: _mask_all(inner, numbers=numbers) for name, inner in member.items()}
    if isinstance(member, list | tuple):
        return [_mask_all(inner, numbers=numbers) for inner in member]
    is_number = isinstance(member, int | float) and not isinstance(member, bool)
    return MASK if (isinstance(member, str) and member) or (is_number and numbers) else member


def mask_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """All variables by name, with secrets replaced by `***`: by the variable's name, in JSON, and inside texts."""
    return {name: _mask_variable(name, value) for name, value in environ.items()}


def _mask_variable(name: str, value: str) -> str:
    if value and is_secret_variable(name):
        return MASK
    return _USER_INFO.sub(rf"\1{MASK}@", _mask_string(value))


def _mask_string(value: str) -> str:
    """By names where it is JSON, then by form."""
    if value.lstrip()[:1] in ("{", "[", '"'):
        try:
            parsed = json.loads(value)
            masked = mask_secrets(parsed)
            value = value if masked == parsed else json.dumps(masked, ensure_ascii=False)
        except (ValueError, RecursionError):
            pass  # it only looks like JSON
    return mask_text(value)


def mask_query(query: str) -> str:
    """A raw query string with secrets replaced by `***`: by the parameter's name, and inside its value."""
    return "&".join(_mask_parameter(parameter) for parameter in query.split("&"))


def _mask_parameter(parameter: str) -> str:
    name, equals, value = parameter.partition("=")
    plain_name, plain_value = unquote_plus(name), unquote_plus(value)
    if value and (is_secret_name(plain_name) or _SECRET_PARAMETER.search(plain_name)):
        return f"{name}={MASK}"
    masked = mask_text(plain_value)
    return parameter if masked == plain_value else f"{name}{equals}{masked}"
