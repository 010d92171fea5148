"""What an upgrade does to the pods that run: Helm renders beside an API server that has the Deployment."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from tests.chart.helm import BIN, CHART, HELMS, MATRIX, NAMESPACE, RELEASE, Object, only, render, run

DEPLOYMENT = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{RELEASE}"


def answers() -> Object:
    """By path: what an API server says that knows every kind of the chart and has the Deployment with 17 pods."""
    kinds: dict[str, set[str]] = {}
    for item in (item for values in ("default", "hpa") for item in render(values)):
        kinds.setdefault(item["apiVersion"], set()).add(item["kind"])
    groups = [group.split("/") for group in kinds if "/" in group]
    lists = {
        f"/apis/{group}" if "/" in group else f"/api/{group}": {
            "kind": "APIResourceList",
            "groupVersion": group,
            "resources": [{"name": f"{kind.lower()}s", "kind": kind, "namespaced": True} for kind in sorted(names)],
        }
        for group, names in kinds.items()
    }
    return lists | {
        "/version": {"major": "1", "minor": "36", "gitVersion": "v1.36.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {
            "kind": "APIGroupList",
            "groups": [
                {"name": name, "versions": [{"groupVersion": f"{name}/{version}", "version": version}]}
                for name, version in groups
            ],
        },
        DEPLOYMENT: {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {
                "name": RELEASE,
                "namespace": NAMESPACE,
                "labels": {"app.kubernetes.io/managed-by": "Helm"},
                "annotations": {
                    "meta.helm.sh/release-name": RELEASE,
                    "meta.helm.sh/release-namespace": NAMESPACE,
                },
            },
            "spec": {"replicas": 17},
        },
    }


class Api(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = answers().get(self.path.partition("?")[0])
        missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
        body = json.dumps(found or missing).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Path]:
    """The kubeconfig of an API server that has the Deployment with 17 pods."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        "users": [{"name": "c", "user": {}}],
    }
    file = tmp_path / "kubeconfig"
    file.write_text(json.dumps(config), encoding="utf-8")
    yield file
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize(("values", "replicas"), [("default", 17), ("hpa", 17), ("keda-off", 2)])
def test_the_autoscaler_s_number_of_pods_is_kept_and_one_of_the_values_wins(
    values: str, replicas: int, helm: str, cluster: Path
) -> None:
    """A field that an upgrade leaves out is set to its default, one pod."""
    options = (
        "-n",
        NAMESPACE,
        "-f",
        MATRIX[values],
        "--dry-run=server",
        "--disable-openapi-validation",
        f"--kubeconfig={cluster}",
    )
    done = run(BIN / helm, "template", RELEASE, CHART, *options, "--set", "replicaCount=2")
    assert done.returncode == 0, done.stderr
    objects = [document for document in yaml.safe_load_all(done.stdout) if document]
    assert only(objects, "Deployment")["spec"]["replicas"] == replicas
