"""Every setting, its sources and what it may be.

A value comes from the first of: the flag `--l1-size-gb`, the environment's `LARDER_L1_SIZE_GB`, the YAML file's
`l1_size_gb`, the default. The file is named by `--config` or `LARDER_CONFIG`. Tokens have no flag, since a command
line is for all to see. An empty value in the environment or the file means "not set". What an L2 adapter needs is
checked by the engine; here an adapter is an object with a `type`. Rows for people: docs/configuration.md.
"""

import argparse
import dataclasses
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from contract import setting_rules as rules
from contract.errors import ContractError
from contract.masking import mask_secrets
from contract.version import COMMIT_VARIABLE

ENVIRONMENT_PREFIX = "LARDER_"
CONFIG_ENVIRONMENT = "LARDER_CONFIG"
#: Names with our prefix that are no settings.
OTHER_ENVIRONMENT = (CONFIG_ENVIRONMENT, "LARDER_REQUIRE", COMMIT_VARIABLE)
MIB = 1024**2


class SettingError(ContractError):
    """A setting that stops the start; the text names it, its value and source, and what is allowed."""


def _setting(
    default: Any,
    rule: rules.Rule,
    help_text: str,
    *,
    flag: bool = True,
    alias: str = "",
    secret: bool = False,
    flag_alias: str = "",
) -> Any:
    """`secret`: the value may hold one, so it is neither shown in messages nor in the representation. `alias` is
    another name in the environment, `flag_alias` another flag."""
    secret = secret or not flag
    names = {"flag": flag, "alias": alias, "flag_alias": flag_alias}
    metadata = {"rule": rule, "help": help_text, "secret": secret, **names}
    return field(default=default, metadata=metadata, repr=not secret and not alias)


