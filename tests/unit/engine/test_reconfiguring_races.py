"""Devices come and go while objects are written, read and deleted: afterwards catalog and storage agree."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from engine.errors import EngineError
from engine.l1.eviction import LRU
from engine.l2.catalog import Catalog, Form
from engine.l2.dax_adapter import DaxAdapter
from engine.l2.metrics import TierMetrics
from engine.l2.reconfigure import ReconfigureError
from engine.l2.reconfiguring import reconfigure
from engine.l2.spec import read_spec
from engine.l2.tier import Tier
from engine.object_key import ObjectKey

SLOT = 3 * 4096
SLOTS = 12
KEYS = [ObjectKey(bytes([number]), "m", 1) for number in range(20)]
FORM = Form(b"layout", 0)
CHANGES = 150


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[Tier]:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(bytes(SLOTS * SLOT))
    devices = [{"device_path": str(tmp_path / "a"), "size": SLOTS * SLOT}]
    given = {"type": "dax", "slot_bytes": SLOT, "devices": devices, "hotplug_enabled": True}
    made = Tier(0, read_spec(given), Catalog(LRU()), TierMetrics(CollectorRegistry()).of("dax", 0))
    made.open()
    assert isinstance(made.adapter, DaxAdapter)
    made.adapter._changes._settle_s = 0.02
    made.take_scan()
    yield made
    made.close()


def use(tier: Tier, seed: int, stopping: threading.Event) -> None:
    """Writes, reads and deletes at random until told to stop."""
    dice = random.Random(seed)
    payload, into = memoryview(bytes(4096)), memoryview(bytearray(4096))
    while not stopping.is_set():
        key, what = dice.choice(KEYS), dice.random()
        try:
            if what < 0.5:
                tier.store(key, FORM, payload)
            elif what < 0.8:
                tier.load(key, FORM.fingerprint, into)
            else:
                tier.delete(key)
        except OSError:
            continue


def change(tier: Tier, dice: random.Random, directory: Path) -> None:
    path = str(directory / dice.choice("abc"))
    fields: dict[str, object] = {"device_path": path}
    operation = dice.choice(["add", "remove", "resize"])
    if operation != "add":
        fields.update(mode=dice.choice(["migrate", "evict"]), force=dice.random() < 0.3)
    if operation != "remove":
        fields["size"] = dice.choice([4, 8, SLOTS]) * SLOT
    try:
        reconfigure([tier], "dax", operation, 0, fields)
    except ReconfigureError:
        return


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_catalog_and_storage_agree_after_all_of_it(tier: Tier, tmp_path: Path, seed: int) -> None:
    stopping = threading.Event()
    users = [threading.Thread(target=use, args=(tier, 10 * seed + number, stopping)) for number in range(3)]
    dice = random.Random(seed)
    for user in users:
        user.start()
    try:
        for _ in range(CHANGES):
            change(tier, dice, tmp_path)
    finally:
        stopping.set()
        for user in users:
            user.join(30)

    assert isinstance(tier.adapter, DaxAdapter)
    tier.adapter.check()
    assert sorted(tier.catalog.keys()) == sorted(stored.key for stored in tier.adapter.scan())
    with pytest.raises(EngineError, match="dax adapter not found"):
        reconfigure([tier], "dax", "remove", 1, {"device_path": "x"})
