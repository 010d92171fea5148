"""The administration API: entities as ATOM over HTTPS."""