@dataclass(frozen=True)
class Settings:
    """All settings of one instance, checked."""

    l1_size_gb: float = _setting(2.0, rules.number(above=0), "size of L1, the cache in host memory, in GiB")
    chunk_size: int = _setting(256, rules.integer(1, 65536), "tokens per chunk; only whole chunks are cached")
    hash_algorithm: str = _setting(
        "blake3", rules.one_of("blake3", "sha256_cbor", "builtin"), "how tokens become the key of a chunk"
    )
    eviction_policy: str = _setting(
        "LRU", rules.one_of("LRU", "IsolatedLRU", "ARC", "noop"), "who leaves L1 first; quotas act under IsolatedLRU"
    )
    eviction_trigger_watermark: float = _setting(
        0.8, rules.number(above=0, most=1), "share of L1 in use at which eviction begins"
    )
    eviction_ratio: float = _setting(0.2, rules.number(above=0, most=1), "share of the watermark that eviction frees")
    l2_adapter: tuple[Mapping[str, Any], ...] = _setting(
        (), rules.adapters(), "storage behind L1, as JSON; may be repeated, the first is the primary", secret=True
    )
    l2_store_policy: str = _setting(
        "default",
        rules.one_of("default", "skip_l1"),
        "what becomes of an object in L1 once it is stored in L2: it stays, or it goes",
    )
    write_back_max_bytes: int = _setting(
        0, rules.integer(0, 1024**5), "bytes of L1 that may wait for being written to L2; 0 = a quarter of L1"
    )
    write_back_drain_seconds: float = _setting(
        10.0, rules.number(least=0, most=86400), "how long a stop waits for what is still to be written to L2"
    )
    l2_lookup_deadline_seconds: float = _setting(
        2.0, rules.number(above=0, most=60), "time after which a lookup is answered with what L2 has brought by then"
    )
    host: str = _setting("127.0.0.1", rules.text(255), "address of the data plane")
    port: int = _setting(5555, rules.integer(0, 65535), "port of the data plane; 0 = a free one")
    http_host: str = _setting(
        "0.0.0.0", rules.text(255), "address of the HTTP API, or unix:/path for a socket of mode 0600"
    )
    http_port: int = _setting(8080, rules.integer(1, 65535), "port of the HTTP API")
    shm_name: str = _setting(
        "",
        rules.shared_memory_name(),
        "shared memory segment of L1; empty = a name made from instance and boot id; "
        "off = not offered to clients, their data travels in messages",
    )
    supported_transfer_mode: str = _setting(
        "auto", rules.one_of("auto", "lmcache_driven", "engine_driven"), "which clients may register"
    )
    l1_write_ttl_seconds: float = _setting(600.0, rules.number(above=0), "time from a client's prepare to its commit")
    l1_read_ttl_seconds: float = _setting(
        300.0, rules.number(above=0), "time a looked-up object is kept for its reader"
    )
    worker_reap_timeout_seconds: float = _setting(
        120.0, rules.number(least=0), "silence after which a worker that has pinged is removed; 0 = never"
    )
    worker_registration_grace_seconds: float = _setting(
        3600.0, rules.number(least=0), "silence allowed to a worker that has never pinged"
    )
    session_ttl_seconds: float = _setting(600.0, rules.number(above=0), "idle time after which a session is dropped")
    max_message_bytes: int = _setting(
        1024 * MIB, rules.integer(MIB, 16384 * MIB), "longest message the data plane accepts"
    )
    max_message_mode_bytes: int = _setting(
        2048 * MIB, rules.integer(MIB, 65536 * MIB), "bytes of KV data travelling in messages at any one time"
    )
    instance_id: str = _setting("default", rules.name(64), "names this instance's keys in Redis")
    data_dir: str = _setting("./data", rules.text(4096), "directory of the embedded Redis and of run files")
    redis_url: str = _setting(
        "", rules.redis_url(), "an external Redis; empty = the embedded one on redis_port", alias="REDIS_URL"
    )
    redis_port: int = _setting(6380, rules.integer(1, 65535), "port of the embedded Redis, on loopback")
    internal_api_server_enabled: bool = _setting(
        False,
        rules.boolean(),
        "whether the engine process serves HTTP by itself, too; see internal_api_server_*",
        alias="LMCACHE_INTERNAL_API_SERVER_ENABLED",
    )
    internal_api_server_host: str = _setting(
        "0.0.0.0",
        rules.text(255),
        "address of the internal API servers",
        alias="LMCACHE_INTERNAL_API_SERVER_HOST",
    )
    internal_api_server_port_start: int = _setting(
        6999,
        rules.integer(1, 65000),
        "port of the internal API server with index 0; worker w has this + 1 + w",
        alias="LMCACHE_INTERNAL_API_SERVER_PORT_START",
    )
    internal_api_server_include_index_list: tuple[int, ...] = _setting(
        (),
        rules.integers(0, 65535, 256),
        "which indices run an internal API server; empty = all",
        alias="LMCACHE_INTERNAL_API_SERVER_INCLUDE_INDEX_LIST",
    )
    internal_api_server_socket_path_prefix: str = _setting(
        "",
        rules.text(90),
        "Unix sockets PREFIX_PORT of mode 0600 instead of ports",
        alias="LMCACHE_INTERNAL_API_SERVER_SOCKET_PATH_PREFIX",
    )
    internal_api_server_access_log: bool = _setting(
        True,
        rules.boolean(),
        "whether the internal API servers log requests, where their log level lets them",
        alias="LMCACHE_INTERNAL_API_SERVER_ACCESS_LOG",
    )
    internal_api_server_log_level: str = _setting(
        "WARNING",
        rules.one_of("DEBUG", "INFO", "WARNING", "ERROR"),
        "least level that internal API servers log",
        alias="LMCACHE_INTERNAL_API_SERVER_LOG_LEVEL",
    )
    engine_stuck_seconds: float = _setting(
        30.0, rules.number(least=0), "time without a sound heartbeat after which the launcher starts the engine anew"
    )
    web_workers: int = _setting(2, rules.integer(1, 64), "gunicorn worker processes")
    web_threads: int = _setting(16, rules.integer(2, 256), "threads per gunicorn worker")
    command_queue_max: int = _setting(1000, rules.integer(1, 100_000), "commands waiting or running before 503")
    command_queue_max_bytes: int = _setting(
        64 * MIB, rules.integer(65536, 1024 * MIB), "bytes of commands waiting or running before 503"
    )
    log_level: str = _setting("INFO", rules.one_of("DEBUG", "INFO", "WARNING", "ERROR"), "least level that is logged")
    run_script_enabled: bool = _setting(
        False,
        rules.boolean(),
        "whether POST /run_script runs Python in the engine's process",
        flag_alias="--run-script-api-enabled",
    )
    script_allowed_imports: tuple[str, ...] = _setting(
        (),
        rules.module_names(100),
        "modules that scripts of /run_script may import",
        alias="LMCACHE_SCRIPT_ALLOWED_IMPORTS",
    )
    admin_token: str = _setting("", rules.token(), "opens the admin routes; empty = loopback only", flag=False)
    read_token: str = _setting("", rules.token(), "opens the read routes; empty = open", flag=False)

    @property
    def effective_redis_url(self) -> str:
        """Where Redis is: the external one, or the embedded one's address."""
        return self.redis_url or f"redis://127.0.0.1:{self.redis_port}/0"

    @property
    def run_dir(self) -> Path:
        """Where heartbeat and lock files live."""
        return Path(self.data_dir) / "run"

    def as_environ(self) -> dict[str, str]:
        """The environment that makes a child load equal settings, together with nothing else of ours."""
        values = {environment_name(item.name): getattr(self, item.name) for item in dataclasses.fields(self)}
        texts = {
            name: json.dumps(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value != ()
        }
        return {name: str(value) for name, value in texts.items() if value != ""}


def flag_name(name: str) -> str:
    return "--" + name.replace("_", "-")


def environment_name(name: str) -> str:
    return ENVIRONMENT_PREFIX + name.upper()


def load_settings(argv: Sequence[str] | None, environ: Mapping[str, str]) -> Settings:
    """The settings from flags (without the program's name; None = no flags), environment and file.

    Raises SettingError. `--help` prints the flags and exits.
    """
    flags = vars(_parser().parse_args(list(argv or ())))
    config_path = flags.pop("config") or environ.get(CONFIG_ENVIRONMENT, "")
    from_file = _read_file(config_path) if config_path else {}
    _refuse_misspelled(environ)
    values: dict[str, Any] = {}
    for item in dataclasses.fields(Settings):
        found = _find(item, flags, environ, from_file, config_path)
        if found is not None:
            values[item.name] = _parse(item, *found)
    return Settings(**values)


def parse_value(name: str, given: Any) -> Any:
    """The value that a setting would have from a text, a number or a boolean. Raises KeyError, SettingError."""
    item = {item.name: item for item in dataclasses.fields(Settings)}[name]
    if not isinstance(given, str | int | float):
        raise SettingError(f"{name}: allowed: {item.metadata['rule'].allowed}")
    return _parse(item, given if isinstance(given, str) else json.dumps(given), "the request")


def _find(
    item: "dataclasses.Field[Any]",
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    from_file: Mapping[str, Any],
    config_path: str,
) -> tuple[Any, str] | None:
    """What the first source says, a text but for repeatable settings, and the source's name; None for the default."""
    flag = flags.get(item.name)
    if flag is not None:
        return flag, flag_name(item.name)
    for name in (environment_name(item.name), item.metadata["alias"]):
        if name and environ.get(name):
            return environ[name], name
    if from_file.get(item.name):
        return from_file[item.name], config_path
    return None


def _parse(item: "dataclasses.Field[Any]", given: Any, source: str) -> Any:
    rule: rules.Rule = item.metadata["rule"]
    if given == item.default == "":
        return ""
    try:
        return rule.parse(given)
    except ValueError as error:
        shown = "a value that is not shown" if item.metadata["secret"] else repr(mask_secrets(given))
        reason = f", which {error}" if isinstance(error, rules.Refused) else ""
        raise SettingError(f"{item.name}: got {shown} (from {source}){reason}, allowed: {rule.allowed}") from None


def _read_file(path: str) -> dict[str, Any]:
    """The YAML file's values: texts, with `off` and `1e3` as they are written; those of a repeatable setting may be
    lists and mappings, in which numbers and booleans are such."""
    fields = {item.name: item for item in dataclasses.fields(Settings)}
    try:
        document = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        if document is None or document.value == "":
            return {}
        if not isinstance(document, yaml.MappingNode):
            raise SettingError(f"config: got {path!r}, allowed: a YAML file of `name: value` lines")
        loaded: dict[str, Any] = yaml.constructor.BaseConstructor().construct_document(document)
        for name_node, node in document.value:
            item = fields.get(name_node.value) if isinstance(name_node, yaml.ScalarNode) else None
            if item is not None and item.metadata["rule"].repeatable and not isinstance(node, yaml.ScalarNode):
                loaded[item.name] = _as_list(yaml.constructor.SafeConstructor().construct_document(node))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise SettingError(f"config: got {path!r}, which cannot be read: {_without_content(error)}") from None
    for name, value in loaded.items():
        if name not in fields:
            raise SettingError(f"config: {path} sets {name!r}, which is no setting{_hint(str(name), list(fields))}")
        if not isinstance(value, str) and not fields[name].metadata["rule"].repeatable:
            shown = "a value that is not shown" if fields[name].metadata["secret"] else repr(value)
            raise SettingError(f"{name}: got {shown} (from {path}), allowed: a single value")
    return loaded


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _without_content(error: Exception) -> str:
    """What is wrong with a file, and where, without a word of what stands there."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark, problem = error.problem_mark, re.sub(r"'[^']*'|\"[^\"]*\"", "...", error.problem or "")
        return f"{problem} in line {mark.line + 1}, column {mark.column + 1}"
    if isinstance(error, OSError):
        return str(error)
    return (
        "it is not UTF-8"
        if isinstance(error, UnicodeDecodeError)
        else f"a value has a bad form ({type(error).__name__})"
    )


def _refuse_misspelled(environ: Mapping[str, str]) -> None:
    """An unknown LARDER_ name near one of ours is taken for a typo; others may belong to somebody else."""
    known = [environment_name(item.name) for item in dataclasses.fields(Settings)]
    for name in environ:
        if name.startswith(ENVIRONMENT_PREFIX) and name not in known and name not in OTHER_ENVIRONMENT:
            hint = _hint(name, known)
            if hint:
                raise SettingError(f"{name} in the environment is no setting{hint}")


def _hint(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
    return f"; did you mean {near[0]}?" if near else ""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Stops the start. Words that belong to no flag may be pieces of a secret: flags alone are repeated."""
        head, colon, rest = message.partition("unrecognized arguments: ")
        flags = [word.partition("=")[0] for word in rest.split() if word.startswith("--")]
        raise SettingError(head + colon + (" ".join(flags) or "words that belong to no flag") if colon else message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="larder server", allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings")
    for item in dataclasses.fields(Settings):
        if item.metadata["flag"]:
            rule: rules.Rule = item.metadata["rule"]
            default = "none" if item.default == () else repr(item.default)
            text = f"{item.metadata['help']} ({rule.allowed}; default {default})"
            how: dict[str, Any] = {"action": "append"} if rule.repeatable else {"action": "store"}
            if rule.is_switch:
                how.update(nargs="?", const="true")
            flags = [name for name in (flag_name(item.name), item.metadata["flag_alias"]) if name]
            parser.add_argument(*flags, dest=item.name, metavar="VALUE", help=text.replace("%", "%%"), **how)
    return parser
