"""One request and the answer that the API's page promises for it, and what sends and judges it.

In paths, bodies and expected bodies `<name>` stands for a value that only the running server knows (Site.values); a
string that is nothing else becomes the value itself. An expected body is compared whole:

str int float bool     any value of this JSON type (a float may not be written as an integer)
re.Pattern             a text that it matches from beginning to end
{..., ...: ...}        an object that may have further members
[form, ...]            a list of any length whose members have this form
OneOf(...)             one of these forms
anything else          itself
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.internal_client import ask
from tests.stack import Answer

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_NAME = re.compile(r"<([a-z_0-9]+)>")
_NOTHING = object()


class OneOf:
    """Any of these forms."""

    def __init__(self, *forms: Any) -> None:
        self.forms = forms

    def __repr__(self) -> str:
        return " or ".join(map(repr, self.forms))


@dataclass(frozen=True)
class Case:
    """`send`: bytes as they are, anything else as JSON. `body`: as in the table above; a text for text/plain."""

    request: str
    status: int
    body: Any = _NOTHING
    send: Any = _NOTHING
    #: Of the request, "" for none; JSON with a JSON body.
    content_type: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    #: Of the answer.
    answers: str = JSON
    answer_headers: Mapping[str, str] = field(default_factory=dict)
    #: How the answer's JSON is indented.
    indent: int | None = None
    #: Name -> member of the answer that the server's values get under it.
    keep: Mapping[str, str] = field(default_factory=dict)

    @property
    def method(self) -> str:
        return self.request.partition(" ")[0]

    @property
    def target(self) -> str:
        """Path and query."""
        return self.request.partition(" ")[2]

    def __str__(self) -> str:
        return f"{self.request} -> {self.status}"


@dataclass
class Site:
    """A server to ask, by its port of this machine or the path of its socket, and the values that it knows."""

    where: int | Path
    values: dict[str, Any] = field(default_factory=dict)
    #: Its API document, fetched once.
    document: dict[str, Any] = field(default_factory=dict)

    def send(self, case: Case) -> Answer:
        """Raises OSError when there is no answer."""
        sent = fill(case.send, self.values)
        data = sent if isinstance(sent, bytes) or sent is _NOTHING else json.dumps(sent).encode()
        headers = dict(case.headers)
        content_type = case.content_type
        if content_type is None and sent is not _NOTHING and not isinstance(sent, bytes):
            content_type = JSON
        if content_type:
            headers["Content-Type"] = content_type
        target = fill_text(case.target, self.values)
        return ask(self.where, case.method, target, None if data is _NOTHING else data, headers=headers, timeout_s=30.0)

    def check(self, case: Case) -> Answer:
        """Sends it and fails unless the answer is the promised one, and one that the API document tells of."""
        answer = self.send(case)
        shown = f"{case}\n  answered {answer.status} {answer.body[:600]!r}"
        assert answer.status == case.status, shown
        for name, value in {"Content-Type": case.answers, **case.answer_headers}.items():
            assert answer.headers.get(name) == value, f"{shown}\n  {name}: {answer.headers.get(name)}"
        if case.status == 405:
            allowed = answer.headers.get("Allow", "").split(", ")
            assert "OPTIONS" in allowed, f"{shown}\n  Allow: {allowed}"
            assert case.method not in allowed, f"{shown}\n  Allow: {allowed}"
        if case.body is not _NOTHING:
            wrong = list(self._differences(case, answer))
            assert not wrong, shown + "".join(f"\n  {line}" for line in wrong)
        assert self.tells_of(case), f"{shown}\n  the API document does not tell of it"
        self.values.update({name: answer.json()[member] for name, member in case.keep.items()})
        return answer

    def _differences(self, case: Case, answer: Answer) -> Iterable[str]:
        expected = fill(case.body, self.values)
        if case.answers != JSON:
            text = answer.body.decode()
            return () if _fits_text(expected, text) else (f"not {expected!r}",)
        got = answer.json()
        separators = (",", ":") if case.indent is None else (",", ": ")
        written = json.dumps(got, indent=case.indent, ensure_ascii=False, separators=separators)
        if answer.body.decode() != written:
            return (f"not written as {written[:600]!r}",)
        return differences(expected, got)

    def tells_of(self, case: Case) -> bool:
        """Whether the API document has this status for the path, or 404 or 405 for one that it does not have."""
        if not self.document:
            self.document = self.send(Case("GET /openapi.json", 200)).json()
        path = fill_text(case.target, self.values).partition("?")[0]
        operation = operation_at(self.document, case.method.lower(), path)
        if operation is None:
            return case.status in (404, 405)
        return str(case.status) in operation["responses"]


def operation_at(document: Mapping[str, Any], method: str, path: str) -> dict[str, Any] | None:
    """The method's operation under the most literal template that the path fits; None without one."""
    fitting = [
        (template.count("{"), template)
        for template, operations in document["paths"].items()
        if method in operations and re.fullmatch(re.sub(r"\\\{[^}]*\\\}", "[^/]+", re.escape(template)), path)
    ]
    return dict(document["paths"][min(fitting)[1]][method]) if fitting else None


