"""Faults on demand: the control endpoint by which tests and demos disturb one service of the embedded Azure.

`PUT /local/faults` with a JSON object sets the fault, `{}` clears it, `GET` shows what is left of it. Nothing
of this exists in Azure, so the worker cannot come to depend on it.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, ClassVar

from aiohttp import web
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What the next requests meet: `latency` seconds more, then `status` instead of an answer.

    `count` is how many requests are hit (None: all, until cleared). `retry_after` (seconds) and
    `retry_after_ms` are the headers sent along. `deployment` narrows it to one; None hits all.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    latency: Annotated[float, Field(ge=0)] = 0.0
    status: Annotated[int, Field(ge=400, le=599)] | None = None
    count: Annotated[int, Field(ge=0)] | None = None
    retry_after: Annotated[float, Field(ge=0)] | None = None
    retry_after_ms: Annotated[int, Field(ge=0)] | None = None
    deployment: str | None = None

    def headers(self) -> dict[str, str]:
        """Both forms, in the order and spelling of Azure; none that was not asked for."""
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = f"{self.retry_after:g}"
        if self.retry_after_ms is not None:
            headers["retry-after-ms"] = str(self.retry_after_ms)
        return headers


NO_FAULT = Fault()
_FAULT = TypeAdapter(Fault)


class Faults:
    """The one fault a service has at a time."""

    def __init__(self, initial: dict[str, Any] | None = None, deployments: Collection[str] = ()) -> None:
        """Raises ValueError naming the field of `initial` that is wrong."""
        self._deployments = deployments
        self.current = self._check(_FAULT.validate_python(initial or {}))

    def set(self, document: bytes) -> None:
        """Replace the fault. Raises ValueError naming the field that is wrong."""
        self.current = self._check(_FAULT.validate_json(document))

    def take(self, deployment: str | None = None) -> Fault:
        """The fault this request meets, which counts as one hit; NO_FAULT when it meets none."""
        fault = self.current
        if fault.count == 0 or (fault.deployment is not None and fault.deployment != deployment):
            return NO_FAULT
        if fault.count is not None:
            self.current = replace(fault, count=fault.count - 1)
        return fault

    def _check(self, fault: Fault) -> Fault:
        if fault.deployment is not None and fault.deployment not in self._deployments:
            allowed = ", ".join(sorted(self._deployments)) or "none: this service has no deployments"
            raise ValueError(f"deployment is {fault.deployment!r}; there are: {allowed}")
        return fault


def add_fault_routes(app: web.Application, faults: Faults) -> None:
    """Add `PUT` and `GET /local/faults`."""

    async def put(request: web.Request) -> web.Response:
        try:
            faults.set(await request.read())
        except ValidationError as error:
            return web.json_response({"problems": _problems(error)}, status=400)
        except ValueError as error:
            return web.json_response({"problems": [str(error)]}, status=400)
        return web.json_response(asdict(faults.current))

    async def get(_request: web.Request) -> web.Response:
        return web.json_response(asdict(faults.current))

    app.router.add_put("/local/faults", put)
    app.router.add_get("/local/faults", get)


def _problems(error: ValidationError) -> list[str]:
    return [
        f"{'.'.join(map(str, problem['loc'])) or 'body'} is {problem['input']!r}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_context=False)
    ]
