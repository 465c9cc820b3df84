"""The adapter that docs/adding_an_l2_adapter.md builds is what the page says: it passes, and the engine takes it."""

import contextlib
import re
import sqlite3
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from engine.errors import StartError
from engine.l1.eviction import LRU
from engine.l2.base import ConnectionFault, L2Adapter, StorageFull
from engine.l2.catalog import Catalog, Form
from engine.l2.metrics import TierMetrics
from engine.l2.registry import ADAPTERS, open_adapter
from engine.l2.spec import read_spec
from engine.l2.tier import Outcome, Tier
from tests.conformance.l2_conformance import KEY, L2Conformance, Raw, payload, store

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "adding_an_l2_adapter.md").read_text()
ADAPTER_CODE, TEST_CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
((TYPE_NAME, PLACE),) = re.findall(r'^    "(\w+)": "(engine\.l2\.\w+:\w+)",$', PAGE, re.MULTILINE)


def module_of_the_page() -> types.ModuleType:
    """The first block as the module that the registry line names."""
    module = types.ModuleType(PLACE.partition(":")[0])
    sys.modules[module.__name__] = module
    exec(compile(ADAPTER_CODE, "docs/adding_an_l2_adapter.md", "exec"), vars(module))
    return module


MODULE = module_of_the_page()
NEEDED: dict[str, Any] = {
    "Any": Any,
    "Iterator": Iterator,
    "L2Adapter": L2Adapter,
    "L2Conformance": L2Conformance,
    "Path": Path,
    "Raw": Raw,
    "__name__": __name__,
    "contextlib": contextlib,
    "pytest": pytest,
    "sqlite3": sqlite3,
    **vars(MODULE),
}
exec(compile(TEST_CODE, "docs/adding_an_l2_adapter.md", "exec"), NEEDED)
TestSqlite = NEEDED["TestSqlite"]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ADAPTERS, TYPE_NAME, PLACE)
    monkeypatch.setitem(sys.modules, MODULE.__name__, MODULE)


def test_the_page_is_linted_as_the_rest_is() -> None:
    for code, name in ((ADAPTER_CODE, "engine/l2/sqlite_adapter.py"), (TEST_CODE, "tests/conformance/test_sqlite.py")):
        ignored = ["--ignore", "F821"] if name.startswith("tests/") else []
        for words in (["check", *ignored], ["format", "--check"]):
            command = [sys.executable, "-m", "ruff", *words, "--stdin-filename", name, "-"]
            done = subprocess.run(command, cwd=ROOT, input=code, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{words} of {name}:\n{done.stdout}{done.stderr}"


def test_the_engine_takes_it(registered: None, tmp_path: Path) -> None:
    spec = read_spec({"type": TYPE_NAME, "path": str(tmp_path / "kv.db"), "serde": {"type": "zstd"}})
    catalog = Catalog(LRU())
    tier = Tier(0, spec, catalog, TierMetrics(CollectorRegistry()).of(TYPE_NAME, 0))
    tier.open()
    with contextlib.closing(tier):
        tier.take_scan()
        form, into = Form(b"a layout, 16 b..", 0), bytearray(5000)
        tier.store(KEY, form, memoryview(payload(1)))

        loaded = tier.load(KEY, form.fingerprint, memoryview(into))

        assert loaded.outcome is Outcome.LOADED
        assert bytes(into) == payload(1)
        tier.refresh()
        assert tier.describe()["path"] == str(tmp_path / "kv.db")


def test_a_wrong_field_stops_the_start(registered: None, tmp_path: Path) -> None:
    with pytest.raises(StartError, match="unknown field 'file'; known are max_bytes, path, timeout_s"):
        open_adapter(TYPE_NAME, {"file": "x"})
    (tmp_path / "no.db").write_bytes(b"this is no database at all" * 100)
    with pytest.raises(StartError, match="cannot be opened: sqlite: file is not a database"):
        open_adapter(TYPE_NAME, {"path": str(tmp_path / "no.db")})


def test_faults_are_told_apart(registered: None, tmp_path: Path) -> None:
    fields = {"path": str(tmp_path / "kv.db"), "timeout_s": 0.05}
    with contextlib.closing(open_adapter(TYPE_NAME, fields)) as adapter:
        with contextlib.closing(sqlite3.connect(tmp_path / "kv.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(ConnectionFault, match="locked"):
                store(adapter, KEY, payload(1))
        adapter._db.execute("PRAGMA max_page_count = 10")
        with pytest.raises(StorageFull, match="full"):
            store(adapter, KEY, payload(1, 200_000))
        assert adapter.exists(KEY) is False


def test_the_order_of_use_survives(registered: None, tmp_path: Path) -> None:
    fields, other = {"path": str(tmp_path / "kv.db")}, KEY._replace(cache_salt="")
    with contextlib.closing(open_adapter(TYPE_NAME, fields)) as adapter:
        store(adapter, KEY, payload(1))
        store(adapter, other, payload(2))
        adapter.used(KEY)

    with contextlib.closing(open_adapter(TYPE_NAME, fields)) as adapter:
        ordered = sorted(adapter.scan(), key=lambda stored: stored.used_at)

    assert [stored.key for stored in ordered] == [other, KEY]
