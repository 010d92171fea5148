"""Entra ID: token requests, refusals with Azure's codes, IMDS and the proxy of identity bindings."""
