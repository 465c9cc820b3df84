"""The records of prefetch jobs in memory, with as much of the store as routes use."""

import dataclasses
import time

from contract.prefetch_jobs import PrefetchJob


class MemoryPrefetch:
    """`jobs` by id, in the order of submission; `inputs` are their token ids; `is_full` refuses new ones."""

    def __init__(self) -> None:
        self.jobs: dict[str, PrefetchJob] = {}
        self.inputs: dict[str, str] = {}
        self.is_full = False
        self.asked = 0

    def create(self, job: PrefetchJob, token_ids: str) -> bool:
        if not self.is_full:
            self.jobs[job.request_id] = dataclasses.replace(job, submitted_at=time.time())
            self.inputs[job.request_id] = token_ids
        return not self.is_full

    def withdraw(self, request_id: str) -> bool:
        return self.jobs.pop(request_id, None) is not None

    def load(self, request_id: str) -> PrefetchJob | None:
        return self.jobs.get(request_id)

    def consume(self, request_id: str) -> PrefetchJob | None:
        self.asked += 1
        job = self.jobs.get(request_id)
        if job is None or job.consumed_at is not None:
            return None
        if job.has_ended:
            self.jobs[request_id] = dataclasses.replace(job, consumed_at=time.time())
        return self.jobs[request_id]

    def newest(self, limit: int) -> list[PrefetchJob]:
        return list(reversed(self.jobs.values()))[:limit]
