"""The house rules that a reader cannot see from one file: who imports whom, and how long things may be.

package            of ours                               never
-----------------  ------------------------------------  ------------------------------------------
contract           contract                              torch, zmq
app, wsgi.py,      app, contract                         torch, zmq
gunicorn.conf.py
workers            workers, contract, engine, and of     torch
                   app only app.internal_server
cli                cli, contract                         torch, flask; rich and zmq where they are used
larder             cli and workers, where they are used
engine             engine, looking down                  flask, torch outside engine/device and l2/serde,
                                                         redis outside engine/l2/redis_adapter.py

Down means: dataplane -> engine.py -> movement -> l1, l2, device -> the plain modules beside engine.py.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("contract", "app", "engine", "workers", "cli")
WEB_ENTRIES = ("wsgi.py", "gunicorn.conf.py")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


@dataclass(frozen=True)
class Import:
    """One imported module, by full name; `deferred` when it stands in a function or under TYPE_CHECKING."""

    source: str
    module: str
    line: int
    deferred: bool

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.module}"

    def is_of(self, *packages: str) -> bool:
        return any(self.module == package or self.module.startswith(package + ".") for package in packages)


def product_files() -> list[Path]:
    files = [path for package in OURS for path in sorted((ROOT / package).rglob("*.py"))]
    return files + [ROOT / name for name in (*WEB_ENTRIES, "larder")]


def own_programs() -> list[Path]:
    return [path for folder in ("tests", "bench", "demo") for path in sorted((ROOT / folder).rglob("*.py"))]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def imports_of(path: Path) -> Iterator[Import]:
    yield from _imports_below(parse(path), path, deferred=False)


def _imports_below(node: ast.AST, path: Path, *, deferred: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(name_of(path), alias.name, child.lineno, deferred)
        elif isinstance(child, ast.ImportFrom):
            for module in _imported_modules(child, path):
                yield Import(name_of(path), module, child.lineno, deferred)
        else:
            inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _is_for_types_only(child)
            yield from _imports_below(child, path, deferred=deferred or inner)


def _imported_modules(statement: ast.ImportFrom, path: Path) -> list[str]:
    """`from engine import l1` names the module engine.l1 when there is such a module, else engine."""
    assert statement.level == 0, f"{name_of(path)}:{statement.lineno}: relative import; spell the package"
    base = statement.module or ""
    found = []
    for alias in statement.names:
        place = ROOT.joinpath(*base.split("."), alias.name)
        is_module = place.is_dir() or place.with_suffix(".py").exists()
        found.append(f"{base}.{alias.name}" if is_module else base)
    return found


def _is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def all_imports(*places: str) -> list[Import]:
    return [found for path in product_files() if name_of(path).startswith(places) for found in imports_of(path)]


def assert_none(wrong: list[Import]) -> None:
    assert not wrong, "\n".join(map(str, wrong))


def test_contract_is_the_bottom_floor() -> None:
    wrong = [i for i in all_imports("contract/") if i.is_of("app", "engine", "workers", "torch", "zmq")]
    assert_none(wrong)


def test_the_web_tier_knows_only_the_contract() -> None:
    wrong = [i for i in all_imports("app/", *WEB_ENTRIES) if i.is_of("engine", "workers", "torch", "zmq")]
    assert_none(wrong)


def test_workers_take_nothing_of_the_web_tier_but_the_internal_server() -> None:
    wrong = [i for i in all_imports("workers/", "larder") if i.is_of("app") and not i.is_of("app.internal_server")]
    assert_none(wrong)


def test_the_engine_knows_no_contract_no_http_and_no_redis() -> None:
    wrong = [i for i in all_imports("engine/") if i.is_of("contract", "app", "workers", "flask", "redis")]
    assert_none([i for i in wrong if not (i.is_of("redis") and i.source == "engine/l2/redis_adapter.py")])


def test_the_command_line_knows_only_the_contract() -> None:
    wrong = [i for i in all_imports("cli/") if i.is_of("app", "engine", "workers", "bench", "torch", "flask")]
    assert_none(wrong)
    slow = [i for i in all_imports("cli/") if i.is_of("rich", "zmq", "msgspec", "numpy") and not i.deferred]
    assert_none(slow)


def test_the_server_and_the_other_commands_start_without_each_other() -> None:
    assert_none([i for i in all_imports("larder") if i.is_of("cli", "workers") and not i.deferred])
    assert_none([i for i in all_imports("contract/", "app/", "engine/", "workers/") if i.is_of("cli")])


def test_torch_is_imported_by_device_code_and_codecs_alone_and_on_first_need() -> None:
    at_home = ("engine/device/", "engine/l2/serde/")
    wrong = [i for i in all_imports("") if i.is_of("torch") and not (i.source.startswith(at_home) and i.deferred)]
    assert_none(wrong)


ENGINE_FLOORS = {"dataplane": 4, "engine": 3, "movement": 2, "l1": 1, "l2": 1, "device": 1}


def engine_part(module: str) -> str:
    """The part of the engine a module belongs to: a subpackage, "engine" for engine.py, or the plain module's name."""
    return module.split(".")[1]


