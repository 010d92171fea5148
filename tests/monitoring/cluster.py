"""Stands in for KEDA's operator and kube-state-metrics, which need a cluster: serves the few metrics that are used.

The queue's length is what was submitted less what has been settled for good; the rest is as of a fleet of two pods.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

NAMESPACE = "batch"
SCALED = {"namespace": NAMESPACE, "scaledObject": "aoai-worker"}
TRIGGERS = {
    "q0": "s0-azure-servicebus-jobs",
    "q1": "s1-azure-servicebus-jobs-gpt-5-4",
    "q2": "s2-azure-servicebus-jobs-gpt-5-4-mini",
    "composite-metric": "composite-metric",
}
"""As KEDA names them after the chart's queues, with a dash for a dot; the last is the sum."""
AUTOSCALER = {"namespace": NAMESPACE, "horizontalpodautoscaler": "keda-hpa-aoai-worker"}
DEPLOYMENT = {"namespace": NAMESPACE, "deployment": "aoai-worker"}
CONTAINER = {"namespace": NAMESPACE, "pod": "aoai-worker-5d9c7-k2x4p", "container": "worker"}


@dataclass
class Cluster:
    """Gauges that a scene may set; `queue_length` is asked at every scrape."""

    queue_length: Callable[[], float]
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        lengths = Gauge("keda_scaler_metrics_value", "", [*SCALED, "scaler", "metric"], registry=self.registry)
        errors = Counter(
            "keda_scaler_detail_errors_total", "", [*SCALED, "scaler", "metric"], registry=self.registry
        )
        for scaler, metric in TRIGGERS.items():
            lengths.labels(**SCALED, scaler=scaler, metric=metric)
            errors.labels(**SCALED, scaler=scaler, metric=metric)
        for scaler in ("q1", "composite-metric"):  # the scene does not tell the queues of models apart
            lengths.labels(**SCALED, scaler=scaler, metric=TRIGGERS[scaler]).set_function(self.queue_length)
        Counter("keda_scaled_object_errors_total", "", [*SCALED], registry=self.registry).labels(**SCALED)
        self._gauge("kube_horizontalpodautoscaler_spec_max_replicas", AUTOSCALER).set(4)
        self._gauge("kube_horizontalpodautoscaler_status_current_replicas", AUTOSCALER).set(2)
        self._gauge("kube_deployment_spec_replicas", DEPLOYMENT).set(2)
        self._gauge("container_memory_working_set_bytes", CONTAINER).set(90e6)
        for name in ("container_cpu_usage_seconds_total", "kube_pod_container_status_restarts_total"):
            Counter(name, "", [*CONTAINER], registry=self.registry).labels(**CONTAINER)

    def _gauge(self, name: str, labels: dict[str, str]) -> Gauge:
        return Gauge(name, "", [*labels], registry=self.registry).labels(**labels)


@asynccontextmanager
async def served(cluster: Cluster) -> AsyncIterator[int]:
    """The port on which it can be scraped."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(cluster.registry), content_type="text/plain")

    application = web.Application()
    application.router.add_get("/metrics", metrics)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
