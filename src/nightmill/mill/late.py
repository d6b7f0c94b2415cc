"""Late: what came for a job that had ended already, looked for when a person comes back to it."""

from __future__ import annotations

from nightmill.lanes import late
from nightmill.ledger import Job
from nightmill.mill.home import Home, model_of
from nightmill.providers import BatchProvider


async def look_again(home: Home, job: Job) -> bool:
    """Look once for answers that came after their shards had settled; whether any did, and the job runs again.

    Nothing is sent. The provider is asked only where something may still turn up: rows are missing, money
    is unproven, or a batch was looked for in vain.

    Raises:
        ProviderError: the provider could not tell; nothing was changed.
        Conflict: something came, but an unfinished job has the job's name or fingerprint.
        UsageError: there is no key for the provider now.
    """
    if job.finished_at is None or job.spec.get("wire"):
        return False
    doubted = late.doubtful(home.desk, home.ledger.shards_of(job.id))
    for model in dict.fromkeys(model_of(job, shard) for shard in doubted):
        shards, keyed = [shard for shard in doubted if model_of(job, shard) == model], home.providers(model)
        try:
            if isinstance(keyed[0], BatchProvider) and await late.reopen(home.desk, keyed, job, shards):
                return True  # of the other models the next look tells
        finally:
            for provider in keyed:
                await provider.close()
    return False
