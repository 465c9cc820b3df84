"""Secrets inside a text, found by their form and replaced by `***`. What is harmless stays, names of secrets too.

form                          shown as                          found by
----------------------------  --------------------------------  ------------------------------------------
redis://u:pw@h/0              redis://u:***@h/0                 the user info of a URL
http://h/x?sig=pw&a=1         http://h/x?sig=***&a=1            a parameter of a URL
u:pw@tcp(h:3306)/db           u:***@tcp(h:3306)/db              user and password before a host
password=pw  -Dpassword=pw    password=***  -Dpassword=***      a name (secret_names.py) and what follows it
--password pw  AccountKey=pw  --password ***  AccountKey=***
{"secret_access_key": "pw"}   {"secret_access_key": "***"}
Authorization: Bearer pw      Authorization: Bearer ***         a header, to the end of its line
Bearer pw  Basic cHc6cHc=     Bearer ***  Basic ***             the scheme, where no ordinary word follows
-----BEGIN PRIVATE KEY-----   -----BEGIN PRIVATE KEY-----***    its first and last line
ghp_pw  hf_pw  AKIA...        ghp_***  hf_***  AKIA***          the shape of well-known tokens
redis-cli -a pw  curl -u u:pw redis-cli -a ***  curl -u u:***   where these programs, and .netrc, have it

Masking a masked text changes nothing. The work grows with the length of the text alone, whatever stands in it: every
repetition below is possessive, bounded, or begins only where a word begins.
"""

import re
from collections.abc import Callable

from contract.secret_names import DIRECTORIES, is_secret_name, may_be_number

MASK = "***"

# ---- URLs

# Up to the last @ before the path, since a password may hold one too; up to one behind it where no port can be meant.
_PASSWORD = re.compile(r"""((?<!\w)\w++://[^/\s:@\[]*+:)(?:[^\s/]*@|(?!\d*+(?:[/?#\s"',;]|\Z))[^\s@"']{1,500}@)""")
_LONE_USER = re.compile(r"(?<!\w)(?!(?:ssh|sftp)://)(\w[\w+.-]{0,40}+://)(?!git@|\*\*\*@)[^/\s:@\"']++@")
_SECRET_QUERY = re.compile(
    r"((?<=[?&])[^=&?\s]{0,80}(?:token|secret|password|passwd|pwd|key|sig|signature)=)[^&\s#\"']+", re.I
)


def mask_urls_in(text: str) -> str:
    """The text with the secrets of all URLs in it, before the host or in the query, replaced by `***`."""
    if "://" not in text:
        return text
    text = _LONE_USER.sub(rf"\1{MASK}@", _PASSWORD.sub(rf"\1{MASK}@", text))
    return _SECRET_QUERY.sub(rf"\1{MASK}", text)


# ---- names and what follows them

_NAME = re.compile(
    r"""(?<![\w.-])(?P<name>[A-Za-z_-][\w.-]*+)(?P<close>(?:\\{0,8}["']|\])?)"""
    r"""(?P<sign>[^\S\n]*+(?:=>|[:=])[^\S\n]*+|,\s*+(?=["'])|\s++)"""
)
_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "set-cookie"})
#: Of whom the next word is a secret, also without a sign between.
_DIRECTIVES = frozenset({"requirepass", "masterauth"})
_QUOTE_ENDS = r"""(?!\\{0,8}["'](?:[\s,;:)\]}]|\Z))"""
#: Ends at white space, at a quote that ends something, and where another `name=` follows.
_WORD = re.compile(_QUOTE_ENDS + r"(?:(?![;&,]\s{0,8}[\w.-]{1,60}\s{0,8}=)(?![;,](?:\s|\Z))" + _QUOTE_ENDS + r"\S)+")
_REST_OF_LINE = re.compile(rf"(?:{_QUOTE_ENDS}[^\r\n])+")
_OPENS = frozenset("[{")
_BRACKET_OR_QUOTE = re.compile(r"""[\[\]{}]|(\\{0,8})(["'])""")
_OPENING = re.compile(r"""(\\{0,8})(["'])""")
_CLOSING = {quote: re.compile(rf"(?<!\\)(\\*+){quote}") for quote in "\"'"}
_PROSE_FOLLOWS = re.compile(r"[ \t]+\w")
_WORD_BEFORE = re.compile(r"([A-Za-z]+) \Z")
_BLANKS = re.compile(r"\s*+")
#: A text over several lines, and a list with a line for each member.
_YAML_TEXT = re.compile(r"[|>][-+0-9]{0,2}[ \t]*+\n++[ \t]++([^\n]++(?:\n++[ \t]++[^\n]++)*+)")
_YAML_LIST = re.compile(r"\n[ \t]*+-[ \t]++([^\n]++(?:\n[ \t]*+-[ \t]++[^\n]++)*+)")
_NO_SECRETS = frozenset({"none", "null", "true", "false", MASK})
_NUMBER = re.compile(r"[+-]?\d{1,9}(?:\.\d{1,9})?\Z")
_SCHEMES = re.compile(r"(?:bearer|basic|digest|negotiate|token|apikey|aws4-hmac-sha256) +", re.I)


