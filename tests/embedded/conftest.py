"""The embedded Service Bus and Blob storage, for each test of this folder that asks for them."""

from tests.support.fixtures import authority, azurite_container, azurite_storage, blob_storage, bus, container

__all__ = ["authority", "azurite_container", "azurite_storage", "blob_storage", "bus", "container"]
