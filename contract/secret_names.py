"""Which names stand for a secret: of settings, JSON members, variables, flags, headers."""

import itertools
import re

_SECRET_WORDS = frozenset(
    {"token", "secret", "secrets", "password", "passwords", "passwd", "pwd", "passphrase", "credential", "credentials",
     "apikey", "requirepass", "masterauth", "storepass", "keypass"}
)  # fmt: skip
#: Written as one word, these may have anything before them: `dbpassword`, `authtoken`.
_SECRET_ENDS = (
    "password", "passwd", "passphrase", "secret", "token", "apikey", "accesskey", "secretkey", "privatekey",
    "accountkey", "masterkey", "storepass",
)  # fmt: skip
_SECRET_PAIRS = frozenset(
    {(first, "key") for first in ("api", "access", "account", "master", "private", "secret", "signing", "encryption",
                                  "sas", "shared", "storage", "hmac", "aes", "jwt", "session")}
    | {("access", "signature"), ("key", "data"), ("key", "material")}
)  # fmt: skip
#: At the end of a name of several words: `db_pass`, `REDISCLI_AUTH`, `GITHUB_PAT`.
_SECRET_LAST_WORDS = frozenset({"pass", "auth", "pat"})
#: What a name with such an end stands for is about a secret and none: `password_file`, `token_budget`.
_HARMLESS_ENDS = frozenset(
    {"file", "files", "path", "dir", "directory", "name", "names", "count", "budget", "limit", "size", "length", "ttl",
     "timeout", "seconds", "type", "policy", "version", "url", "uri", "endpoint", "variable", "enabled", "required",
     "error", "exception", "py", "json", "yaml", "toml", "txt", "pem", "log", "md"}
)  # fmt: skip
_HARMLESS_PAIRS = frozenset({("page", "token")})
#: Tokens are also what a prompt is made of: only what is one, not what deals with some, is a secret (`token_reader`).
_TOKEN = re.compile(r".*token\Z")
_AFTER_TOKEN = frozenset({"value", "string", "text", "raw", "data", "header", "hash", "secret"})
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
#: Words of which a number is no secret: `eos_token = 2`, `first_pass = 3`.
_WEAK = re.compile(r"(?:token|pass|auth|pat)\d*\Z", re.I)
# In an environment every variable with such a word in its name is taken for a secret: nobody needs its value here.
_SECRET_PART = re.compile(r"key|secret|token|passw|passphrase|credential|dsn|cookie|authorization|auth\Z", re.I)
#: The working directories of a shell, not passwords.
DIRECTORIES = frozenset({"PWD", "OLDPWD"})


def is_secret_name(name: str) -> bool:
    """Whether a value under this name is a secret: `admin_token`, `secretAccessKey`, but not `tokens_per_block`."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not words or words[-1] in _HARMLESS_ENDS or tuple(words[-2:]) in _HARMLESS_PAIRS:
        return False
    if len(words) > 1 and words[-1] in _SECRET_LAST_WORDS:
        return True
    while len(words) > 1 and (words[-1].isdigit() or words[-1] in _AFTER_TOKEN):
        words.pop()
    last = len(words) - 1
    for place, word in enumerate(words):
        if (word in _SECRET_WORDS or word.endswith(_SECRET_ENDS)) and (place == last or not _TOKEN.match(word)):
            return True
    return any(pair in _SECRET_PAIRS for pair in itertools.pairwise(words))


def may_be_number(name: str) -> bool:
    """Whether a plain number under this secret name is none."""
    return _WEAK.search(name) is not None


def is_secret_variable(name: str) -> bool:
    """Whether the value of an environment variable of this name is not to be shown."""
    return name not in DIRECTORIES and (_SECRET_PART.search(name) is not None or is_secret_name(name))
