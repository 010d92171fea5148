"""Properties hold on a busy machine too."""

from hypothesis import HealthCheck, settings


def pytest_configure() -> None:
    # Hypothesis fails an example that takes more than 0.2 s and a strategy that is slow to draw. Both say how busy
    # the machine is and nothing about the code; the time-out of the test is its bound.
    settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any machine")
