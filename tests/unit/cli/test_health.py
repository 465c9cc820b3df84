"""What `larder status` and `larder top` say of what operators switched off."""

from cli.commands.health import switched_pairs


def test_what_is_switched_off_is_one_line_and_nothing_while_all_is_on() -> None:
    adapter = {"adapter_index": 0, "type_name": "fs", "bypassed": False}
    report = {"frozen": False, "hot_cache": True, "storage_manager": {"l2_adapters": [adapter]}}
    assert switched_pairs(report) == []
    assert switched_pairs({"storage_manager": {}}) == []

    [(name, line)] = switched_pairs(
        {"frozen": True, "hot_cache": False, "storage_manager": {"l2_adapters": [{**adapter, "bypassed": True}]}}
    )

    assert name == "switched"
    for part in ("FROZEN", "hot cache off", "L2 adapter 0-fs bypassed"):
        assert part in str(line)
