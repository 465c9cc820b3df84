"""The switch of /run_script and the modules its scripts may import, from flags, environment and file."""

from pathlib import Path

import pytest

from contract.settings import SettingError, load_settings


@pytest.mark.parametrize(
    ("argv", "is_on"),
    [
        ([], False),
        (["--run-script-enabled"], True),
        (["--run-script-api-enabled"], True),
        (["--run-script-api-enabled", "--port", "7"], True),
        (["--run-script-enabled", "true"], True),
        (["--run-script-enabled", "off"], False),
    ],
)
def test_the_switch(argv: list[str], is_on: bool) -> None:
    assert load_settings(argv, {}).run_script_enabled is is_on


def test_the_environment_and_a_child_of_it(tmp_path: Path) -> None:
    file = tmp_path / "larder.yaml"
    file.write_text("run_script_enabled: yes\nscript_allowed_imports: [json, os.path]\n")

    settings = load_settings(["--config", str(file)], {})

    assert (settings.run_script_enabled, settings.script_allowed_imports) == (True, ("json", "os.path"))
    assert load_settings([], settings.as_environ()) == settings


@pytest.mark.parametrize("text", ["json,os.path", "json os.path", '["json", "os.path"]', " json , os.path,"])
def test_modules_in_one_text(text: str) -> None:
    assert load_settings([], {"LARDER_SCRIPT_ALLOWED_IMPORTS": text}).script_allowed_imports == ("json", "os.path")
    assert load_settings([], {"LMCACHE_SCRIPT_ALLOWED_IMPORTS": text}).script_allowed_imports == ("json", "os.path")


def test_modules_in_several_flags() -> None:
    argv = ["--script-allowed-imports", "json,math", "--script-allowed-imports", "re"]

    assert load_settings(argv, {}).script_allowed_imports == ("json", "math", "re")


@pytest.mark.parametrize("text", ["7", "os;sys", "os.", "a" * 10 + ",-"])
def test_words_that_are_no_module(text: str) -> None:
    with pytest.raises(SettingError, match="names of modules"):
        load_settings(["--script-allowed-imports", text], {})
