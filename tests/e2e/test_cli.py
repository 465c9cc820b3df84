"""Each command of `larder` against a running server: what it prints, what --json gives, how it ends."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.dataplane.client import LarderClient, SharedKV
from tests.e2e.cli_runner import Ended, Terminal, argv, clean_environ, larder
from tests.stack import ROOT, Larder, free_port
from tests.waiting import wait_for

MODEL = "chat/model"
CHUNKS = 3
NOBODY = f"http://127.0.0.1:{free_port()}"
TOKENS = list(range(CHUNKS * 256))

pytestmark = pytest.mark.redis


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Larder]:
    """A server whose quotas act, with files behind L1, three stored chunks of alice's and a registered client."""
    place = tmp_path_factory.mktemp("larder")
    adapter = json.dumps({"type": "fs", "base_path": str(place / "objects")})
    with (
        Larder(place, l2_adapter=adapter, eviction_policy="IsolatedLRU", log_level="WARNING") as running,
        SharedKV([(2, 16 * CHUNKS, 16, 1, 8)]) as memory,
        LarderClient(f"tcp://127.0.0.1:{running.port}", MODEL) as client,
    ):
        assert running.http("PUT", "/quota/alice", {"limit_gb": 1.0}).status == 200
        client.register_shared(memory)
        client.store(TOKENS, list(range(16 * CHUNKS)), "r1", cache_salt="alice")
        client.end_session("r1")
        wait_for(lambda: len(running.http("GET", "/l2/keys").json()["entries"]) == CHUNKS, 20, "all is in L2")
        yield running


def ask(server: Larder, *words: str, stdin: str = "") -> Ended:
    return larder(*words, environ={"LARDER_URL": server.url}, stdin=stdin)


QUESTIONS = [
    ("status",),
    ("ping",),
    ("describe", "server"),
    ("describe", "adapter", "fs"),
    ("quota", "list"),
    ("quota", "get", "alice"),
    ("keys",),
    ("scrub", "state"),
    ("threads",),
    ("threads", "--periodic"),
    ("loglevel",),
    ("loglevel", "engine"),
    ("top",),
]


@pytest.mark.parametrize("words", QUESTIONS, ids=" ".join)
def test_a_question_is_answered_in_plain_text_and_in_json(server: Larder, words: tuple[str, ...]) -> None:
    plain, machine = ask(server, *words), ask(server, *words, "--json")

    assert (plain.code, plain.err) == (0, "")
    assert plain.out.strip()
    assert "\x1b" not in plain.out
    assert (machine.code, machine.err) == (0, "")
    assert [json.loads(line) for line in machine.out.splitlines()]
    assert machine.out.isascii()


CHANGES = [
    ("quota", "set", "bob", "1GiB"),
    ("quota", "delete", "bob"),
    ("scrub", "start"),
    ("loglevel", "tests.cli", "DEBUG"),
    ("prefetch", "--model", MODEL, "--salt", "alice"),
    ("bench", "--data-plane", "tcp://127.0.0.1:1", "--timeout", "0.3"),
    ("clear",),
]
#: What it takes to say no: the data plane of nobody for bench, the server itself for the others.
ALL = [words for words in QUESTIONS + CHANGES if words[0] != "bench"]


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_nobody_there_ends_with_3_and_one_line_that_names_the_address(words: tuple[str, ...]) -> None:
    ended = larder(*words, "--url", NOBODY, stdin="1 2 3")

    assert ended.code == 3
    assert ended.out == ""
    assert re.fullmatch(rf"larder: [A-Z]+ {NOBODY}/\S+: Connection refused", ended.error_line())


def test_the_common_options_stand_before_or_after_the_command(server: Larder) -> None:
    before = larder("--url", server.url, "--json", "quota", "list")
    after = larder("quota", "list", "--url", server.url, "--json", environ={"LARDER_URL": NOBODY})

    assert before.json() == after.json()
    assert "alice" in before.json()["users"]


