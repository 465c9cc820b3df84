"""Where settings come from, which source wins, and what a bad one says."""

import dataclasses
from pathlib import Path

import pytest

from contract.settings import SettingError, Settings, environment_name, flag_name, load_settings
from engine.config import GIB, EngineConfig
from engine.dataplane.limits import DataPlaneLimits
from workers.engine_worker import engine_config


def refusal(*argv: str, **environ: str) -> str:
    with pytest.raises(SettingError) as error:
        load_settings(argv, environ)
    return str(error.value)


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "larder.yaml"
    file.write_text("port: 3\nchunk_size: 3\nredis_port: 3\n")
    environ = {"LARDER_CONFIG": str(file), "LARDER_PORT": "2", "LARDER_CHUNK_SIZE": "2"}

    settings = load_settings(["--port", "1"], environ)

    assert (settings.port, settings.chunk_size, settings.redis_port, settings.http_port) == (1, 2, 3, 8080)


def test_a_file_named_by_the_flag_beats_the_one_of_the_environment(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"instance_id: {name}\n")

    settings = load_settings(["--config", str(tmp_path / "a")], {"LARDER_CONFIG": str(tmp_path / "b")})

    assert settings.instance_id == "a"


def test_yaml_words_stay_words(tmp_path: Path) -> None:
    file = tmp_path / "larder.yaml"
    file.write_text("shm_name: off\neviction_ratio: 1e-1\nadmin_token: 0123\n")

    settings = load_settings(["--config", str(file)], {})

    assert (settings.shm_name, settings.eviction_ratio, settings.admin_token) == ("off", 0.1, "0123")


def test_the_prefixed_name_beats_the_alias() -> None:
    assert load_settings((), {"REDIS_URL": "redis://a"}).redis_url == "redis://a"
    assert load_settings((), {"REDIS_URL": "redis://a", "LARDER_REDIS_URL": "redis://b"}).redis_url == "redis://b"


def test_an_empty_value_is_not_set() -> None:
    settings = load_settings(["--shm-name", ""], {"LARDER_PORT": "", "LARDER_ADMIN_TOKEN": "", "REDIS_URL": ""})

    assert settings == Settings()


def test_a_child_with_this_environment_gets_equal_settings() -> None:
    settings = load_settings(
        ["--l1-size-gb", "0.0625", "--shm-name", "off", "--redis-url", "redis://:pw@host:1/2"],
        {"LARDER_ADMIN_TOKEN": "a", "LARDER_READ_TOKEN": "b"},
    )

    assert load_settings((), settings.as_environ()) == settings


@pytest.mark.parametrize(
    ("flag", "value", "allowed"),
    [
        ("--l1-size-gb", "0", "a number above 0"),
        ("--l1-size-gb", "nan", "a number above 0"),
        ("--l1-size-gb", "inf", "a number above 0"),
        ("--eviction-ratio", "1.1", "a number above 0 and at most 1"),
        ("--worker-reap-timeout-seconds", "-1", "a number of at least 0"),
        ("--port", "65536", "a whole number from 0 to 65535"),
        ("--port", "1.0", "a whole number from 0 to 65535"),
        ("--http-port", "0", "a whole number from 1 to 65535"),
        ("--chunk-size", "0x10", "a whole number from 1 to"),
        ("--hash-algorithm", "md5", "one of blake3, sha256_cbor, builtin"),
        ("--eviction-policy", "", "one of LRU, IsolatedLRU, ARC, noop"),
        ("--instance-id", "a:b", "1 to 64 letters"),
        ("--shm-name", "a/b", "empty, off, or a name"),
        ("--redis-url", "localhost:6379", "a URL like redis://"),
        ("--redis-url", "redis://host:port", "a URL like redis://"),
        ("--log-level", "loud", "one of DEBUG"),
    ],
)
def test_a_bad_value_names_setting_value_source_and_what_is_allowed(flag: str, value: str, allowed: str) -> None:
    name = flag[2:].replace("-", "_")

    text = refusal(flag, value)

    assert text.startswith(f"{name}: got {value!r} (from {flag}), allowed: {allowed}")


def test_secrets_are_not_in_messages_nor_in_the_representation() -> None:
    assert "hush hush" not in refusal(LARDER_ADMIN_TOKEN="hush hush")
    assert "hush" not in refusal("--redis-url", "gopher://:hush@host")
    settings = Settings(admin_token="hush", read_token="hush", redis_url="redis://:hush@host")
    assert "hush" not in repr(settings)


def test_tokens_have_no_flag() -> None:
    assert "unrecognized arguments: --admin-token" in refusal("--admin-token", "x")


def test_a_flag_is_written_out_in_full() -> None:
    assert "unrecognized" in refusal("--l1-size", "1")


def test_names_that_look_like_typos_stop_the_start() -> None:
    assert "did you mean LARDER_L1_SIZE_GB?" in refusal(LARDER_L1_SIZE="1")
    assert load_settings((), {"LARDER_REQUIRE": "redis", "LARDER_HOME_PAGE": "x", "PORT": "1"}) == Settings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot: 1\n", "sets 'prot', which is no setting"),
        ("http_prot: 1\n", "did you mean http_port?"),
        ("port: [1]\n", "port: got ['1']"),
        ("- port\n", "a YAML file of `name: value` lines"),
        ("port: {\n", "cannot be read"),
        ("port: many\n", "port: got 'many' (from "),
    ],
)
def test_a_bad_file_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "larder.yaml"
    file.write_text(text)

    assert message in refusal("--config", str(file))


def test_an_empty_file_sets_nothing_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")

    assert load_settings(["--config", str(tmp_path / "empty.yaml")], {}) == Settings()
    assert "cannot be read" in refusal("--config", str(tmp_path / "missing.yaml"))


def test_help_lists_every_flag_and_no_token(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        load_settings(["--help"], {})

    text = capsys.readouterr().out
    flags = {flag_name(field.name) for field in dataclasses.fields(Settings) if field.metadata["flag"]}
    assert stop.value.code == 0
    assert {flag for flag in flags if f"{flag} " not in text} == set()
    assert "--admin-token" not in text


def test_defaults_pass_their_own_rules() -> None:
    for field in dataclasses.fields(Settings):
        if field.default not in ("", ()):
            assert field.metadata["rule"].parse(str(field.default)) == field.default
        assert environment_name(field.name) == "LARDER_" + field.name.upper()


def test_names_and_defaults_agree_with_the_engines() -> None:
    settings = Settings()
    own = {field.name for field in dataclasses.fields(Settings)}

    for field in dataclasses.fields(EngineConfig):
        if field.name not in ("l1_size_bytes", "data_dir"):
            assert field.name in own, f"{field.name} of EngineConfig is no setting"
            assert getattr(settings, field.name) == field.default, field.name
    assert engine_config(settings) == EngineConfig(data_dir=settings.data_dir)
    assert engine_config(Settings(l1_size_gb=0.5)).l1_size_bytes == GIB // 2
    assert settings.max_message_bytes == DataPlaneLimits().max_message_bytes
    assert settings.max_message_mode_bytes == DataPlaneLimits().max_message_mode_bytes
