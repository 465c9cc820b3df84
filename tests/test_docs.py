"""The documents are complete: what exists in the code stands in them, and what they link to exists."""

import dataclasses
import json
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

import contract.keys
from contract.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("bench/*.md"), *ROOT.glob("demo/*.md")])
OURS = ("app", "cli", "contract", "engine", "workers")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)


def read(name: str) -> str:
    return (ROOT / name).read_text()


def table_row(page: str, first_cell: str) -> str:
    """The row of a Markdown table on `page` whose first cell names `first_cell`; "" when there is none."""
    for line in page.splitlines():
        if line.startswith("|") and f"`{first_cell}`" in line.split("|")[1]:
            return line
    return ""


@pytest.mark.parametrize("field", dataclasses.fields(Settings), ids=lambda field: field.name)
def test_each_setting_has_a_row_with_its_default(field: "dataclasses.Field[object]") -> None:
    row = table_row(read("docs/configuration.md"), field.name)

    assert row, f"docs/configuration.md has no row for `{field.name}`"
    if field.default not in (dataclasses.MISSING, "", (), None):
        assert str(field.default).removesuffix(".0") in row, f"the row of {field.name} lacks its default: {row}"


def keys_of_the_code() -> list[str]:
    """Every key that contract.keys spells, with `I` for the instance and `ID` for what varies."""
    keys = contract.keys.Keys("I")
    names = []
    for name, member in sorted(vars(contract.keys.Keys).items()):
        if name.startswith("_"):
            continue
        key = getattr(keys, name)
        names.append(key(*("ID" for _ in range(member.__code__.co_argcount - 1))) if callable(key) else key)
    return [key for key in names if str(key).startswith("larder:")]


def test_each_key_is_documented() -> None:
    page = read("docs/redis_keys.md")

    assert [pattern for pattern in contract.keys.PATTERNS if f"`{pattern}`" not in page] == []


def test_each_key_of_the_code_is_in_the_list_of_patterns() -> None:
    patterns = {pattern.replace("NAME", "ID") for pattern in contract.keys.PATTERNS}

    assert len(keys_of_the_code()) >= len(patterns) - 1
    assert [key for key in keys_of_the_code() if key not in patterns] == []


LIST_ROUTES = """
import json, wsgi
rules = wsgi.app.url_map.iter_rules()
print(json.dumps([(method, rule.rule) for rule in rules for method in rule.methods - {"HEAD", "OPTIONS"}]))
"""


def route_patterns() -> list[tuple[str, str]]:
    """(method, path) of every route that gunicorn serves."""
    done = subprocess.run([sys.executable, "-c", LIST_ROUTES], cwd=ROOT, capture_output=True, text=True, check=True)
    return sorted((method, rule) for method, rule in json.loads(done.stdout))


def method_of(call: str) -> str:
    """The method that a curl command line uses."""
    named = re.search(r"-X\s*([A-Z]+)", call)
    if named:
        return named[1]
    return "POST" if re.search(r"--data|--json|-d ", call) else "GET"


def test_each_route_has_a_curl() -> None:
    calls = re.findall(r"curl[^\n`]*", read("docs/http_api.md").replace("\\\n", " "))

    def shown(method: str, rule: str) -> bool:
        path = re.sub(r"<[^>]+>", r"[^/\\s?'\"]+", rule)
        asked = re.compile(rf"(:\d+|\$\w+|\$\{{\w+\}}){path}(?=[?\s'\"#]|$)")
        return any(asked.search(call) and method_of(call) == method for call in calls)

    assert [f"{method} {rule}" for method, rule in route_patterns() if not shown(method, rule)] == []


def make_targets() -> list[str]:
    return re.findall(r"^([a-z]+):.*## ", read("Makefile"), re.MULTILINE)


def test_each_make_target_is_in_help_and_readme() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert {"run", "test", "soak", "check", "bench", "demo", "help"} <= set(make_targets())
    assert [name for name in make_targets() if f"make {name} " not in listed] == []
    assert [name for name in make_targets() if f"make {name}" not in read("README.md")] == []


def anchors(page: str) -> set[str]:
    """The fragments a Markdown page offers, made from its headings as GitHub makes them."""
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(page))
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in LINK.findall(page.read_text()):
        if "://" in link or link.startswith("mailto:"):
            continue
        place, _, fragment = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or (fragment and fragment not in anchors(target.read_text())):
            broken.append(link)
    assert broken == []


def test_the_map_names_places_that_exist() -> None:
    """Backticked paths of docs/architecture.md: from the root, or the end of a source file's path."""
    sources = [str(path.relative_to(ROOT)) for folder in OURS for path in (ROOT / folder).rglob("*.py")]
    named = re.findall(r"`([\w./*-]+(?:/|\.py))`", read("docs/architecture.md"))

    def exists(name: str) -> bool:
        return bool(list(ROOT.glob(name))) or any(fnmatch(source, "*/" + name) for source in sources)

    subfolders = {folder.name + "/" for folder in (ROOT / "tests").iterdir()}
    subfolders |= {folder.name + "/" for folder in (ROOT / "engine").iterdir()}
    assert named
    assert [name for name in named if not exists(name) and name not in subfolders] == []


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        links = [link.partition("#")[0] for link in LINK.findall(page.read_text()) if "://" not in link]
        waiting += [(page.parent / link).resolve() for link in links if link]
    assert [str(page.relative_to(ROOT)) for page in PAGES if page not in reached] == []
