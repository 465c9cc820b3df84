"""Masking of secrets in what is shown or published: configurations, environments, queries."""

import itertools
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_plus

from contract.redis_client import mask_password

MASK = "***"

_SECRET_WORDS = frozenset(
    {"token", "secret", "password", "passwd", "pwd", "passphrase", "credential", "credentials", "apikey"}
)
_SECRET_PAIRS = frozenset(
    (first, "key")
    for first in ("api", "access", "account", "master", "private", "secret", "signing", "encryption", "sas")
)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SECRET_PARAMETER = re.compile(r"(?:token|secret|password|passwd|pwd|key|sig|signature)$", re.I)
# In an environment every variable with such a word in its name is taken for a secret: nobody needs its value here.
_SECRET_PART = re.compile(r"key|secret|token|passw|passphrase|credential|dsn|cookie|authorization", re.I)
_USER_INFO = re.compile(r"(\w[\w+.-]*://)[^\s\"']*@")
_AUTHORIZATION = re.compile(r"\b(bearer|basic)([ =]+|%20)[^\s,;]+", re.I)
#: The working directories of a shell, not passwords.
_DIRECTORIES = frozenset({"PWD", "OLDPWD"})


def mask_secrets(value: Any) -> Any:
    """The same JSON value, with secrets replaced by `***`: by the name they stand under, and inside URLs."""
    if isinstance(value, dict):
        return {name: _mask_member(name, member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [mask_secrets(member) for member in value]
    return mask_password(value) if isinstance(value, str) else value


def mask_urls(value: Any) -> Any:
    """The same JSON value with the secrets in its URLs replaced by `***`, whatever names they stand under."""
    if isinstance(value, dict):
        return {mask_urls(name): mask_urls(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [mask_urls(member) for member in value]
    return mask_password(value) if isinstance(value, str) else value


def _mask_member(name: str, member: Any) -> Any:
    if isinstance(member, str) and member and is_secret_name(name):
        return MASK
    return mask_secrets(member)


def mask_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """All variables by name, with secrets replaced by `***`: by name, in URLs, in JSON and in authorization words."""
    return {name: _mask_variable(name, value) for name, value in environ.items()}


def _mask_variable(name: str, value: str) -> str:
    if value and name not in _DIRECTORIES and (_SECRET_PART.search(name) or is_secret_name(name)):
        return MASK
    if value.lstrip()[:1] in ("{", "["):
        try:
            value = json.dumps(mask_secrets(json.loads(value)))
        except (ValueError, RecursionError):
            pass  # it only looks like JSON
    return _AUTHORIZATION.sub(rf"\1\2{MASK}", _USER_INFO.sub(rf"\1{MASK}@", mask_password(value)))


def is_secret_name(name: str) -> bool:
    """Whether a value under this name is a secret: `admin_token`, `secretAccessKey`, but not `tokens_per_block`."""
    words = [word.lower() for word in _WORD.findall(name)]
    if _SECRET_WORDS.intersection(words):
        return True
    return any(pair in _SECRET_PAIRS for pair in itertools.pairwise(words))


def mask_query(query: str) -> str:
    """A raw query string with secrets replaced by `***`: by the parameter's name, and inside URLs."""
    return "&".join(_mask_parameter(parameter) for parameter in query.split("&"))


def _mask_parameter(parameter: str) -> str:
    name, equals, value = parameter.partition("=")
    plain_name, plain_value = unquote_plus(name), unquote_plus(value)
    if value and (is_secret_name(plain_name) or _SECRET_PARAMETER.search(plain_name)):
        return f"{name}={MASK}"
    masked = mask_password(plain_value)
    return parameter if masked == plain_value else f"{name}{equals}{masked}"
