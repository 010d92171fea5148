"""Where the project is to be found: what a release says, as its address is not the sources' to know."""

import os
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

VARIABLE = "AOAI_WORKER_PROJECT_URL"
"""The address of the repository, such as that of a fork. Unset: the package names none."""


class ReleaseAddress(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        address = os.environ.get(VARIABLE, "").rstrip("/")
        metadata["urls"] = (
            {
                "Source": address,
                "Documentation": f"{address}/blob/main/README.md",
                "Changelog": f"{address}/blob/main/CHANGELOG.md",
                "Issues": f"{address}/issues",
            }
            if address
            else {}
        )
