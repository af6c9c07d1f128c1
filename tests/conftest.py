"""What every test shares: properties are judged by what holds, never by how long it took."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# the machines are shared: a first draw that waits for the processor says nothing about the strategy
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")
