"""`python -m embedded_azure`: the embedded Azure without the worker's command line."""

import argparse
import sys
from pathlib import Path

from embedded_azure.supervisor import run


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m embedded_azure",
        description="Run the embedded Azure: Service Bus, Entra, Azure OpenAI and Blob storage, until Ctrl-C.",
    )
    parser.add_argument(
        "--write-env", type=Path, metavar="FILE", help="write the pods' environments to FILE and FILE.producer"
    )
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help="keep keys and tokens in DIR (default: temporary)"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="what exists in this Azure, as JSON (default: the demo's)"
    )
    parser.add_argument(
        "--entities",
        type=Path,
        metavar="FILE",
        help="queues, topics, subscriptions and rules of Service Bus, as YAML (default: the config's)",
    )
    parser.add_argument(
        "--sink",
        choices=["blob", "queue"],
        default="blob",
        help="where results go: Blob storage (default), or the results queue",
    )
    arguments = parser.parse_args()
    return run(
        arguments.write_env,
        arguments.state,
        arguments.config,
        entities=arguments.entities,
        sink=arguments.sink,
    )


if __name__ == "__main__":
    sys.exit(main())
