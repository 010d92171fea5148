"""Which proxy leads to a host, as the environment says it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.azure.network import Proxy, proxy_to
from worker.errors import InvalidSettings

HOST, PORT = "my-namespace.servicebus.windows.net", 443


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_without_a_name_there_is_no_proxy() -> None:
    assert proxy_to(HOST, PORT) is None


@pytest.mark.parametrize(
    ("named", "proxy"),
    [
        ("http://proxy.example:3128", Proxy(address="http://proxy.example", port=3128, user=None, password=None)),
        ("http://proxy.example/", Proxy(address="http://proxy.example", port=80, user=None, password=None)),
        ("http://[::1]:3128", Proxy(address="http://[::1]", port=3128, user=None, password=None)),
        ("http://a:b%40c@10.0.0.1:80", Proxy(address="http://10.0.0.1", port=80, user="a", password="b@c")),
    ],
)
def test_a_proxy_is_read_as_it_is_named(environment: pytest.MonkeyPatch, named: str, proxy: Proxy) -> None:
    environment.setenv("HTTPS_PROXY", named)
    assert proxy_to(HOST, PORT) == proxy


@pytest.mark.parametrize(
    "named",
    [
        "proxy.example:3128",
        "proxy.example",
        "https://proxy.example:3128",
        "socks5://proxy.example:1080",
        "http://",
        "http://:3128",
        "http://proxy.example:many",
        "http://proxy.example:65536",
        "http://proxy.example:3128/path",
        "http://[::1",
    ],
)
def test_what_is_no_http_proxy_is_refused_with_what_is_allowed(environment: pytest.MonkeyPatch, named: str) -> None:
    environment.setenv("HTTPS_PROXY", named)
    with pytest.raises(InvalidSettings) as raised:
        proxy_to(HOST, PORT)
    assert str(raised.value).startswith(f"HTTPS_PROXY={named}: must be http://host:port or ")
    assert str(raised.value).endswith(f"Change it, or add {HOST} to NO_PROXY.")


@pytest.mark.parametrize(
    ("exempt", "is_bypassed"),
    [
        (HOST, True),
        (f"{HOST}:443", True),
        (f"{HOST}:5671", False),
        (".windows.net", True),
        ("windows.net", True),
        ("indows.net", False),
        ("a.example, servicebus.windows.net", True),
        ("*", True),
        ("", False),
    ],
)
def test_no_proxy_names_hosts_and_domains(environment: pytest.MonkeyPatch, exempt: str, is_bypassed: bool) -> None:
    environment.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    environment.setenv("NO_PROXY", exempt)
    assert (proxy_to(HOST, PORT) is None) == is_bypassed


@given(
    user=st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1), tail=st.sampled_from(["", "x"])
)
def test_a_password_is_never_shown(user: str, tail: str) -> None:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HTTPS_PROXY", f"ftp{tail}://{user}:5eCrEt@proxy.example:21")
        with pytest.raises(InvalidSettings) as raised:
            proxy_to(HOST, PORT)
    assert "5eCrEt" not in str(raised.value)
