"""What the engine tells about single objects of L1."""

from typing import Any

from contract.commands import FindL1Objects
from engine.l2.fault_adapter import Faults
from tests.unit.engine.engine_client import OBJECT_BYTES, fill, request
from tests.unit.engine.test_second_tier import FAULTY, engine_with, faults_of
from tests.waiting import wait_for
from workers.l1_handlers import find


def test_an_object_on_its_way_to_a_storage_says_so_until_it_is_there() -> None:
    with engine_with(FAULTY) as engine:
        wait_for(lambda: engine.l2.tiers[0].catalog.complete, 5, "the scan")
        faults_of(engine).set_faults(Faults(latency_rate=1, latency_s=60))
        assert fill(engine, request(1))

        def told() -> dict[str, Any]:
            prefix = engine.l1.find("", 1)[0][0].key.chunk_hash.hex()[:8]
            return dict(find(engine, FindL1Objects(prefix))["entries"][0])

        wait_for(lambda: told()["to_be_written_to"] == ["0-fault"], 5, "the write is under way")
        assert (told()["size_bytes"], told()["state"], told()["pins"]) == (OBJECT_BYTES, "ready", 1)
        faults_of(engine).set_faults(Faults())
        wait_for(lambda: told()["to_be_written_to"] == [], 10, "it is written")
        assert (told()["colder_objects"], told()["ordered_objects"], told()["pins"]) == (0, 1, 0)
