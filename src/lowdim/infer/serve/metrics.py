"""What a server counts and times, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """The counters, gauges and histograms of one server, in a registry of their own.

    Example:
        >>> metrics = Metrics()
        >>> metrics.prompt_tokens.inc(3)
        >>> "lowdim_prompt_tokens_total 3.0" in metrics.text()
        True
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "lowdim_requests",
            "Generation requests, by endpoint and outcome.",
            ["endpoint", "outcome"],
            registry=self._registry,
        )
        self.prompt_tokens = Counter("lowdim_prompt_tokens", "Prompt tokens read.", registry=self._registry)
        self.generated_tokens = Counter("lowdim_generated_tokens", "Tokens generated.", registry=self._registry)
        self.first_token = Histogram(
            "lowdim_time_to_first_token_seconds",
            "From a sequence's arrival to its first token, waiting included.",
            buckets=_FIRST,
            registry=self._registry,
        )
        self.per_token = Histogram(
            "lowdim_time_per_output_token_seconds",
            "Between two tokens of one sequence.",
            buckets=_TOKEN,
            registry=self._registry,
        )
        self._running = Gauge("lowdim_sequences_running", "Sequences with a slot.", registry=self._registry)
        self._queued = Gauge("lowdim_sequences_queued", "Sequences waiting.", registry=self._registry)

    def watch(self, running: Callable[[], float], queued: Callable[[], float]) -> None:
        """Have the gauges read their values when they are asked for."""
        self._running.set_function(running)
        self._queued.set_function(queued)

    def text(self) -> str:
        """Return everything in Prometheus's text format."""
        return generate_latest(self._registry).decode()
