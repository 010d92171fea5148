"""Writes what is derived from the chart: its schema, the tables of its README, the plain manifests, Azure's alerts.

`make chart` writes the files, `make test-deploy` fails where one of them is not what would be written. Order of
reading: values.py (values.yaml with its comments), schema.py, readme.py, manifests.py, rules.py, alerts.py.
"""
