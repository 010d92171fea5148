"""Faults on demand: the one control API by which tests and demos disturb any service of the embedded Azure.

Each service has `/local/faults` on loopback (docs/fault-injection.md). Nothing of this exists in Azure, so the
worker cannot come to depend on it. To add a fault: derive a frozen dataclass from `Fault` with a `kind` of its own,
add it to the tuple of kinds of its service, and ask `faults.take(ItsClass, ...)` where it strikes. Its fields are
its schema: `GET /local/faults/kinds` shows them, and whatever does not fit them is refused by name.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from aiohttp import web
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What every kind has. `count` is how often it strikes, `seconds` how long from when it was set; whatever ends
    first ends it, and None never does: it then lasts until it is cleared.

    Other fields either say what happens, or narrow down where: those that are None narrow nothing (`take`).
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    kind: str
    count: Annotated[int, Field(ge=0)] | None = None
    seconds: Annotated[float, Field(ge=0)] | None = None

    @property
    def acts_at_once(self) -> bool:
        """It is done when it is set (those that `Faults.watch` are told), and never kept to be taken."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFault(Fault):
    """What the next HTTP requests meet: `latency` seconds more, then `status` instead of an answer.

    `retry_after` (seconds) and `retry_after_ms` are the headers sent along.
    """

    kind: Literal["answer"] = "answer"
    latency: Annotated[float, Field(ge=0)] = 0.0
    status: Annotated[int, Field(ge=400, le=599)] | None = None
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


NO_FAULT = AnswerFault()
_Kind = TypeVar("_Kind", bound=Fault)


@dataclass(slots=True)
class _Armed:
    """A fault that waits to strike; `fault.count` is what is left of it. `ends_at` is by the clock of `Faults`."""

    fault: Fault
    ends_at: float | None
    struck: int = 0


class Faults:
    """The faults that are set in one service, in the order in which they were set.

    A document is one fault or an array of them; `{}` and `[]` are none. Where it names no `kind`, the first of
    `kinds` is meant. `known` lists, by field, the names that a fault may be narrowed to.
    """

    def __init__(
        self,
        *kinds: type[Fault],
        initial: Any = None,
        known: Mapping[str, Collection[str]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises ValueError naming the field of `initial` that is wrong."""
        self._kinds = {_name_of(kind): kind for kind in kinds}
        self._default = _name_of(kinds[0])
        self._known = known or {}
        self._clock = clock
        self._armed: list[_Armed] = []
        self._watchers: list[Callable[[Fault], None]] = []
        self._arm(self._parse(initial or []))

    def set(self, document: bytes) -> None:
        """Replace all faults. Raises ValueError naming the field that is wrong; nothing is changed then."""
        faults = self._parse(from_json(document))
        self._armed.clear()
        self._arm(faults)

    def add(self, document: bytes) -> None:
        """As `set`, but those set before stay, and strike first."""
        self._arm(self._parse(from_json(document)))

    def clear(self) -> None:
        self._armed.clear()

    def watch(self, callback: Callable[[Fault], None]) -> None:
        """`callback` is told of every fault that is set from now on."""
        self._watchers.append(callback)

    def take(self, kind: type[_Kind], **place: str | None) -> _Kind | None:
        """The first fault of this kind that strikes here, which counts as once; None when there is none.

        `place` says where, by the names of the kind's narrowing fields.
        """
        if not self._armed:
            return None
        self._drop_ended()
        for armed in self._armed:
            fault = armed.fault
            if isinstance(fault, kind) and _strikes(fault, place):
                armed.struck += 1
                if fault.count is not None:
                    armed.fault = replace(fault, count=fault.count - 1)
                return fault
        return None

    def has(self, kind: type[Fault]) -> bool:
        """Whether one of this kind is set; it is not counted."""
        if not self._armed:
            return False
        self._drop_ended()
        return any(isinstance(armed.fault, kind) for armed in self._armed)

    def left(self) -> list[dict[str, Any]]:
        """What is still set, with what is left of its count and seconds, and how often it `struck`."""
        self._drop_ended()
        now = self._clock()
        return [
            {
                **asdict(armed.fault),
                "seconds": None if armed.ends_at is None else round(armed.ends_at - now, 3),
                "struck": armed.struck,
            }
            for armed in self._armed
        ]

    def kinds(self) -> dict[str, Any]:
        """The JSON schema of each kind, by name."""
        return {name: TypeAdapter(kind).json_schema() for name, kind in self._kinds.items()}

    def _parse(self, document: Any) -> list[Fault]:
        if not isinstance(document, dict | list):
            raise ValueError(f"a fault is a JSON object, or an array of them, not {document!r:.80}")
        entries = document if isinstance(document, list) else [document]
        return [self._parse_one(entry) for entry in entries if entry != {}]

    def _parse_one(self, entry: Any) -> Fault:
        if not isinstance(entry, dict):
            raise ValueError(f"a fault is a JSON object, not {entry!r:.80}")
        name = entry.get("kind", self._default)
        if not isinstance(name, str) or name not in self._kinds:
            raise ValueError(f"kind is {name!r:.80}; there are: {', '.join(self._kinds)}")
        fault: Fault = TypeAdapter(self._kinds[name]).validate_python({**entry, "kind": name})
        for field, names in self._known.items():
            value = getattr(fault, field, None)
            if value is not None and value not in names:
                raise ValueError(f"{field} is {value!r}; there are: {', '.join(sorted(names)) or 'none'}")
        return fault

    def _arm(self, faults: Iterable[Fault]) -> None:
        now = self._clock()
        for fault in faults:
            if not fault.acts_at_once:
                self._armed.append(_Armed(fault, None if fault.seconds is None else now + fault.seconds))
            for callback in self._watchers:
                callback(fault)

    def _drop_ended(self) -> None:
        now = self._clock()
        self._armed = [
            armed
            for armed in self._armed
            if armed.fault.count != 0 and (armed.ends_at is None or now < armed.ends_at)
        ]


def _name_of(kind: type[Fault]) -> str:
    return next(str(field.default) for field in fields(kind) if field.name == "kind")


def _strikes(fault: Fault, place: Mapping[str, str | None]) -> bool:
    return all(getattr(fault, name) in (None, value) for name, value in place.items())


def add_fault_routes(app: web.Application, faults: Faults) -> None:
    """Add `/local/faults`: GET shows what is left, PUT replaces, POST adds, DELETE clears; all answer what is left.
    `GET /local/faults/kinds` answers the schema."""

    async def show(_request: web.Request) -> web.Response:
        return web.json_response(faults.left())

    async def clear(_request: web.Request) -> web.Response:
        faults.clear()
        return web.json_response(faults.left())

    async def show_kinds(_request: web.Request) -> web.Response:
        return web.json_response(faults.kinds())

    def taking(take: Callable[[bytes], None]) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.Response:
            try:
                take(await request.read())
            except ValidationError as error:
                return web.json_response({"problems": _problems(error)}, status=400)
            except ValueError as error:
                return web.json_response({"problems": [str(error)]}, status=400)
            return web.json_response(faults.left())

        return handle

    app.router.add_get("/local/faults", show)
    app.router.add_put("/local/faults", taking(faults.set))
    app.router.add_post("/local/faults", taking(faults.add))
    app.router.add_delete("/local/faults", clear)
    app.router.add_get("/local/faults/kinds", show_kinds)


def _problems(error: ValidationError) -> list[str]:
    return [
        f"{'.'.join(map(str, problem['loc'])) or 'body'} is {problem['input']!r}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_context=False)
    ]
