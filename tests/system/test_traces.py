"""Spans of a real worker, as a collector of OpenTelemetry receives them."""

import asyncio
import gzip
import signal
from collections import Counter
from pathlib import Path

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.patience import PATIENCE
from tests.support.processes import azure, command, config_for_tests, worker, write_batch


class Collector:
    """Keeps the names of the spans that it is sent by OTLP over HTTP."""

    def __init__(self) -> None:
        self.names: Counter[str] = Counter()

    async def receive(self, request: web.Request) -> web.Response:
        body = await request.read()
        sent = ExportTraceServiceRequest.FromString(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
        for resource in sent.resource_spans:
            for scope in resource.scope_spans:
                self.names.update(span.name for span in scope.spans)
        return web.Response()


async def test_every_job_and_every_call_has_a_span_that_is_sent_before_the_worker_ends(tmp_path: Path) -> None:
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.receive)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with (
            azure(tmp_path, config_for_tests()) as cloud,
            worker(cloud, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint) as one,
        ):
            code, output = await command(cloud, "submit", str(write_batch(tmp_path / "in.jsonl", 20)))
            assert code == 0, output
            async with asyncio.timeout(PATIENCE):
                while await one.metric("aoai_worker_jobs_total") < 20:
                    await asyncio.sleep(0.05)  # another process: it tells by its metrics only
            one.process.child.send_signal(signal.SIGTERM)
            assert await one.process.ended() == 0
    finally:
        await runner.cleanup()
    assert collector.names == {"process jobs": 20, "chat gpt-5.4-mini": 20}