def _mask_named(text: str) -> str:
    """Goes from name to name; what was masked is not looked into."""
    parts: list[str] = []
    done = at = 0
    while (found := _NAME.search(text, at)) is not None:
        at = found.end()
        span = _value_after(text, found)
        if span is not None:
            parts += (text[done : span[0]], MASK)
            done = at = span[1]
    return "".join((*parts, text[done:])) if parts else text


def _value_after(text: str, found: "re.Match[str]") -> tuple[int, int] | None:
    """Where the secret is that a name announces."""
    name, sign, start = found["name"].removeprefix("-D"), found["sign"].strip(), found.end()
    is_flag = name.startswith("-")
    if sign in ("", ",") and not is_flag and name not in _DIRECTIVES:
        return None
    if found["sign"] == ":" and text.startswith(("/", ":"), start):
        return None  # a path in a list of paths, a URL, a name in a name space
    if name.lower() in _HEADERS:
        return _header_at(text, start) if sign else None
    if not is_secret_name(_with_word_before(text, found, name)):
        return None
    if found["close"]:
        start = _BLANKS.match(text, start).end()  # type: ignore[union-attr]  # matches anything
    elif sign == ":" and (block := _YAML_TEXT.match(text, start) or _YAML_LIST.match(text, start)):
        return block.span(1) if block[1] != MASK else None
    opening = _OPENING.match(text, start)
    if opening is not None:
        return _quoted_at(text, opening)
    if text[start : start + 1] in _OPENS:
        return _collection_at(text, start)
    return _bare_at(text, found, start)


def _with_word_before(text: str, found: "re.Match[str]", name: str) -> str:
    """The name; that of a key with what it is the key of: `API Key: x`."""
    if name.lower() != "key":
        return name
    before = _WORD_BEFORE.search(text[max(0, found.start() - 30) : found.start()])
    return name if before is None else f"{before[1]} {name}"


def _bare_at(text: str, found: "re.Match[str]", start: int) -> tuple[int, int] | None:
    name, sign, is_quoted = found["name"], found["sign"].strip(), bool(found["close"])
    # Before the word is read to its end, which the next name in it would have done again.
    if text.startswith(MASK, start) or (name in DIRECTORIES and text.startswith("/", start)):
        return None
    word = _WORD.match(text, start)
    if word is None or word[0].lower().rstrip(",}])") in _NO_SECRETS:
        return None
    if may_be_number(name) and _NUMBER.match(word[0].rstrip(",}])")):
        return None
    if sign == "" and word[0].startswith("--"):
        return None
    if sign == ":" and not is_quoted:
        if _begins_line(text, found.start()):
            rest = _REST_OF_LINE.match(text, start)
            return (start, rest.end()) if rest is not None else None
        is_prose = word[0].isalpha() and word[0].islower() and _PROSE_FOLLOWS.match(text, word.end())
        return None if is_prose else word.span()
    return word.span()


def _begins_line(text: str, at: int) -> bool:
    """Whether before it on its line there is nothing, or the dash of a YAML list."""
    before = text[max(0, at - 200) : at]
    return before[before.rfind("\n") + 1 :].strip(" \t-") == ""


def _quoted_at(text: str, opening: "re.Match[str]") -> tuple[int, int] | None:
    """What is between quotes, and what a shell would glue to it; without a closing one it is the rest of the text."""
    start, (end, after) = opening.end(), _end_of_quoted(text, opening)
    if text[after : after + 1] not in ("", *" \t\r\n,;:)]}&>|\\"):
        glued = _WORD.match(text, after)
        if glued is not None:
            return start, glued.end()
    return (start, end) if end > start and text[start:end] != MASK else None


def _end_of_quoted(text: str, opening: "re.Match[str]") -> tuple[int, int]:
    """Where the quoted ends and where its quote does. Quotes in it may be escaped or doubled."""
    escapes, quote, at = len(opening[1]), opening[2], opening.end()
    while (closing := _CLOSING[quote].search(text, at)) is not None:
        at = closing.end()
        # In JSON inside JSON a quote of the value has three backslashes, its last one four before the end's own.
        surplus = len(closing[1]) - escapes
        if surplus < 0 or surplus % (2 * (escapes + 1)):
            continue
        if escapes == 0 and text.startswith(quote, at):
            at += 1
            continue
        return at - 1 - escapes, at
    return len(text), len(text)


