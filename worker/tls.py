"""How every client reaches a server: whom it trusts, and whether by a proxy."""

import ssl
import urllib.request
from pathlib import Path


def trust(ca_file: Path | None) -> ssl.SSLContext:
    """Verify servers against `ca_file`, or against the system's authorities when there is none."""
    return ssl.create_default_context(cafile=ca_file)


def has_proxy() -> bool:
    """Whether the environment names a proxy.

    Only then may aiohttp trust the environment: it would also look for a .netrc file in a thread at every request,
    a tenth of a job's CPU, and send what it finds there as a password.
    """
    return "https" in urllib.request.getproxies_environment()