def test_ping_measures_http_and_the_data_plane(server: Larder) -> None:
    found = ask(server, "ping", "--json").json()

    assert {name: part["state"] for name, part in found.items()} == {"http": "healthy", "data_plane": "healthy"}
    assert found["data_plane"]["address"] == f"tcp://127.0.0.1:{server.port}"
    assert all(part["ms"] > 0 for part in found.values())
    assert "data_plane" not in ask(server, "ping", "--http-only", "--json").json()


def test_a_data_plane_that_does_not_answer_is_unhealthy(server: Larder) -> None:
    ended = ask(server, "ping", "--data-plane", "tcp://127.0.0.1:1", "--timeout", "0.5")

    assert ended.code == 4
    assert "did not answer within 0.5 s" in ended.out


def test_quotas_are_set_shown_and_deleted(server: Larder) -> None:
    assert ask(server, "quota", "set", "carol smith", "512MiB", "--json").json()["limit_gb"] == 0.5
    assert ask(server, "quota", "get", "carol smith", "--json").json()["exists"] is True
    assert "512.0 MiB" in ask(server, "quota", "list").out
    assert ask(server, "quota", "delete", "carol smith").out == "the quota of carol smith is removed\n"
    assert ask(server, "quota", "delete", "carol smith").out == "carol smith had no quota\n"
    assert "none set" in ask(server, "quota", "get", "carol smith").out


def test_a_tenant_s_name_cannot_steer_the_terminal(server: Larder) -> None:
    ask(server, "quota", "set", "\x1b[2Jmallory", "1")

    listed = ask(server, "quota", "list").out

    assert "\\x1b[2Jmallory" in listed
    assert "\x1b" not in listed
    ask(server, "quota", "delete", "\x1b[2Jmallory")


