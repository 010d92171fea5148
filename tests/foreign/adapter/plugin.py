"""The pytest plugin that lets the SDK's tests meet the embedded Azure: stubs, trust, names, skips.

It is loaded before the tests are looked for, so that the stubs are there when the tests import what they stand for.
"""

import json
import os
import sys
from types import ModuleType
from typing import Any

import certifi
import pytest

from tests.foreign.adapter import preparers, process, sanitizers, testutils

_STUBS: dict[str, ModuleType] = {
    "servicebus_preparer": preparers,
    "devtools_testutils": testutils,
    "devtools_testutils.sanitizers": sanitizers,
    "azure.common": testutils,
    # of this package the tests want one enumeration
    "azure.mgmt": ModuleType("azure.mgmt"),
    "azure.mgmt.servicebus": ModuleType("azure.mgmt.servicebus"),
    "azure.mgmt.servicebus.models": preparers,
}

sys.modules.update(_STUBS)
certifi.where = lambda: str(process.keys() / "tls" / "ca.pem")
process.lead_the_name_home()


@pytest.fixture(scope="session")
def test_proxy() -> None:
    """The SDK's recording proxy, which is not there."""


def pytest_collection_modifyitems(items: list[Any]) -> None:
    skips = json.loads(os.environ["FOREIGN_SKIPS"])
    for item in items:
        if reason := skips.get(item.originalname):
            item.add_marker(pytest.mark.skip(reason=reason))
