"""`python -m embedded_azure.blob --state DIR [--port 0]`: the embedded Blob storage as a process."""

import argparse
from contextlib import closing
from pathlib import Path

from embedded_azure.blob.app import BlobStorage, build_app
from embedded_azure.blob.store import Store
from embedded_azure.config import Config
from embedded_azure.entra.tokens import AccessTokens, issuer_of
from embedded_azure.process import run_to_the_end, serve
from embedded_azure.state import StateDirectory


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m embedded_azure.blob", description="The embedded Blob storage.")
    parser.add_argument("--state", type=Path, required=True, help="state directory, made by the supervisor")
    parser.add_argument("--port", type=int, default=0, help="port on loopback; 0 takes a free one")
    arguments = parser.parse_args()
    state = StateDirectory(arguments.state)
    config = Config.load(state.config)
    tokens = AccessTokens(state.entra_public_key.read_bytes(), issuer_of(config.tenant_id))
    with closing(Store(state.blobs)) as store:
        app = build_app(BlobStorage(config, tokens, store))
        run_to_the_end(lambda: serve(app, service="blob", state=state, port=arguments.port, auto_decompress=False))


if __name__ == "__main__":
    main()
