"""The roles in Azure that this project relies on, in one place: names, ids, who needs them, and where.

The chart's NOTES, `k8s/azure` and the documents name the same ones; tests hold them to it. The ids are those of
Azure's built-in roles, equal in every tenant (learn.microsoft.com, "Azure built-in roles").
"""

from dataclasses import dataclass
from typing import Literal

Holder = Literal["worker", "producer", "keda", "kubelet"]
Scope = Literal[
    "jobs queue", "queue of a model", "results queue", "OpenAI account", "blob container", "container registry"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """A built-in role of Azure."""

    name: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """`holder` needs `role` at `scope`, and nowhere wider."""

    holder: Holder
    role: Role
    scope: Scope
    purpose: str


SERVICE_BUS_DATA_RECEIVER = Role(name="Azure Service Bus Data Receiver", id="4f6d3b9b-027b-4f4c-9142-0e5a2a2247e0")
SERVICE_BUS_DATA_SENDER = Role(name="Azure Service Bus Data Sender", id="69a216fc-b8fb-44d8-bc22-1f3c2cd27a39")
SERVICE_BUS_DATA_OWNER = Role(name="Azure Service Bus Data Owner", id="090c5cfd-751d-490a-894a-3ce6f1109419")
OPENAI_USER = Role(name="Cognitive Services OpenAI User", id="5e0bd9bd-7b93-4f28-af87-19fc36ad61bd")
BLOB_DATA_CONTRIBUTOR = Role(name="Storage Blob Data Contributor", id="ba92f5b4-2d11-453d-a403-e96b0029c9fe")
ACR_PULL = Role(name="AcrPull", id="7f951dda-4ed3-4680-a7ca-43fe172d538d")

ROLES = (
    SERVICE_BUS_DATA_RECEIVER,
    SERVICE_BUS_DATA_SENDER,
    SERVICE_BUS_DATA_OWNER,
    OPENAI_USER,
    BLOB_DATA_CONTRIBUTOR,
    ACR_PULL,
)

ROLES_WITH_KEYS = ("Foundry User", "Cognitive Services User")
"""Roles that also let a caller call models, and contain `listkeys/action`: with one of them whoever has the
worker's token can read the account's keys. Foundry User was called Azure AI User."""

INFERENCE_ONLY = "Azure OpenAI Inference Only"
"""Name of the custom role that may take OPENAI_USER's place: it calls models and reads nothing."""

INFERENCE_ONLY_DATA_ACTIONS = (
    "Microsoft.CognitiveServices/accounts/OpenAI/deployments/chat/completions/action",
    "Microsoft.CognitiveServices/accounts/OpenAI/deployments/completions/action",
    "Microsoft.CognitiveServices/accounts/OpenAI/deployments/embeddings/action",
    "Microsoft.CognitiveServices/accounts/OpenAI/responses/write",
)

GRANTS = (
    Grant(holder="worker", role=SERVICE_BUS_DATA_RECEIVER, scope="jobs queue", purpose="receive and settle jobs"),
    Grant(
        holder="worker",
        role=SERVICE_BUS_DATA_SENDER,
        scope="queue of a model",
        purpose="move jobs from the entry queue, with several models",
    ),
    Grant(
        holder="worker",
        role=SERVICE_BUS_DATA_SENDER,
        scope="results queue",
        purpose="write results, with the queue sink",
    ),
    Grant(holder="worker", role=OPENAI_USER, scope="OpenAI account", purpose="call the deployments"),
    Grant(
        holder="worker",
        role=BLOB_DATA_CONTRIBUTOR,
        scope="blob container",
        purpose="write results and this pod's report, read claims and cancellations",
    ),
    Grant(holder="producer", role=SERVICE_BUS_DATA_SENDER, scope="jobs queue", purpose="submit jobs"),
    Grant(
        holder="producer",
        role=SERVICE_BUS_DATA_SENDER,
        scope="results queue",
        purpose="send a batch's manifest, with the queue sink",
    ),
    Grant(
        holder="producer",
        role=SERVICE_BUS_DATA_RECEIVER,
        scope="results queue",
        purpose="collect results, with the queue sink",
    ),
    Grant(
        holder="producer",
        role=BLOB_DATA_CONTRIBUTOR,
        scope="blob container",
        purpose="send large jobs, manifests and cancellations, read results",
    ),
    Grant(
        holder="keda",
        role=SERVICE_BUS_DATA_OWNER,
        scope="jobs queue",
        purpose="read the queue's length, which no smaller built-in role allows",
    ),
    Grant(holder="kubelet", role=ACR_PULL, scope="container registry", purpose="pull the image"),
)
