"""What to do about a thing that is not as it must be: pure functions from a cause to a command of the Azure CLI.

The commands hold every name that the settings tell. What they cannot tell stands in <angle brackets>,
quoted, so that a command that is run without being filled in fails instead of redirecting.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from worker.errors import Cause
from worker.flow.startup import Container, Queue
from worker.interfaces import Target
from worker.roles import (
    BLOB_DATA_CONTRIBUTOR,
    OPENAI_USER,
    ROLES_WITH_KEYS,
    SERVICE_BUS_DATA_RECEIVER,
    SERVICE_BUS_DATA_SENDER,
    Role,
)

GROUP = "<resource-group>"
PREFIX = f"/subscriptions/<subscription>/resourceGroups/{GROUP}/providers"
AUDIENCE = "api://AzureADTokenExchange"
"""Of the service-account token, as Entra wants it."""

QUEUE_OPTIONS: Mapping[str, str] = {
    "--lock-duration": "PT5M",
    "--max-delivery-count": "20",
    "--enable-duplicate-detection": "true",
    "--duplicate-detection-history-time-window": "P1D",
    "--enable-dead-lettering-on-message-expiration": "true",
}
"""How a queue has to be created; docs/deploy.md says why."""


_NOISE = re.compile(
    r"Service Bus has encountered an error|[.: ]*Error condition: [\w:-]+"
    r"|[. ]*Trace ID: .*$|Microsoft Entra ID error '"
)


def shorten(failure: str) -> str:
    """Without what the SDK says twice and what Entra's support needs."""
    return _NOISE.sub("", failure).strip(" .:'") or failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who is refused: the object id that its token claims, None where there is none to read."""

    object_id: str | None = None
    is_user: bool = False

    def grant(self, role: Role, scope: str) -> str:
        return az(
            "role assignment create",
            "--assignee-object-id",
            self.object_id or "<object-id>",
            "--assignee-principal-type",
            "User" if self.is_user else "ServicePrincipal",
            "--role",
            role.name,
            "--scope",
            scope,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """What of Azure a place is: the role that the worker needs there and its narrowest `scope`, where it is reached
    and by which settings, and the commands that show or create it."""

    role: Role
    scope: str
    address: str
    settings: str
    create: str
    show_network: str
    show_tenant: str


Refusing = Queue | Container | Target
"""The places that a token opens."""


def resource_of(place: Refusing) -> Resource:
    match place:
        case Queue(namespace=host):
            namespace = _first_label(host)
            return Resource(
                role=SERVICE_BUS_DATA_SENDER if place.is_sent_to else SERVICE_BUS_DATA_RECEIVER,
                scope=f"{PREFIX}/Microsoft.ServiceBus/namespaces/{namespace}/queues/{place.name}",
                address=f"{host} on port 5671, bypassing any proxy, or set "
                "AOAI_WORKER_SERVICEBUS_TRANSPORT=websockets: port 443, through the proxy of HTTPS_PROXY",
                settings="AOAI_WORKER_SERVICEBUS_NAMESPACE, and AOAI_WORKER_SERVICEBUS_ENDPOINT if set",
                create=create_queue(place),
                show_network=az(
                    "servicebus namespace network-rule-set list", "-g", GROUP, "--namespace-name", namespace
                ),
                show_tenant=az("resource list", "--name", namespace, "--query", "[].id", "-o", "tsv"),
            )
        case Target(endpoint=endpoint, deployment=name):
            account = _account_of(endpoint)
            named = ("-g", GROUP, "-n", account)
            listing = az("cognitiveservices account deployment list", *named, "--query", "[].name", "-o", "tsv")
            show = "cognitiveservices account show"
            return Resource(
                role=OPENAI_USER,
                scope=f"{PREFIX}/Microsoft.CognitiveServices/accounts/{account}",
                address=endpoint,
                settings="AZURE_OPENAI_ENDPOINT, or the endpoint in AOAI_WORKER_MODELS",
                # which model and how much quota it shall have is not ours to say
                create=f"{listing}\nset one of these in AOAI_WORKER_MODELS, or create {name!r}",
                show_network=az(show, *named, "--query", "properties.[publicNetworkAccess, networkAcls]"),
                show_tenant=az(show, *named, "--query", "[id, properties.endpoint]"),
            )
        case Container(url=url):
            parts = urlsplit(url)
            *_, account, name = (_first_label(parts.hostname or ""), *parts.path.strip("/").split("/"))
            storage = f"{PREFIX}/Microsoft.Storage/storageAccounts/{account}"
            return Resource(
                role=BLOB_DATA_CONTRIBUTOR,
                scope=f"{storage}/blobServices/default/containers/{name}",
                address=url,
                settings="AOAI_WORKER_BLOB_CONTAINER, or AOAI_WORKER_CLAIMS_CONTAINER",
                create=az(
                    "storage container create", "--account-name", account, "-n", name, "--auth-mode", "login"
                ),
                show_network=az(
                    "storage account show", "-n", account, "--query", "[publicNetworkAccess, networkRuleSet]"
                ),
                show_tenant=az("storage account show", "-n", account, "--query", "id"),
            )


def suggest(cause: Cause | None, place: Refusing, principal: Principal) -> str | None:
    """None where only waiting, or the failure itself, can tell what to do."""
    resource = resource_of(place)
    grant = principal.grant(resource.role, resource.scope)
    match cause, place:
        case Cause.NO_TOKEN, _:
            return "fix the token first: without one nothing can be checked"
        case Cause.TOKEN_REFUSED, Target():
            return f"{resource.show_tenant}\n{_TENANT}, and AOAI_WORKER_OPENAI_SCOPE the audience of the endpoint"
        case Cause.TOKEN_REFUSED, Queue():
            # Service Bus tells only who has a role there that a queue is missing; to others its audience is invalid
            return f"{resource.create}\nor, if it exists: {resource.show_tenant}\n{_TENANT}"
        case Cause.TOKEN_REFUSED | Cause.WRONG_TENANT, _:
            return f"{resource.show_tenant}\n{_TENANT}"
        case Cause.ROLE_MISSING | Cause.ROLE_SPREADING, Target():
            # Azure alternates between the words of both while a role spreads
            return f"{grant}\n{_MAY_SPREAD}\n{_WITH_KEYS}"
        case Cause.ROLE_MISSING, _:
            return grant
        case Cause.ROLE_SPREADING, _:
            return f"{grant}\n{_MAY_SPREAD}"
        case Cause.FORBIDDEN, _:
            return f"{grant}\n# if it is already assigned, the network is refused\n{resource.show_network}"
        case Cause.NETWORK_CLOSED, _:
            return f"{resource.show_network}\nallow this network there, or create a private endpoint in it"
        case Cause.MISSING, _:
            return resource.create
        case Cause.DISABLED, Queue():
            return _queue_command("update", place, "--status", "Active")
        case Cause.SESSIONS_REQUIRED, Queue():
            return replace_queue(place)
        case Cause.WRONG_ENDPOINT, _:
            return f"another service answers there: check {resource.settings}"
        case Cause.NAME_NOT_RESOLVED, _:
            return (
                f"check the name in {resource.settings}, and that it resolves from here: a private endpoint needs "
                "its private DNS zone linked to this network"
            )
        case Cause.TLS_UNTRUSTED, _:
            return "set AOAI_WORKER_CA_FILE to the signing authority of the private endpoint or of TLS inspection"
        case Cause.PROXY_REFUSED, _:
            return "HTTPS_PROXY must name a proxy that forwards to this host, or NO_PROXY must contain the host"
        case Cause.UNREACHABLE, _:
            return (
                f"let this network reach {resource.address}; check that the name is right and resolves; behind TLS "
                "inspection set AOAI_WORKER_CA_FILE"
            )
    return None


_MAY_SPREAD = "# if it was assigned within the last 10 minutes, wait: it may not have taken effect yet"
_WITH_KEYS = (
    f"# not {' or '.join(ROLES_WITH_KEYS)}: these contain listkeys/action and so can read the account's keys; "
    "check cannot see whether one is assigned"
)
_TENANT = "AZURE_TENANT_ID must be the tenant of this subscription"


def create_queue(queue: Queue) -> str:
    sessions = ["--enable-session", "true"] if queue.with_sessions else []
    return _queue_command("create", queue, *_flat(QUEUE_OPTIONS), *sessions)


def replace_queue(queue: Queue) -> str:
    """What of a queue was decided when it was created can only be changed so. Its messages go with it, so they
    are counted first, and what to do about them is a comment to the shell."""
    count = _queue_command("show", queue, "--query", "countDetails")
    warning = (
        "# deleting the queue deletes its messages and dead letters: stop the senders, and have the messages "
        f"{'collected' if queue.with_sessions else 'processed'} or moved until every count is 0; only then"
    )
    return f"{count}\n{warning}\n{_queue_command('delete', queue)}\n{create_queue(queue)}"


def update_queue(queue: Queue, options: Sequence[str]) -> str:
    return _queue_command("update", queue, *_flat({name: QUEUE_OPTIONS[name] for name in options}))


def show_queue(queue: Queue) -> str:
    return _queue_command("show", queue, "-o", "jsonc")


def _queue_command(verb: str, queue: Queue, *options: str) -> str:
    namespace = _first_label(queue.namespace)
    return az(f"servicebus queue {verb}", "-g", GROUP, "--namespace-name", namespace, "-n", queue.name, *options)


def suggest_token(code: str, *, credential: str, client_id: str, issuer: str, subject: str) -> str:
    """`code` is that of TokenUnavailable; `issuer` and `subject` are those of the service-account token."""
    match credential, code:
        case "cli", _:
            return "az login, which the Azure CLI brings: https://learn.microsoft.com/cli/azure/install-azure-cli"
        case "managed", _:
            return az(
                "vmss identity assign", "-g", "<node-resource-group>", "-n", "<scale-set>", "--identities", "<id>"
            )
        case _, "70021" | "70025" | "700211" | "700212" | "700213" | "7002137" | "7002138":
            return federate(issuer, subject)
        case _, "700016" | "90002" | "900023" | "7000112":
            query = "[?clientId=='" + client_id + "'].{name:name, group:resourceGroup, tenant:tenantId}"
            listing = az("identity list", "--query", query, "-o", "table")
            return f"{listing}\nAZURE_CLIENT_ID and AZURE_TENANT_ID must be those of one identity"
        case _, "700024" | "700027":
            issuer_of_cluster = ("--query", "oidcIssuerProfile.issuerUrl", "-o", "tsv")
            return az("aks show", "-g", GROUP, "-n", "<cluster>", *issuer_of_cluster)
        case _, "none" | "timeout":
            return (
                "check that the file of AZURE_FEDERATED_TOKEN_FILE exists and that AZURE_AUTHORITY_HOST can be "
                "reached; behind TLS inspection set AOAI_WORKER_CA_FILE"
            )
    return "look up the AADSTS code: https://login.microsoftonline.com/error"


def federate(issuer: str, subject: str) -> str:
    """Let the service account speak for the identity."""
    return az(
        "identity federated-credential create",
        "-g",
        GROUP,
        "--identity-name",
        "<identity>",
        "-n",
        "aoai-worker",
        "--issuer",
        issuer,
        "--subject",
        subject,
        "--audiences",
        AUDIENCE,
    )


def az(command: str, *options: str) -> str:
    return f"az {command} {' '.join(map(_quote, options))}"


def _quote(word: str) -> str:
    """For a shell. JMESPath has single quotes of its own, which are unreadable within single quotes."""
    return f'"{word}"' if "'" in word and not re.search(r'["$`\\!]', word) else shlex.quote(word)


def _flat(options: Mapping[str, str]) -> Sequence[str]:
    return [word for pair in options.items() for word in pair]


def _first_label(host: str) -> str:
    return host.partition(".")[0]


def _account_of(endpoint: str) -> str:
    """Azure's own hosts begin with the custom subdomain: the account's name unless chosen otherwise."""
    host = urlsplit(endpoint).hostname or ""
    return _first_label(host) if re.search(r"\.azure\.(com|us|cn)$", host) else "<account>"
