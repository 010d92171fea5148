"""Whether a deployment can be called, found out by one call at a time once calls have shown that it cannot.

Arithmetic only; times are those of the event loop's clock. A gate has one for our set-up and one for outages.
"""

import math

FIRST_PROBE = 5.0
LAST_PROBE = 20.0
"""Seconds between probes: doubling from the first to the last. A failed call is all that a probe costs, and work is
to go on within half a minute of when the cause is gone."""


ROLE_GRACE = 600.0
"""Seconds for which a role may spread before it counts as missing: Azure takes 5 to 10 minutes."""

SPREADING = f"(a role that was just assigned may be spreading: jobs wait up to {ROLE_GRACE / 60:g} min for it)"


class Probation:
    """What a deployment is on once calls have shown a lasting fault.

    One job at a time probes it, after 5 s, 10 s, 20 s ..., until one shows that the fault is gone.
    """

    def __init__(self) -> None:
        self.detail: str | None = None
        """What is wrong; None if nothing is."""
        self.since = -math.inf
        """When that was first seen."""
        self.probe_at = -math.inf
        self.is_spreading = False
        """Whether a role that was just assigned may not have reached all of the service yet. Azure alternates
        between two wordings meanwhile, so having seen one of them once is enough."""
        self.missing_token: str | None = None
        """The scope for which there was no token to call with, where that is what is wrong."""
        self._is_probing = False
        self._interval = 0.0

    @property
    def is_on(self) -> bool:
        return self.detail is not None

    @property
    def ready_at(self) -> float:
        """When a call may begin; infinity while the one that probes is under way."""
        return math.inf if self._is_probing and self.is_on else self.probe_at

    def waits_until(self, patience: float) -> float:
        """Until when jobs wait for the end of it; infinity if nothing is wrong."""
        if not self.is_on:
            return math.inf
        return self.since + (max(patience, ROLE_GRACE) if self.is_spreading else patience)

    def enter(self) -> bool:
        """A call begins. Whether it is the probe, whose end is to be told by `leave`."""
        is_probe = self.is_on and not self._is_probing
        self._is_probing = self._is_probing or is_probe
        return is_probe

    def leave(self) -> None:
        """The probe is over, however it ended."""
        self._is_probing = False

    def begin(
        self,
        detail: str,
        *,
        was_probe: bool,
        now: float,
        missing_token: str | None = None,
        is_spreading: bool = False,
    ) -> float:
        """Seconds until the next probe; 0 for a call that was under way when the fault was already known."""
        is_news = was_probe or not self.is_on
        if not self.is_on:
            self.since = now
        self.is_spreading = self.is_spreading or is_spreading
        self.detail = f"{detail} {SPREADING}" if self.is_spreading else detail
        self.missing_token = missing_token
        if not is_news:
            return 0.0
        self._interval = min(max(FIRST_PROBE, self._interval * 2), LAST_PROBE)
        self.probe_at = now + self._interval
        return self._interval

    def end(self) -> None:
        """It works, whatever becomes of a probe that is still under way."""
        self.detail, self.missing_token, self._interval, self.probe_at = None, None, 0.0, -math.inf
        self._is_probing = self.is_spreading = False
