"""The embedded Blob storage: block blobs under Entra's tokens and data roles, in a file of SQLite.

`app.py` says which operation a request is; `containers.py` and `blobs.py` carry it out; `store.py` keeps what is
written. `conditions.py`, `ranges.py` and `listing.py` are pure; `documents.py` and `refusals.py` are its XML.
"""
