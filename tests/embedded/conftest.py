"""The embedded Service Bus and Azurite, for each test of this folder that asks for them."""

from tests.support.fixtures import authority, blob_storage, bus, container

__all__ = ["authority", "blob_storage", "bus", "container"]
