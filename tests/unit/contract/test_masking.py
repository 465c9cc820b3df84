"""What is masked where configurations, environments and queries are shown."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.masking import mask_environment, mask_query, mask_secrets, mask_urls
from contract.secret_names import is_secret_name


@pytest.mark.parametrize(
    "name",
    [
        "admin_token",
        "read_token",
        "password",
        "secret_key",
        "secretAccessKey",
        "AWS_ACCESS_KEY",
        "api-key",
        "DB_PASSWD",
        "session_token",
        "secret_access_key",
        "master_key",
        "dbpassword",
        "masterauth",
        "requirepass",
        "SMTP_PASS",
        "password2",
        "SharedAccessKey",
        "user_password_hash",
        "token_2",
        "authToken_value",
        "token",
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "tokens_per_block",
        "skip_first_n_tokens",
        "key",
        "hash_algorithm",
        "monkey",
        "keys",
        "key_file",
        "key_prefix",
        "password_file",
        "secretName",
        "token_budget",
        "pad_token_id",
        "author",
        "compass",
        "bypass",
        "key_name",
        "token_reader",
        "token_hasher.py",
        "next_page_token",
        "tokenizer",
        "password.txt",
        "",
    ],
)
def test_names_that_only_look_like_it(name: str) -> None:
    assert not is_secret_name(name)


def test_masking_keeps_what_is_no_secret() -> None:
    value = {"a": [1, None, True, "redis://h/0"], "token": 5, "password": "", "c": {"api_key": "x"}}

    assert mask_secrets(value) == {
        "a": [1, None, True, "redis://h/0"],
        "token": 5,
        "password": "",
        "c": {"api_key": "***"},
    }


@pytest.mark.parametrize(
    ("query", "masked"),
    [
        ("", ""),
        ("instance_id=7&block_ids=0,[2,5]", "instance_id=7&block_ids=0,[2,5]"),
        ("token=hunter2&x=1", "token=***&x=1"),
        ("x=1&%74oken=hunter2", "x=1&%74oken=***"),
        ("apiKey=hunter2&sig=hunter2", "apiKey=***&sig=***"),
        ("url=redis%3A%2F%2F%3Ahunter2%40h", "url=redis://:***@h"),
        ("token", "token"),
    ],
)
def test_secrets_in_a_query_are_masked(query: str, masked: str) -> None:
    assert mask_query(query) == masked


def test_adapters_are_shown_without_their_secrets() -> None:
    adapters = (
        {"type": "s3", "bucket": "b", "access_key_id": "hush", "secret_access_key": "hush", "session_token": "hush"},
        {
            "type": "redis",
            "url": "rediss://u:hush@h:1/0?password=hush",
            "serde": [{"type": "aesgcm", "key_file": "/k"}],
        },
        {"type": "fault", "inner": {"type": "redis", "host": "h", "password": "hush"}},
    )

    assert mask_secrets(adapters) == [
        {"type": "s3", "bucket": "b", "access_key_id": "***", "secret_access_key": "***", "session_token": "***"},
        {"type": "redis", "url": "rediss://u:***@h:1/0?password=***", "serde": [{"type": "aesgcm", "key_file": "/k"}]},
        {"type": "fault", "inner": {"type": "redis", "host": "h", "password": "***"}},
    ]


def test_only_urls_are_masked_where_names_say_nothing() -> None:
    body = {"tokens": "17", "error": ["at http://u:hush@h:1/b?sig=hush", ("x", None)], "http://u:hush@h/": 1.5}

    assert mask_urls(body) == {
        "tokens": "17",
        "error": ["at http://u:***@h:1/b?sig=***", ["x", None]],
        "http://u:***@h/": 1.5,
    }


def test_all_that_stands_under_the_name_of_a_secret_is_hidden() -> None:
    value = {
        "password": 4711, "token": 5, "secret": True, "api_key": None, "passwords": ["hush", ""],
        "credentials": {"user": "hush", "more": [{"any": "hush"}]}, "args": ["--password", "hush", "--port", "1"],
    }  # fmt: skip

    assert mask_secrets(value) == {
        "password": "***", "token": 5, "secret": True, "api_key": None, "passwords": ["***", ""],
        "credentials": {"user": "***", "more": [{"any": "***"}]}, "args": ["--password", "***", "--port", "1"],
    }  # fmt: skip


def test_secrets_inside_the_values_of_an_environment() -> None:
    environment = {
        "GUNICORN_CMD_ARGS": "--password hush --bind :1",
        "JAVA_OPTS": "-Dpassword=hush -Xmx4g",
        "LARDER_L2_ADAPTER": '[{"type": "s3", "secret_access_key": "hush", "prefix": "ä"}]',
        "LOOSE": '[{"type": "s3", "secret_access_key": "hush"',
        "TWICE": '{"a": "password=hush", "a": 1}',
        "PIP_INDEX_URL": "https://hush@p/simple",
        "BROKER": "amqp://me:hush@mq/v@w",
        "REDISCLI_AUTH": "hush",
        "GIT_AUTHOR_NAME": "Ann",
        "PATH": "/usr/bin:/bin",
        "OMP_NUM_THREADS": "4",
        "SHAPES": '{"a":[1,2.50]}',
    }

    assert mask_environment(environment) == {
        "GUNICORN_CMD_ARGS": "--password *** --bind :1",
        "JAVA_OPTS": "-Dpassword=*** -Xmx4g",
        "LARDER_L2_ADAPTER": '[{"type": "s3", "secret_access_key": "***", "prefix": "ä"}]',
        "LOOSE": '[{"type": "s3", "secret_access_key": "***"',
        "TWICE": '{"a": "password=***", "a": 1}',
        "PIP_INDEX_URL": "https://***@p/simple",
        "BROKER": "amqp://***@mq/v@w",
        "REDISCLI_AUTH": "***",
        "GIT_AUTHOR_NAME": "Ann",
        "PATH": "/usr/bin:/bin",
        "OMP_NUM_THREADS": "4",
        "SHAPES": '{"a":[1,2.50]}',
    }


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(_json, _json, st.lists(st.integers(0, 2), max_size=4))
def test_a_secret_is_hidden_wherever_it_lies(beside: object, hidden: object, way: list[int]) -> None:
    secret = "Zq7 hush; 'hush' 7qZ"
    value: object = {"db_password": [hidden, secret], "beside": beside}
    for step in way:
        value = [[beside, value], {"inner": value, "x": 1}, json.dumps(value)][step]

    assert "Zq7" not in json.dumps(mask_secrets(value))
    assert "Zq7" not in json.dumps(mask_environment({"X": json.dumps(value), "Y": f"conf {value}"}))
    assert mask_secrets(mask_secrets(value)) == mask_secrets(value)
