"""The key names, and that every one of them is in the schema."""

import contract.keys
from contract.keys import PATTERNS, Keys, field_to_salt, salt_to_field


def test_all_keys_of_an_instance_share_a_cluster_slot() -> None:
    keys = Keys("blue")
    names = [keys.engine, keys.commands, keys.command("1"), keys.reply("1"), keys.dead, keys.snapshot("status")]
    names += [keys.quota, keys.quota_epoch, keys.usage, keys.audit]

    assert [name for name in names if not name.startswith("larder:{blue}:")] == []
    assert len(set(names)) == len(names)


def test_the_schema_table_names_every_pattern() -> None:
    table = contract.keys.__doc__ or ""

    assert [pattern for pattern in PATTERNS if f"\n{pattern} " not in table] == []


def test_the_empty_salt_has_a_field_of_its_own() -> None:
    assert salt_to_field("") == "_default"
    assert [field_to_salt(salt_to_field(salt)) for salt in ("", "alice", " ")] == ["", "alice", " "]