def fill_text(text: str, values: Mapping[str, Any]) -> str:
    return _NAME.sub(lambda found: str(values.get(found[1], found[0])), text)


def fill(form: Any, values: Mapping[str, Any]) -> Any:
    """The form with values in place of `<names>`."""
    if isinstance(form, str):
        whole = _NAME.fullmatch(form)
        return values[whole[1]] if whole and whole[1] in values else fill_text(form, values)
    if isinstance(form, dict):
        return {fill(name, values): fill(member, values) for name, member in form.items()}
    if isinstance(form, list):
        return [fill(member, values) for member in form]
    return form


def _fits_text(expected: Any, text: str) -> bool:
    return bool(expected.fullmatch(text)) if isinstance(expected, re.Pattern) else bool(expected == text)


def differences(expected: Any, got: Any, place: str = "") -> list[str]:
    """What of `got` is not as expected, one line each."""
    if isinstance(expected, OneOf):
        fits = any(not differences(form, got, place) for form in expected.forms)
        return [] if fits else [f"{place or 'the body'} is {got!r}, not {expected!r}"]
    if isinstance(expected, dict) and isinstance(got, dict):
        return _differences_of_objects(expected, got, place)
    if isinstance(expected, list) and isinstance(got, list):
        return _differences_of_lists(expected, got, place)
    if isinstance(expected, type):
        fits = type(got) is expected
    elif isinstance(expected, re.Pattern):
        fits = isinstance(got, str) and expected.fullmatch(got) is not None
    else:
        fits = type(got) is type(expected) and got == expected
    return [] if fits else [f"{place or 'the body'} is {got!r}, not {expected!r}"]


def _differences_of_objects(expected: Mapping[Any, Any], got: Mapping[str, Any], place: str) -> list[str]:
    named = {name for name in expected if name is not ...}
    wrong = [f"{place}.{name} is missing" for name in sorted(named - got.keys())]
    if ... not in expected:
        wrong += [f"{place}.{name} is not promised" for name in sorted(got.keys() - named)]
    for name in sorted(named & got.keys()):
        wrong += differences(expected[name], got[name], f"{place}.{name}")
    return wrong


def _differences_of_lists(expected: Sequence[Any], got: Sequence[Any], place: str) -> list[str]:
    if len(expected) == 2 and expected[1] is ...:
        expected = [expected[0]] * len(got)
    if len(expected) != len(got):
        return [f"{place} has {len(got)} members, not {len(expected)}: {got!r}"]
    pairs = enumerate(zip(expected, got, strict=True))
    return [line for index, (form, member) in pairs for line in differences(form, member, f"{place}[{index}]")]


def in_order(site: Site, cases: Iterable[Case]) -> None:
    """Checks one after the other."""
    for case in cases:
        site.check(case)
