"""One TLS context for every client, so that one setting decides whom they trust."""

import ssl
from pathlib import Path


def trust(ca_file: Path | None) -> ssl.SSLContext:
    """Verify servers against `ca_file`, or against the system's authorities when there is none."""
    return ssl.create_default_context(cafile=ca_file)
