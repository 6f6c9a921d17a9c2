"""The real metrics page, for the tests that hold documents and dashboards against it."""

from prometheus_client import CollectorRegistry, generate_latest

from schemas.modelcard import ModelCard
from streaming.metrics import StreamMetrics


def render_metrics_page() -> str:
    """Render the page of a stream that has seen its first micro-batch."""
    registry = CollectorRegistry()
    card = ModelCard(
        name="cxr", version="1", labels=("normal", "opacities"), positive_label="opacities", threshold=0.5,
        operating_point="", network="EfficientNetLite0", precision="fp32", rendering_version=1, sha256="0" * 64,
        created_at="2026-01-01T00:00:00Z", metrics={},
    )  # fmt: skip
    metrics = StreamMetrics(registry, card)
    # Two families have no sample, and so show no label, before the first batch.
    metrics.record_batch("score", 1.0)
    metrics.record_lag({}, {"xray.images": {"0": 1}})
    return generate_latest(registry).decode()
