"""The producer's side in Python. Import from here; the modules inside may change.

Every error of ours is a `WorkerError`. Beside these come `OSError` and the SDK's `AzureError`.
"""

from worker.azure.blob.container import BlobFailed
from worker.client.batch_files import BatchFile, InvalidBatch, LineProblem, read_batch_file
from worker.client.batches import (
    AlreadyCollected,
    BatchDetail,
    BatchIsCancelled,
    BatchStatus,
    Collection,
    CollectionRecord,
    InvalidBatchId,
    InvalidQueueName,
    NeedsBlob,
    OtherBatch,
    Progress,
    Submission,
    UnknownBatch,
)
from worker.client.blob_batches import UnusableBlob
from worker.client.job_client import JobClient, LikelyRefused, make_batch_id
from worker.client.prices import Cost, cost_of
from worker.client.queue_collector import ClaimsNotConfigured, UncheckedBatch
from worker.client.result_files import OutputGone, UnusableOutput, UnwritableOutput
from worker.client.result_order import sort_like
from worker.client.result_session import BeingCollected
from worker.client.retries import BatchRetry, InvalidCode, PassedOver, RetryRefused
from worker.client.submission import SubmissionInterrupted
from worker.client.sync_client import SyncJobClient
from worker.client.tokens import ModelTokens, tokens_by_model
from worker.errors import ClaimUnavailable, InvalidSettings, TokenUnavailable, WorkerError
from worker.jobs.replays import InvalidDeadline

__all__ = [
    "AlreadyCollected",
    "BatchDetail",
    "BatchFile",
    "BatchIsCancelled",
    "BatchRetry",
    "BatchStatus",
    "BeingCollected",
    "BlobFailed",
    "ClaimUnavailable",
    "ClaimsNotConfigured",
    "Collection",
    "CollectionRecord",
    "Cost",
    "InvalidBatch",
    "InvalidBatchId",
    "InvalidCode",
    "InvalidDeadline",
    "InvalidQueueName",
    "InvalidSettings",
    "JobClient",
    "LikelyRefused",
    "LineProblem",
    "ModelTokens",
    "NeedsBlob",
    "OtherBatch",
    "OutputGone",
    "PassedOver",
    "Progress",
    "RetryRefused",
    "Submission",
    "SubmissionInterrupted",
    "SyncJobClient",
    "TokenUnavailable",
    "UncheckedBatch",
    "UnknownBatch",
    "UnusableBlob",
    "UnusableOutput",
    "UnwritableOutput",
    "WorkerError",
    "cost_of",
    "make_batch_id",
    "read_batch_file",
    "sort_like",
    "tokens_by_model",
]
