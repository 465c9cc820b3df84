"""What is masked where configurations, environments and queries are shown."""

import pytest

from contract.masking import is_secret_name, mask_query, mask_secrets, mask_urls


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
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    ["tokens_per_block", "skip_first_n_tokens", "key", "hash_algorithm", "monkey", "keys", "key_file", "key_prefix"],
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
