"""Scripts: what they see, what they may import, what becomes of those that fail or do not end."""

import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.errors import TooBusy
from tests.waiting import wait_for
from workers.script_runner import DONE, MAX_RESULT_CHARACTERS, MAX_RUNNING, ScriptRunner

APP = SimpleNamespace(state=SimpleNamespace(engine="the engine", gate=threading.Event(), seen=[]))


def run(source: str, *allowed: str, deadline_s: float = 20.0) -> dict[str, str]:
    return ScriptRunner(APP, allowed, deadline_s).run(source)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("result = app.state.engine", "the engine"),
        ("", DONE),
        ("x = 1", DONE),
        ("result = None", "None"),
        ("result = [int('7'), float(1), str(2), tuple([1]), dict(a=1), set([3]), list('ab')]",
         "[7, 1.0, '2', (1,), {'a': 1}, {3}, ['a', 'b']]"),
        ("from math import pi\nresult = pi > 3", "True"),
        ("import json.decoder as d\nresult = d.__name__", "json.decoder"),
        ("def f():\n    return app.state.engine\nresult = f()", "the engine"),
    ],
)  # fmt: skip
def test_what_works(source: str, text: str) -> None:
    assert run(source, "math", "json.decoder") == {"text": text}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("result = len('x')", "name 'len' is not defined"),
        ("open('/etc/passwd')", "name 'open' is not defined"),
        ("import os", "import of 'os' is not allowed"),
        ("import json.decoder", "import of 'json.decoder' is not allowed"),
        ("from . import x", "import of '' is not allowed"),
        ("__import__('os')", "import of 'os' is not allowed"),
        ("x = 1\ndef f():\n    return x\nresult = f()", "name 'x' is not defined"),
        ("this is no python", "invalid syntax"),
        ("a\x00b", "null bytes"),
        ("1 / 0", "division by zero"),
        ("raise app.state.silent", "silent"),
        ("from sys import exit\nexit(3)", "3"),
        ("(" * 5000, "too many nested parentheses"),
    ],
)
def test_what_fails_says_why(source: str, words: str) -> None:
    outcome = run(source, "json", "sys")

    assert outcome.keys() == {"error"}
    assert words in outcome["error"]


@pytest.mark.parametrize("source", ["from larder_pantry import shelf", "from larder_pantry import *"])
def test_a_package_does_not_open_its_modules(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "larder_pantry").mkdir()
    (tmp_path / "larder_pantry" / "__init__.py").write_text("__all__ = ['shelf']\n")
    (tmp_path / "larder_pantry" / "shelf.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        error = run(source, "larder_pantry")["error"]
        assert "import of 'larder_pantry.shelf' is not allowed" in error
        assert "larder_pantry.shelf" not in sys.modules
        assert run(source, "larder_pantry", "larder_pantry.shelf") == {"text": DONE}
    finally:
        for name in ("larder_pantry", "larder_pantry.shelf"):
            sys.modules.pop(name, None)


def test_a_long_result_is_cut() -> None:
    text = run("result = 'x' * 3000000")["text"]

    assert text.startswith("x" * MAX_RESULT_CHARACTERS + "\n(cut off")


def test_a_script_is_ended_after_its_deadline() -> None:
    assert run("while True: pass", deadline_s=0.05) == {"error": "ended after its deadline of 0.05 s"}


def test_a_script_that_clings_to_life_is_interrupted_again() -> None:
    source = "n = [0]\nwhile n[0] < 2:\n    try:\n        while True: pass\n    except: n[0] += 1"

    assert run(source, deadline_s=0.05) == {"error": "ended after its deadline of 0.05 s"}


def test_as_many_run_as_may_and_the_place_of_an_ended_one_is_free() -> None:
    gate = threading.Event()
    runner = ScriptRunner(SimpleNamespace(gate=gate), ())
    outcomes: list[Any] = []
    threads = [
        threading.Thread(target=lambda: outcomes.append(runner.run("result = app.gate.wait(20)")))
        for _ in range(MAX_RUNNING)
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: sum(t.name.startswith("larder-script") for t in threading.enumerate()) == MAX_RUNNING, 10, "all")

    with pytest.raises(TooBusy, match="2 scripts are running"):
        runner.run("")

    gate.set()
    for thread in threads:
        thread.join(10)
    assert outcomes == [{"text": "True"}] * MAX_RUNNING
    assert runner.run("") == {"text": DONE}
