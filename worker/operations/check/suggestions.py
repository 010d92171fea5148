"""What mends a thing that is not as it must be: pure functions from a failure's text to a command of the Azure CLI.

The commands hold every name that the settings tell. What they cannot tell stands in <angle brackets>,
quoted, so that a command that is run without being filled in fails instead of redirecting.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from urllib.parse import urlsplit

from worker.roles import Role

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


class Cause(Enum):
    """Why something is refused, as far as the words of the refusal tell."""

    NO_ROLE = auto()
    MISSING = auto()
    SESSIONS = auto()
    TENANT = auto()
    NETWORK_RULES = auto()
    UNREACHABLE = auto()
    OTHER = auto()


_WORDS: Sequence[tuple[Cause, str]] = (
    (Cause.SESSIONS, r"requires sessions"),
    (Cause.MISSING, r"could not be found|does not exist|not-found|Status code: 404|HTTP 404|^404 "),
    # the claim that a token lacks, the data action, and Blob storage's word for both
    (Cause.NO_ROLE, r"claim\(s\) are required|lacks the required|PermissionDenied|AuthorizationPermissionMismatch"),
    (Cause.TENANT, r"InvalidIssuer|InvalidAuthenticationInfo|[Tt]enant"),
    (Cause.NETWORK_RULES, r"(?i)virtual network|firewall|public access is disabled|ip address|ip has been"),
    (Cause.NO_ROLE, r"Unauthorized|HTTP 40[13]|^40[13] "),
    (Cause.UNREACHABLE, r"(?i)connect|cannot be reached|no (whole )?answer|timed? ?out"),
)


def cause_of(failure: str) -> Cause:
    return next((cause for cause, words in _WORDS if re.search(words, failure)), Cause.OTHER)


_SUBJECT = re.compile(r"^(queue '[^']*'|container \S+): ")
_NOISE = re.compile(
    r"Service Bus has encountered an error|[.: ]*Error condition: [\w:-]+"
    r"|[. ]*Trace ID: .*$|Microsoft Entra ID error '"
)


def shorten(failure: str) -> str:
    """Without what the finding's name says already, what the SDK says twice and what Entra's support needs."""
    return _NOISE.sub("", _SUBJECT.sub("", failure)).strip(" .:'") or failure


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
class Queue:
    """`namespace` is its host name. A queue of results needs sessions, one of jobs must not have them."""

    namespace: str
    name: str
    with_sessions: bool

    @property
    def scope(self) -> str:
        return f"{PREFIX}/Microsoft.ServiceBus/namespaces/{_first_label(self.namespace)}/queues/{self.name}"

    @property
    def reach(self) -> str:
        return (
            f"let this network reach {self.namespace} on port 5671, past any proxy, or set "
            "AOAI_WORKER_SERVICEBUS_TRANSPORT=websockets: port 443, by the proxy of HTTPS_PROXY; see that the "
            "name is right and resolves, and behind TLS inspection set AOAI_WORKER_CA_FILE"
        )

    def create(self) -> str:
        sessions = ["--enable-session", "true"] if self.with_sessions else []
        return self._az("create", *_flat(QUEUE_OPTIONS), *sessions)

    def replace(self) -> str:
        """What of a queue was decided when it was created can only be mended so. Its messages go with it, so they
        are counted first, and what to do about them is a comment to the shell."""
        count = self._az("show", "--query", "countDetails")
        warning = (
            "# deleting the queue deletes its messages, the dead letters too: stop what sends to it, and have them "
            f"{'collected' if self.with_sessions else 'worked off'} or moved until every count is 0; only then"
        )
        return f"{count}\n{warning}\n{self._az('delete')}\n{self.create()}"

    def update(self, options: Sequence[str]) -> str:
        return self._az("update", *_flat({name: QUEUE_OPTIONS[name] for name in options}))

    def show(self) -> str:
        return self._az("show", "-o", "jsonc")

    def show_network(self) -> str:
        namespace = _first_label(self.namespace)
        return az("servicebus namespace network-rule-set list", "-g", GROUP, "--namespace-name", namespace)

    def show_tenant(self) -> str:
        return az("resource list", "--name", _first_label(self.namespace), "--query", "[].id", "-o", "tsv")

    def _az(self, verb: str, *options: str) -> str:
        namespace = _first_label(self.namespace)
        return az(f"servicebus queue {verb}", "-g", GROUP, "--namespace-name", namespace, "-n", self.name, *options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Of a model, at the endpoint of an account."""

    endpoint: str
    name: str

    @property
    def account(self) -> str:
        """Azure's own hosts begin with the custom subdomain: the account's name unless chosen otherwise."""
        host = urlsplit(self.endpoint).hostname or ""
        return _first_label(host) if re.search(r"\.azure\.(com|us|cn)$", host) else "<account>"

    @property
    def scope(self) -> str:
        return f"{PREFIX}/Microsoft.CognitiveServices/accounts/{self.account}"

    @property
    def reach(self) -> str:
        return (
            f"let this network reach {self.endpoint}, see that the name is right and resolves, and behind TLS "
            "inspection set AOAI_WORKER_CA_FILE"
        )

    def create(self) -> str:
        """The list of what is there: which model and how much quota it shall have is not ours to say."""
        listing = az(
            "cognitiveservices account deployment list",
            "-g",
            GROUP,
            "-n",
            self.account,
            "--query",
            "[].name",
            "-o",
            "tsv",
        )
        return f"{listing}\nset one of these in AOAI_WORKER_MODELS, or create {self.name!r}"

    def show_network(self) -> str:
        return self._show("properties.[publicNetworkAccess, networkAcls]")

    def show_tenant(self) -> str:
        return self._show("[id, properties.endpoint]")

    def _show(self, query: str) -> str:
        return az("cognitiveservices account show", "-g", GROUP, "-n", self.account, "--query", query)


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """`url` as in the settings: of Azure's hosts, or with the account before the container, as Azurite's."""

    url: str

    @property
    def name(self) -> str:
        return self._parts[-1]

    @property
    def account(self) -> str:
        return self._parts[0] if len(self._parts) > 1 else _first_label(urlsplit(self.url).hostname or "")

    @property
    def scope(self) -> str:
        account = f"{PREFIX}/Microsoft.Storage/storageAccounts/{self.account}"
        return f"{account}/blobServices/default/containers/{self.name}"

    @property
    def reach(self) -> str:
        return f"let this network reach {self.url}, and behind TLS inspection set AOAI_WORKER_CA_FILE"

    def create(self) -> str:
        options = ("--account-name", self.account, "-n", self.name, "--auth-mode", "login")
        return az("storage container create", *options)

    def show_network(self) -> str:
        return self._show("[publicNetworkAccess, networkRuleSet]")

    def show_tenant(self) -> str:
        return self._show("id")

    @property
    def _parts(self) -> Sequence[str]:
        return urlsplit(self.url).path.strip("/").split("/")

    def _show(self, query: str) -> str:
        return az("storage account show", "-n", self.account, "--query", query)


