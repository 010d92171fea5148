"""A batch in Blob storage, looked at again and again until it is complete."""

import asyncio
from collections.abc import AsyncIterator, Callable

from worker.azure.blob.container import BlobFailed
from worker.client.batches import REPEAT_DELAYS, BatchStatus
from worker.client.blob_batches import BlobBatches
from worker.client.blob_collector import pause_after

IDLE_ROUNDS = 2
"""Of `pause_after`: some 2 s between two looks at a small batch, whether or not it moves."""


async def watch(batches: BlobBatches, batch_id: str, waiting: Callable[[str], None]) -> AsyncIterator[BatchStatus]:
    """What `JobClient.watch` promises."""
    waiting_for = f"Blob storage to answer about batch {batch_id}"
    worked, delays = False, iter(REPEAT_DELAYS)
    clock = asyncio.get_running_loop().time
    while True:
        begun = clock()
        waiting(waiting_for)
        try:
            status = await batches.status(batch_id)
        except BlobFailed as error:
            delay = next(delays, None)
            if not worked or not error.is_passing or delay is None:
                raise  # it never worked: an answer now is better than patience
            waiting(f"{waiting_for}, again after {delay:g} s; the last try failed: {error}")
            await asyncio.sleep(delay)
            continue
        worked, delays = True, iter(REPEAT_DELAYS)
        took = clock() - begun
        yield status
        if status.complete or status.is_unknown:
            return
        waiting("")
        await asyncio.sleep(pause_after(took, IDLE_ROUNDS))
