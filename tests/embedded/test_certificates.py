"""The server's certificate: strictly valid for the names it is used by."""

import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from embedded_azure.certificates import ADDRESSES, HOST_NAMES, make_server_identity

SERVER = make_server_identity()


def verify(name: x509.DNSName | x509.IPAddress) -> None:
    trusted = Store([x509.load_pem_x509_certificate(SERVER.ca_pem)])
    verifier = PolicyBuilder().store(trusted).time(datetime.now(UTC)).build_server_verifier(name)
    verifier.verify(x509.load_pem_x509_certificate(SERVER.certificate_pem), [])


@pytest.mark.parametrize("name", HOST_NAMES)
def test_the_certificate_is_good_for_the_names_of_azure_and_of_this_machine(name: str) -> None:
    verify(x509.DNSName(name))


def test_the_certificate_is_good_for_the_loopback_addresses() -> None:
    certificate = x509.load_pem_x509_certificate(SERVER.certificate_pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == list(ADDRESSES)


def test_the_certificate_is_good_for_nobody_elses_name() -> None:
    with pytest.raises(x509.verification.VerificationError):
        verify(x509.DNSName("example.com"))


def test_python_accepts_the_files_under_strict_verification(tmp_path: Path) -> None:
    for name, content in (("ca", SERVER.ca_pem), ("cert", SERVER.certificate_pem), ("key", SERVER.key_pem)):
        (tmp_path / name).write_bytes(content)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    client = ssl.create_default_context(cafile=str(tmp_path / "ca"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    assert handshake(client, server, "localhost")


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> bool:
    """Both ends in memory, until each is content."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                pass
    return not ends