Place = Queue | Deployment | Container


def mend(failure: str, role: Role, place: Place, principal: Principal) -> str | None:
    """None where only waiting, or the failure itself, can tell what to do."""
    match cause_of(failure), place:
        case Cause.NO_ROLE, _:
            return principal.grant(role, place.scope)
        case Cause.MISSING, _:
            return place.create()
        case Cause.SESSIONS, Queue():
            return place.replace()
        case Cause.TENANT, _:
            return f"{place.show_tenant()}\nAZURE_TENANT_ID must be the tenant of that subscription"
        case Cause.NETWORK_RULES, _:
            return place.show_network()
        case Cause.UNREACHABLE, _:
            return place.reach
    return None


def mend_token(failure: str, *, credential: str, client_id: str, issuer: str, subject: str) -> str:
    """`failure` is the token service's; `issuer` and `subject` are those of the service-account token."""
    code = match[1] if (match := re.search(r"AADSTS(\d+)", failure)) else ""
    if credential == "cli":
        return "az login"
    if credential == "managed":
        return az(
            "vmss identity assign", "-g", "<node-resource-group>", "-n", "<scale-set>", "--identities", "<id>"
        )
    if code in ("70021", "70025", "700211", "700212", "700213"):
        return federate(issuer, subject)
    if code in ("700016", "90002", "900023", "7000112"):
        query = "[?clientId=='" + client_id + "'].{name:name, group:resourceGroup, tenant:tenantId}"
        listing = az("identity list", "--query", query, "-o", "table")
        return f"{listing}\nAZURE_CLIENT_ID and AZURE_TENANT_ID must be those of one identity"
    if code in ("700024", "700027"):
        issuer_of_cluster = ("--query", "oidcIssuerProfile.issuerUrl", "-o", "tsv")
        return az("aks show", "-g", GROUP, "-n", "<cluster>", *issuer_of_cluster)
    return "see that the file of AZURE_FEDERATED_TOKEN_FILE is there and that AZURE_AUTHORITY_HOST can be reached"


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