def test_the_engine_looks_down_only() -> None:
    wrong = []
    for found in all_imports("engine/"):
        if not found.is_of("engine") or found.module == "engine":
            continue
        source = engine_part(found.source.removesuffix(".py").replace("/", "."))
        target = engine_part(found.module)
        if source == target or target not in ENGINE_FLOORS:
            continue
        floor = ENGINE_FLOORS.get(source, ENGINE_FLOORS["movement"])
        if ENGINE_FLOORS[target] >= floor:
            wrong.append(found)
    assert_none(wrong)


def test_what_l1_l2_and_device_stand_on_is_plain() -> None:
    """A module beside engine.py that looks into l1, l2 or device may not be used by them: that would be a circle."""
    uses: dict[str, set[str]] = {}
    for found in all_imports("engine/"):
        if found.is_of("engine") and found.module != "engine":
            source = engine_part(found.source.removesuffix(".py").replace("/", "."))
            uses.setdefault(source, set()).add(engine_part(found.module))

    for floor in ("l1", "l2", "device"):
        reached, waiting = set(), [floor]
        while waiting:
            part = waiting.pop()
            for used in uses.get(part, set()) - reached - {floor}:
                reached.add(used)
                waiting.append(used)
        assert not reached & set(ENGINE_FLOORS), f"engine/{floor} stands on {sorted(reached & set(ENGINE_FLOORS))}"


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("app", ("torch", "zmq", "engine", "workers", "numpy")),
        ("workers.launcher", ("torch", "zmq", "engine", "numpy", "click", "rich", "cli")),
        ("cli.program", ("torch", "zmq", "engine", "workers", "app", "flask", "redis", "rich", "numpy")),
        ("workers.engine_worker", ("torch", "flask")),
        ("engine.dataplane.client", ("torch", "flask", "redis")),
    ],
)
def test_what_importing_does_not_bring(module: str, forbidden: tuple[str, ...]) -> None:
    script = f"import sys, {module}; print([name for name in {forbidden!r} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_nothing_is_unpickled_without_restriction() -> None:
    calls = [
        f"{name_of(path)}:{node.lineno}"
        for path in product_files()
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute) and node.attr in {"load", "loads"}
        if isinstance(node.value, ast.Name) and node.value.id in {"pickle", "marshal", "shelve", "dill"}
    ]
    assert calls == []


def test_tests_wait_for_conditions_and_never_sleep() -> None:
    sleeps = [
        f"{name_of(path)}:{node.lineno}"
        for path in own_programs()
        if path.parts[len(ROOT.parts)] == "tests"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name)
        if (node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id) == "sleep"
    ]
    assert sleeps == []


def test_every_product_module_says_what_it_is_for() -> None:
    silent = [
        name_of(path) for path in product_files() if path.read_text().strip() and not ast.get_docstring(parse(path))
    ]
    assert silent == []


def test_files_and_functions_stay_readable() -> None:
    too_long = []
    for path in product_files() + own_programs():
        lines = path.read_text().count("\n")
        if lines > MAX_FILE_LINES:
            too_long.append(f"{name_of(path)}: {lines} lines, {MAX_FILE_LINES} allowed")
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    too_long.append(f"{name_of(path)}:{node.lineno} {node.name}: {length} lines")
    assert too_long == []
