"""The cluster's token proxy of AKS identity bindings: the API server's address, by a name of its own in TLS (SNI).

A pod of an identity binding has a token for the audience `api://AKSIdentityBinding`, which Entra itself refuses. It
sends the usual token request to the proxy, which looks whether its service account may use the identity, and speaks
to Entra for it. A client that does not name `SNI_NAME` in its handshake gets no further than the handshake.
azure-identity does all this with `enable_azure_proxy=True` and the variables of `environment`.
"""

import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from embedded_azure.config import Config
from embedded_azure.entra.refusals import TokenDenied
from embedded_azure.entra.service import Entra, build_app, load_issuer
from embedded_azure.entra.tokens import TokenIssuer
from embedded_azure.process import server_context
from embedded_azure.state import StateDirectory

BINDING_AUDIENCE = "api://AKSIdentityBinding"
"""What the webhook asks of the kubelet for the pods of an identity binding."""
SNI_NAME = "local.ests.aks"
PROXY_PATH = "/token-proxy"


class NotBound(TokenDenied):
    """The cluster's refusal, before Entra is asked. No public quotation was found: the document is that of any
    request to an API server that RBAC forbids."""

    def __init__(self, client_id: str) -> None:
        super().__init__(700016, status=403, client_id=client_id)
        self.text = f'the service account may not "use-managed-identity" of "cid.wi.aks.azure.com/{client_id}"'

    def body(self, now: float) -> dict[str, Any]:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": f"forbidden: {self.text}",
            "reason": "Forbidden",
            "code": 403,
        }


class TokenProxy(Entra):
    """Entra, for the service accounts that the config's identity bindings name, and for no others."""

    faults_key = "entra/token_proxy"

    def __init__(
        self,
        config: Config,
        issuer: TokenIssuer,
        cluster_public_key_pem: bytes,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises KeyError when a bound identity does not exist; else as Entra does."""
        super().__init__(config, issuer, cluster_public_key_pem, clock, BINDING_AUDIENCE)
        self._bound = {config.identity(name).client_id for name in config.bound_identities}

    def grant(self, tenant: str, form: Mapping[str, str]) -> dict[str, Any]:
        """As Entra does. Raises NotBound too."""
        client_id = form.get("client_id")
        if client_id and client_id not in self._bound:
            raise NotBound(client_id)
        return super().grant(tenant, form)


def load_token_proxy(state: StateDirectory) -> TokenProxy:
    """The proxy of the state directory. Raises OSError or ValueError when a file is missing or wrong."""
    config = Config.load(state.config)
    return TokenProxy(config, load_issuer(state, config), state.cluster_public_key.read_bytes())


def build_proxy_app(proxy: TokenProxy) -> web.Application:
    """The HTTP surface of `proxy`, without TLS."""
    return build_app(proxy, PROXY_PATH)


def proxy_context(state: StateDirectory) -> ssl.SSLContext:
    """TLS that knows one name only."""
    context = server_context(state)
    context.sni_callback = _check_name
    return context


def _check_name(_connection: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> int | None:
    return None if name == SNI_NAME else ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME


def environment(port: int, ca: Path) -> dict[str, str]:
    """What the webhook adds to a pod of an identity binding, with the proxy at `port`."""
    return {
        "AZURE_KUBERNETES_TOKEN_PROXY": f"https://localhost:{port}{PROXY_PATH}",
        "AZURE_KUBERNETES_SNI_NAME": SNI_NAME,
        "AZURE_KUBERNETES_CA_FILE": str(ca),
    }
