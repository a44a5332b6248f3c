"""Counters of a server, in the text format of Prometheus."""

from __future__ import annotations

from ..errors import require


class Metrics:
    """What a server counts; each has a registry of its own."""

    def __init__(self) -> None:
        prometheus = require("prometheus_client", "serve")
        self.registry = prometheus.CollectorRegistry()
        times = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
        self.requests = prometheus.Counter(
            "foveate_requests", "Requests answered, by HTTP status", ["status"], registry=self.registry
        )
        self.visual = prometheus.Counter(
            "foveate_visual_tokens", "Visual tokens before and after compression", ["when"], registry=self.registry
        )
        self.written = prometheus.Counter("foveate_generated_tokens", "Tokens of answers", registry=self.registry)
        self.in_flight = prometheus.Gauge(
            "foveate_requests_in_flight", "Requests that wait or run", registry=self.registry
        )
        self.queue = prometheus.Histogram(
            "foveate_queue_seconds", "From arrival to the model's work", buckets=times, registry=self.registry
        )
        self.first = prometheus.Histogram(
            "foveate_first_token_seconds", "From arrival to the first token", buckets=times, registry=self.registry
        )
        self.whole = prometheus.Histogram(
            "foveate_request_seconds", "From arrival to the last token", buckets=times, registry=self.registry
        )

    def page(self) -> bytes:
        """All of them, as a scraper reads them."""
        return require("prometheus_client", "serve").generate_latest(self.registry)
