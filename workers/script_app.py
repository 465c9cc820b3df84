"""The `app` of a script: the live engine, and beside it the names under which LMCache's scripts look for theirs.

name                                                       what it is here
---------------------------------------------------------  ------------------------------------------------------
app.state.engine                                           the Engine of this process
app.state.lmcache_adapter.lmcache_engine                   a view of it:
  .engine                                                  the same Engine
  .metadata.model_name, .world_size                        of the worker that registered first; "" and 1 without one
  .metadata.worker_id, .is_first_rank()                    0 and true: one engine serves all ranks
  .metadata.kv_shape                                       (layers, 2 or 1, tokens per chunk, heads, head size)
  .storage_manager.storage_backends["LocalCPUBackend"]     L1; .use_hot: whether it keeps what is in L2 too
"""

import re
from types import SimpleNamespace
from typing import Any, cast

from engine.engine import Engine
from engine.registrations import Registration

LOCAL_CPU_BACKEND = "LocalCPUBackend"


def make_script_app(engine: Engine) -> SimpleNamespace:
    """What a script sees as `app`."""
    adapter = SimpleNamespace(lmcache_engine=EngineView(engine))
    return SimpleNamespace(state=SimpleNamespace(engine=engine, lmcache_adapter=adapter))


class EngineView:
    """The engine under LMCache's names."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.metadata = Metadata(engine)
        self.storage_manager = SimpleNamespace(storage_backends={LOCAL_CPU_BACKEND: LocalCPUBackend(engine)})


class LocalCPUBackend:
    """L1 as LMCache names it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def use_hot(self) -> bool:
        """Whether objects stay in host memory once they are stored in L2."""
        return self._engine.steering.is_hot


class Metadata:
    """What is known of the model, as of now."""

    worker_id = 0

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def is_first_rank(self) -> bool:
        """There is one engine for all ranks."""
        return True

    @property
    def model_name(self) -> str:
        """Of the worker that registered first, "" without one."""
        worker = self._worker()
        return "" if worker is None else worker.scope[0]

    @property
    def world_size(self) -> int:
        """Of the same worker, 1 without one."""
        worker = self._worker()
        return 1 if worker is None else worker.scope[1]

    @property
    def kv_shape(self) -> tuple[int, ...]:
        """(layers, 2 or 1 for MLA, tokens per chunk, heads, head size); empty without a worker."""
        worker = self._worker()
        if worker is None:
            return ()
        layers, planes, heads, head_size = _client_shape(worker) if worker.tensors is None else _tensor_shape(worker)
        return layers, planes, self._engine.chunk_size, heads, head_size

    def _worker(self) -> Registration | None:
        return min(self._engine.registrations.all(), key=lambda worker: worker.number, default=None)


def _client_shape(worker: Registration) -> tuple[int, int, int, int]:
    """A client that copies by itself tells heads and head size as one number."""
    assert worker.client is not None
    return worker.client.num_layers, 1 if worker.client.use_mla else 2, 1, worker.client.hidden_dim_size


def _tensor_shape(worker: Registration) -> tuple[int, int, int, int]:
    """From the texts of the first kernel group: `NL x [2, NB, BS, NH, HS]` and the same with numbers."""
    assert worker.tensors is not None
    layout = cast(dict[str, Any], worker.tensors.describe())
    group = layout["kernel_groups"][0]
    names, numbers = (
        re.split(r"\s*,\s*", re.sub(r".*\[|\].*", "", str(group[field])))
        for field in ("engine_kv_shape", "engine_kv_concrete_shape")
    )
    of = dict(zip(names, map(int, numbers), strict=True))
    return int(layout["num_layers"]), 1 if group["is_mla"] else 2, of.get("NH", 1), of.get("HS", 1)
