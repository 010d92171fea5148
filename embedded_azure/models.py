"""The models that the examples, the documents, the charts and the embedded Azure's own deployments name.

Models retire, so their names stand here and a test compares every other place with them. Last compared with Azure's
list of models and retirements in November 2026. To move to others, change this module and follow
tests/unit/test_models.py.
"""

SMALL = "gpt-5.4-mini"
LARGE = "gpt-5.4"
EMBEDDINGS = "text-embedding-3-small"
INSTRUCT = "instruct"
"""Made up: Azure has no model for `/completions` any more that takes new customers."""