@pytest.mark.parametrize(
    "words",
    [
        ("quota", "set", "alice", "much"),
        ("quota", "set", "alice"),
        ("quota", "get", "alice/bob"),
        ("nonsense",),
        ("status", "--nonsense"),
        ("status", "--timeout", "0"),
        ("status", "--url", "ftp://x"),
        ("loglevel", "engine", "LOUD"),
        ("threads", "--level", "high"),
        ("threads", "--periodic", "--id", "1"),
        ("keys", "--limit", "-1"),
        ("describe", "object", "xyz"),
        ("prefetch", "--model", "m"),
        ("prefetch", "--model", "m", "/nowhere"),
        ("prefetch",),
        ("bench",),
        ("bench", "all", "--data-plane", "auto"),
        ("bench", "no_such_benchmark"),
        ("completion", "tcsh"),
        ("--json", "server"),
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2_and_one_line(words: tuple[str, ...]) -> None:
    ended = larder(*words)

    assert (ended.code, ended.out) == (2, "")
    assert len(ended.error_line()) > 10


def test_a_command_alone_shows_its_help_and_ends_with_2() -> None:
    for words in ((), ("quota",), ("describe",), ("scrub",)):
        ended = larder(*words)

        assert (ended.code, ended.out) == (2, "")
        assert "Usage: larder" in ended.err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("keys", "--adapter", "nope"), "404 "),
        (("scrub", "start", "--adapter", "nope"), "404 "),
        (("describe", "adapter", "nope"), "there are: 0-fs"),
        (("describe", "object", "00ff00ff"), "no object in L1 or L2"),
        (("prefetch", "--model", "nobody/registered"), "409 "),
        (("prefetch", "--model", MODEL, "--salt", "a/b"), "400 "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_server_s_no_ends_with_1_and_its_reason(server: Larder, words: tuple[str, ...], reason: str) -> None:
    ended = ask(server, *words, stdin=" ".join(map(str, TOKENS)))

    assert (ended.code, ended.out) == (1, "")
    assert reason in ended.error_line()
    assert server.url in ended.error_line()


def test_keys_are_paged_up_to_the_limit(server: Larder) -> None:
    everything, some = ask(server, "keys", "--json"), ask(server, "keys", "--json", "--limit", "2")

    entries = [json.loads(line) for line in everything.out.splitlines()]
    assert len(entries) == CHUNKS
    assert {entry["key"]["cache_salt"] for entry in entries} == {"alice"}
    assert [json.loads(line) for line in some.out.splitlines()] == entries[:2]
    assert "--limit 0 lists all" in some.error_line()
    assert ask(server, "keys", "--json", "--limit", "0", "--model", MODEL).out == everything.out
    assert ask(server, "keys", "--model", "another").out == "no keys\n"


def test_an_object_is_described_by_the_beginning_of_its_hash(server: Larder) -> None:
    digest = json.loads(ask(server, "keys", "--json", "--limit", "1").out)["key"]["chunk_hash_hex"]

    described = ask(server, "describe", "object", digest[:12].upper())

    assert described.out.startswith(f"{digest}: the KV of one chunk, for {MODEL}, rank 0 of 1")
    assert "tenant 'alice'" in described.out
    assert " in L1 (held by nobody; " in described.out
    assert re.search(rf"; \d of {CHUNKS} objects go before it\), .* in fs\.\n", described.out)
    in_l1, in_l2 = ask(server, "describe", "object", digest, "--json").json()
    assert (in_l1["tier"], in_l1["state"], in_l1["leases"], in_l1["key"]) == ("l1", "ready", 0, in_l2["key"])
    assert (in_l2["tier"], in_l2["adapter"]) == ("l2", "fs")


def test_a_log_level_is_set_and_read_back(server: Larder) -> None:
    assert "tests.cli.level" in ask(server, "loglevel", "tests.cli.level", "error").out
    assert ask(server, "loglevel", "tests.cli.level").out == "ERROR\n"
    assert ask(server, "loglevel", "tests.cli.level", "--json").json() == {"tests.cli.level": "ERROR"}


def test_a_scrub_is_started_watched_and_stopped(server: Larder) -> None:
    assert ask(server, "scrub", "start", "--json").json()["state"] in ("running", "completed")
    wait_for(lambda: ask(server, "scrub", "state", "--json").json()["state"] == "completed", 20, "the scrub ends")

    assert f"{CHUNKS} objects of {CHUNKS} (100.0 %)" in ask(server, "scrub", "state").out
    assert ask(server, "scrub", "stop", "--json").json()["stopped"] is False


def test_threads_are_shown_with_their_process_and_filtered(server: Larder) -> None:
    whole = ask(server, "threads", "--json").json()
    few = ask(server, "threads", "--name", "MainThread", "--json").json()

    assert whole["total_threads"] > few["total_threads"] > 0
    assert "larder-engine" in whole["text"]
    assert ask(server, "threads", "--periodic", "--level", "high", "--name", "heartbeat").out.count("heartbeat") == 1


def test_clear_empties_l1(server: Larder) -> None:
    assert ask(server, "clear", "--json").json() == {"status": "ok"}
    assert ask(server, "status", "--json").json()["storage_manager"]["l1_manager"]["total_object_count"] == 0


def test_top_prints_as_many_pictures_as_asked(server: Larder) -> None:
    lines = ask(server, "top", "--json", "--count", "2", "--interval", "0.5").out.splitlines()

    first, second = map(json.loads, lines)
    assert first["rates"]["http_per_s"] is None
    assert second["rates"]["http_per_s"] > 0
    assert second["tenants"]["alice"]["limit_gb"] == 1.0
    assert "0-fs" in ask(server, "top").out


def test_a_quick_bench_moves_bytes_and_leaves_nothing_in_l2(server: Larder) -> None:
    ask(server, "quota", "set", "_default", "1GiB")

    report = ask(server, "bench", "--data-plane", "auto", "--mib", "8", "--rounds", "2", "--json").json()

    assert report["store_gb_per_s"]["median"] > 0
    assert report["load_gb_per_s"]["median"] > 0
    assert {entry["key"]["model_name"] for entry in server.http("GET", "/l2/keys").json()["entries"]} == {MODEL}
    table = ask(server, "bench", "--data-plane", f"tcp://127.0.0.1:{server.port}", "--mib", "8", "--rounds", "1")
    assert re.search(r"^store +\d", table.out, re.MULTILINE)


def test_a_bench_without_room_says_so(server: Larder) -> None:
    ended = ask(server, "bench", "--data-plane", "auto", "--mib", "512", "--rounds", "1")

    assert (ended.code, ended.out) == (1, "")
    assert "stored" in ended.error_line()


def test_a_bench_of_nobody_s_data_plane_ends_with_3() -> None:
    ended = larder("bench", "--data-plane", "tcp://127.0.0.1:1", "--timeout", "0.3")

    assert ended.code == 3
    assert "tcp://127.0.0.1:1 did not answer" in ended.error_line()


def test_output_that_nobody_reads_is_no_error(server: Larder) -> None:
    environ = clean_environ({"LARDER_URL": server.url})
    with subprocess.Popen(argv("threads"), env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.close()
        assert program.stderr.read() == b""

    assert program.returncode == 141


def test_the_server_s_own_help_comes_from_the_launcher() -> None:
    ended = larder("server", "--help")

    assert ended.code == 0
    assert "--l1-size-gb" in ended.out


def test_it_runs_from_anywhere_by_a_link(server: Larder, tmp_path: Path) -> None:
    link = tmp_path / "larder"
    link.symlink_to(ROOT / "larder")

    done = subprocess.run(
        [sys.executable, str(link), "--version"], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert re.fullmatch(r"\d+\.\d+\.\d+\n", done.stdout)


def test_a_terminal_gets_tables_and_colours(server: Larder) -> None:
    with Terminal("status", "--url", server.url) as terminal:
        assert terminal.end() == 0
        assert "─" in terminal.output
        assert "\x1b[32mhealthy" in terminal.output

    for environ in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        with Terminal("status", "--url", server.url, environ=environ) as terminal:
            assert terminal.end() == 0
            assert "\x1b" not in terminal.output
            assert "ADAPTER" in terminal.output


def test_a_hash_stays_whole_on_a_narrow_terminal(server: Larder) -> None:
    with Terminal("keys", "--url", server.url) as terminal:
        assert terminal.end() == 0

    assert len(re.findall(r"\b[0-9a-f]{64}\b", terminal.text)) == CHUNKS


@pytest.mark.parametrize(("keys", "code"), [("n\n", 1), ("\n", 1), ("\x03", 130), ("y\n", 0)])
def test_a_terminal_is_asked_before_something_is_lost(server: Larder, keys: str, code: int) -> None:
    ask(server, "quota", "set", "dave", "1GiB")
    with Terminal("quota", "delete", "dave", "--url", server.url) as terminal:
        terminal.wait_for("[y/N]")
        terminal.type(keys)
        assert terminal.end() == code

    assert ask(server, "quota", "get", "dave", "--json").json()["exists"] is (code != 0)


def test_clear_asks_too_and_can_be_told_not_to(server: Larder) -> None:
    with Terminal("clear", "--url", server.url) as terminal:
        terminal.wait_for("[y/N]")
        terminal.type("n\n")
        assert terminal.end() == 1
    with Terminal("clear", "--yes", "--url", server.url) as terminal:
        assert terminal.end() == 0
        assert "L1 is empty" in terminal.text


def test_top_is_live_on_a_terminal_until_ctrl_c(server: Larder) -> None:
    with Terminal("top", "--interval", "0.5", "--url", server.url) as terminal:
        terminal.wait_for("Tenants")
        terminal.wait_for("data plane 0.0/s")
        terminal.type("\x03")
        assert terminal.end() == 0
        assert terminal.output.rstrip().endswith("\x1b[?1049l"), "the screen of before is back"
