"""Blob storage: results, claim checks, and how blobs are named."""
