"""What a model may be called, by jobs and in the settings."""

import re

MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}")
"""A model's name may become a deployment's, a queue's, and a label of metrics."""

MODEL_ALPHABET = "1 to 128 letters, digits and . _ : / @ + -, and begins with a letter or digit"