def _collection_at(text: str, start: int) -> tuple[int, int] | None:
    """A list or an object with all that is in it; None for an empty one."""
    depth, at = 0, start
    while (found := _BRACKET_OR_QUOTE.search(text, at)) is not None:
        at = found.end()
        if found[2] is not None:
            at = _end_of_quoted(text, found)[1]
            continue
        depth += 1 if found[0] in _OPENS else -1
        if depth == 0:
            return (start, at) if at - start > 2 else None
    return start, len(text)


def _header_at(text: str, start: int) -> tuple[int, int] | None:
    """To the end of the line or of what quotes it; the scheme of an authorization stays."""
    opening = _OPENING.match(text, start)
    span = _quoted_at(text, opening) if opening is not None else None
    if opening is None:
        rest = _REST_OF_LINE.match(text, start)
        span = rest.span() if rest is not None else None
    if span is None:
        return None
    scheme = _SCHEMES.match(text, span[0], span[1])
    begin = scheme.end() if scheme is not None else span[0]
    return (begin, span[1]) if begin < span[1] and text[begin : span[1]] != MASK else None


# ---- other forms

_KEY_BEGIN = re.compile(r"-----BEGIN ([A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?)-----")
_SCHEME = re.compile(r"""(?:(?<=%20)|(?<!\w))(bearer|basic)((?:[ =]|%20){1,4})([^\s,;"'\\]{1,8192})""", re.I)
_ORDINARY = re.compile(r"[a-z]{1,15}\Z|[A-Z][a-z]{0,14}\Z|[A-Z]{1,8}\Z|realm=\Z")
_USER_AT_HOST = re.compile(
    r"""(?<![^\s"'=,(\[])([A-Za-z][\w.+-]{0,63}:)(?!//)([^\s@"'*]{1,256})@"""
    r"""(?=(?:tcp|unix)\(|[\w-]{1,63}(?:\.[\w-]{1,63}){0,8}(?::\d{1,5})?(?:/[^\s"']{0,200})?(?:["',;)\]\s]|\Z))"""
)
_CURL_USER = re.compile(r"((?<!\S)(?:-u|--user|--proxy-user)[ =][\"']?[^\s:\"'\d][^\s:\"']{0,99}:)[^\s\"']+")
#: What some programs and files have after other words.
_BY_PLACE = re.compile(
    r"(\b(?:redis|valkey)-cli\b[^\n|;&]{0,200}?\s-a\s{1,20}|\bsshpass\s{1,20}-p\s{0,20}|\blogin\s{1,20}\S{1,100}\s{1,20}password\s{1,20})"
    r"\S+"
)
_TOKENS = re.compile(
    r"""(?<![A-Za-z0-9])(?:
        (A(?:KIA|SIA|BIA|CCA))[A-Z0-9]{16}(?![A-Za-z0-9])
      | (hf_|gh[opsur]_|github_pat_|glpat-|npm_|pypi-|xox[a-z]-|xapp-|nvapi-|hvs\.|ya29\.|dckr_pat_|dop_v1_|gsk_|whsec_
         |r8_|AIza|SG\.|[sr]k_(?:live|test)_|AGE-SECRET-KEY-1|LS0tLS1CRUdJTi)(?=[\w.-]{0,80}[\dA-Z])[\w.+/=-]{16,}+
      | (sk-)(?=[\w-]{0,80}\d)[\w-]{20,}+
      | (eyJ)[\w-]{8,}+\.eyJ[\w-]{8,}+(?:\.[\w-]*+){0,3}
    )""",
    re.VERBOSE,
)


def _mask_keys(text: str) -> str:
    """Private keys in PEM; one whose end is missing goes to the end of the text."""
    parts: list[str] = []
    at = 0
    while (begin := _KEY_BEGIN.search(text, at)) is not None:
        end = text.find(f"-----END {begin[1]}-----", begin.end())
        parts += (text[at : begin.end()], MASK)
        at = len(text) if end < 0 else end
    return "".join((*parts, text[at:]))


def _mask_scheme(found: "re.Match[str]") -> str:
    return found[0] if _ORDINARY.match(found[3]) else f"{found[1]}{found[2]}{MASK}"


def _mask_token(found: "re.Match[str]") -> str:
    return next(part for part in found.groups() if part is not None) + MASK


def _mask_user_at_host(found: "re.Match[str]") -> str:
    return f"{found[1]}{MASK}@"


_STEPS: tuple[Callable[[str], str], ...] = (
    _mask_keys,
    mask_urls_in,
    _mask_named,
    lambda text: _SCHEME.sub(_mask_scheme, text),
    lambda text: _TOKENS.sub(_mask_token, text),
    lambda text: _USER_AT_HOST.sub(_mask_user_at_host, text) if "@" in text else text,
    lambda text: _CURL_USER.sub(rf"\1{MASK}", text) if " -" in text else text,
    lambda text: _BY_PLACE.sub(rf"\1{MASK}", text),
)


def mask_text(text: str) -> str:
    """The text with every secret in it that can be told by its form replaced by `***`."""
    for step in _STEPS:
        text = step(text)
    return text
