"""`python -m embedded_azure.openai --state DIR [--port 0]`: the embedded Azure OpenAI as a process."""

import argparse
from pathlib import Path

from embedded_azure.config import DEFAULT_ACCOUNT, Config
from embedded_azure.entra.tokens import AccessTokens, issuer_of
from embedded_azure.openai.account import Account
from embedded_azure.openai.app import build_apps
from embedded_azure.process import run_to_the_end, serve
from embedded_azure.state import StateDirectory


def load_accounts(state: StateDirectory) -> dict[str, Account]:
    """The accounts of the state directory. Raises OSError or ValueError when a file is missing or wrong."""
    config = Config.load(state.config)
    tokens = AccessTokens(state.entra_public_key.read_bytes(), issuer_of(config.tenant_id))
    names = {DEFAULT_ACCOUNT, *(deployment.account for deployment in config.deployments)}
    return {name: Account(config, tokens, name=name) for name in sorted(names)}


def load_account(state: StateDirectory) -> Account:
    """The account of deployments that name none. Raises as `load_accounts` does."""
    return load_accounts(state)[DEFAULT_ACCOUNT]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m embedded_azure.openai", description="The embedded Azure OpenAI."
    )
    parser.add_argument("--state", type=Path, required=True, help="state directory, made by the supervisor")
    parser.add_argument("--port", type=int, default=0, help="port on loopback; 0 takes a free one")
    arguments = parser.parse_args()
    state = StateDirectory(arguments.state)
    app = build_apps(load_accounts(state), DEFAULT_ACCOUNT)
    run_to_the_end(lambda: serve(app, service="openai", state=state, port=arguments.port))


if __name__ == "__main__":
    main()
