"""Blob storage: Microsoft's Azurite, started and given the account and container of the world."""
