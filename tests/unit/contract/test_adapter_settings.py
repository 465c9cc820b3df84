"""--l2-adapter: a setting that is an object, may be repeated, and may hold secrets."""

import json
from pathlib import Path
from typing import Any

import pytest

from contract.setting_rules import MAX_ADAPTERS, MAX_ADAPTERS_CHARACTERS
from contract.settings import SettingError, Settings, load_settings
from engine.config import EngineConfig

FS = {"type": "fs", "base_path": "/x"}
S3 = {"type": "s3", "bucket": "b", "secret_access_key": "hush", "max_bytes": 2**40, "allow_http": True, "serde": []}


def adapters(*argv: str, **environ: str) -> list[dict[str, Any]]:
    return [dict(adapter) for adapter in load_settings(argv, environ).l2_adapter]


def refusal(*argv: str, **environ: str) -> str:
    with pytest.raises(SettingError) as error:
        load_settings(argv, environ)
    return str(error.value)


def test_flags_are_kept_in_their_order() -> None:
    assert adapters("--l2-adapter", json.dumps(FS), "--port", "1", "--l2-adapter", json.dumps(S3)) == [FS, S3]
    assert adapters() == []


def test_the_environment_has_one_object_or_a_list() -> None:
    assert adapters(LARDER_L2_ADAPTER=json.dumps(FS)) == [FS]
    assert adapters(LARDER_L2_ADAPTER=json.dumps([S3, FS])) == [S3, FS]
    assert adapters(LARDER_L2_ADAPTER="[]") == adapters(LARDER_L2_ADAPTER="") == []
    assert adapters("--l2-adapter", json.dumps(FS), LARDER_L2_ADAPTER=json.dumps([S3, S3])) == [FS]


@pytest.mark.parametrize(
    "text",
    [
        'l2_adapter:\n  - {type: fs, base_path: /x}\n  - type: redis\n    host: "1"\n    port: 6379\n    tls: true\n',
        f"l2_adapter: '{json.dumps([FS, {'type': 'redis', 'host': '1', 'port': 6379, 'tls': True}])}'\n",
        f"l2_adapter: {json.dumps([FS, {'type': 'redis', 'host': '1', 'port': 6379, 'tls': True}])}\n",
    ],
)
def test_the_file_keeps_numbers_and_booleans(tmp_path: Path, text: str) -> None:
    file = tmp_path / "larder.yaml"
    file.write_text("shm_name: off\nadmin_token: 0123\n" + text)

    settings = load_settings(["--config", str(file)], {})

    assert list(settings.l2_adapter) == [FS, {"type": "redis", "host": "1", "port": 6379, "tls": True}]
    assert (settings.shm_name, settings.admin_token) == ("off", "0123")


def test_one_mapping_in_the_file_is_one_adapter(tmp_path: Path) -> None:
    file = tmp_path / "larder.yaml"
    file.write_text("l2_adapter:\n  type: fs\n  base_path: /x\n")

    assert list(load_settings(["--config", str(file)], {}).l2_adapter) == [FS]


def test_a_child_gets_equal_adapters() -> None:
    odd = {"type": "fs", "base_path": "/é'\"\\\n東京", "serde": [{"type": "zstd", "level": 3}], "x": 1.5, "y": None}
    settings = load_settings(["--l2-adapter", json.dumps(odd), "--l2-adapter", json.dumps(S3)], {})

    assert load_settings((), settings.as_environ()) == settings
    assert "LARDER_L2_ADAPTER" not in Settings().as_environ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"type": "s3", "secret_access_key": "hush"', "is not JSON at character 43"),
        ('{"secret_access_key": "hush"}', 'has no text "type" in number 0'),
        ('{"type": 1, "secret_access_key": "hush"}', 'has no text "type" in number 0'),
        ('["hush"]', "has no object as number 0"),
        ('"hush"', "has no object as number 0"),
        ('{"type": "s3", "n": NaN, "secret_access_key": "hush"}', "has NaN, which is no JSON"),
        ('{"type": "s3", "n": 1e999, "secret_access_key": "hush"}', "has a value that JSON does not know"),
        ('{"type": "s3", "n": ' + "9" * 5000 + "}", "has a number that is too long"),
        ("[" * 100_000, "is nested too deeply"),
        (json.dumps([FS] * (MAX_ADAPTERS + 1)), "has 17 adapters"),
        (json.dumps({"type": "x" * MAX_ADAPTERS_CHARACTERS}), "takes 65550 characters of JSON, 65536 are taken"),
    ],
)
def test_a_bad_value_is_explained_and_not_shown(text: str, reason: str) -> None:
    for message in (refusal("--l2-adapter", text), refusal(LARDER_L2_ADAPTER=text)):
        assert message.startswith("l2_adapter: got a value that is not shown (from ")
        assert reason in message
        assert 'allowed: objects like {"type": "fs"' in message
        assert "hush" not in message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("l2_adapter: {type: s3, when: 2026-01-01, password: hush}\n", "a value that JSON does not know"),
        ("l2_adapter: {type: s3, when: 2026-99-99, password: hush}\n", "a value has a bad form"),
        ("l2_adapter: [[hush]]\n", "has no object as number 0"),
        ("l2_adapter: hush\n", "is not JSON at character 1"),
        ("l2_adapter: {type: s3, password: 'hush}\n", "in line 2, column 1"),
        ("l2_adapter: {type: s3, password: *hush}\n", "in line 1, column 34"),
        ("admin_token: [hush]\n", "a value that is not shown"),
    ],
)
def test_a_bad_file_is_explained_and_not_shown(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "larder.yaml"
    file.write_text(text)

    message = refusal("--config", str(file))

    assert reason in message
    assert "hush" not in message


def test_a_command_line_without_quotes_is_not_repeated_in_the_message() -> None:
    message = refusal("--l2-adapter", '{"type":', '"s3",', '"password":', '"hush"}')

    assert message == "unrecognized arguments: words that belong to no flag"
    assert "hush" not in refusal("--admin-token=hush")


def test_representations_show_no_adapter() -> None:
    settings = load_settings(["--l2-adapter", json.dumps(S3)], {})

    assert "hush" not in repr(settings)
    assert "hush" not in repr(EngineConfig(l2_adapter=settings.l2_adapter))
