"""`python -m embedded_azure.entra --state DIR`: Entra, IMDS and the token proxy as a process of their own."""

import argparse
from pathlib import Path

from embedded_azure.entra.endpoints import open_endpoints
from embedded_azure.process import run_to_the_end
from embedded_azure.state import StateDirectory


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m embedded_azure.entra", description="Embedded Entra.")
    parser.add_argument("--state", type=Path, required=True, help="state directory, made by the supervisor")
    parser.add_argument("--port", type=int, default=0, help="port on loopback; 0 takes a free one")
    arguments = parser.parse_args()
    run_to_the_end(lambda: open_endpoints(StateDirectory(arguments.state), arguments.port))


if __name__ == "__main__":
    main()
