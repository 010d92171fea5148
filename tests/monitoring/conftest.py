"""These tests need tools of requirements/monitoring.txt and Prometheus: `make test-monitoring` brings both."""

from importlib.util import find_spec

if find_spec("promql_parser") is None:
    collect_ignore_glob = ["test_*.py"]
