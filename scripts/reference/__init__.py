"""The parts of the documents that are written from the code: `make reference`. tests/unit/test_docs.py compares."""
