"""The real metrics pages, for the tests that hold documents and dashboards against them."""

from prometheus_client import CollectorRegistry, generate_latest

from schemas.documents import load_tables
from schemas.modelcard import ModelCard
from sparkdl.image.limits import RENDERING_VERSION
from streaming.account.archived import topics_by_table
from streaming.alerts.alertmetrics import AlertMetrics
from streaming.alerts.rules import Rules
from streaming.archive.archivemetrics import ArchiveMetrics
from streaming.archive.process import ArchiveProcess
from streaming.gateway.gatewaymetrics import GatewayMetrics
from streaming.gateway.offer import BURNED_IN
from streaming.metrics import StreamMetrics
from streaming.reports.reportmetrics import ReportMetrics
from streaming.settings import KafkaSettings, StreamSettings
from training.figures.bootstrap import Estimate
from training.figures.shift import ScoreShift, VectorShift
from training.lifecycle.drift import Drift
from training.lifecycle.shadowresult import Pair, ScoreDifference, Shadow
from xray.monitor import Findings, MonitorMetrics

DRIFT = Drift(
    "a reference", "a week", ScoreShift(0.3, 0.2, 0.001, 900, 400), VectorShift(0.02, 0.005, (), 900, 350), True, ("",)
)
SHADOW = Shadow(
    champion="1", challenger="2", positive_label="opacities", first=None, last=None, n_images=400, n_without_vector=0,
    n_unlike=Pair(10, 0), n_judged=390, n_undecided=Pair(0, 0), answers={}, agreement=Estimate(0.9, 0.8, 0.95),
    positive_shares=None, difference=ScoreDifference(-0.01, ()), by_source=(), disagreements=(), labelled=None,
    notes=(),
)  # fmt: skip


CARD = ModelCard(
    name="cxr", version="1", labels=("normal", "opacities"), positive_label="opacities", threshold=0.5,
    operating_point="", network="EfficientNetLite0", precision="fp32", rendering_version=RENDERING_VERSION,
    sha256="0" * 64, created_at="2026-01-01T00:00:00Z", metrics={},
)  # fmt: skip


def render_stream_page(*, archive: bool = True) -> str:
    """Render the page of a stream that has seen its first micro-batch, and looked at its models once.

    Parameters
    ----------
    archive : bool
        Whether it starts an archive beside it.
    """
    registry = CollectorRegistry()
    metrics = StreamMetrics(registry, CARD)
    if archive:
        ArchiveProcess(StreamSettings(), metrics)
    # Two families have no sample, and so show no label, before the first batch.
    metrics.record_batch(1.0)
    metrics.record_lag({}, {"xray.images": {"0": 1}})
    MonitorMetrics(registry).show(Findings("1", DRIFT, "2", SHADOW, 1_767_225_600.0))
    return generate_latest(registry).decode()


def render_archive_page() -> str:
    """Render the page of an archive that has written into each of its tables."""
    registry = CollectorRegistry()
    metrics = ArchiveMetrics(registry, load_tables())
    for table, topic in topics_by_table(KafkaSettings()).items():
        metrics.record_batch(table, read=3, written=1, nameless=1, seconds=0.1)
        metrics.lag.labels(table, topic, "0").set(0)
        metrics.retention_left.labels(table).set(7 * 86_400)
        metrics.oldest_waiting.labels(table).set(0)
    metrics.record_turn(ok=True)
    return generate_latest(registry).decode()


def render_gateway_page() -> str:
    """Render the page of a gateway that has taken an object with a flag, and rejected an association."""
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)
    metrics.record_taken("/ward-3/dx-1", (BURNED_IN,))
    metrics.rejected.labels("transient").inc()
    return generate_latest(registry).decode()


def render_alerts_page() -> str:
    """Render the page of alarms that have read and delivered something."""
    registry = CollectorRegistry()
    rules = Rules.model_validate(
        {
            "version": 1,
            "sinks": {"ward": {}},
            "rules": [{"name": "A", "prediction": {}}, {"name": "B", "unanswered": {"for": "10m"}}],
        }
    )
    metrics = AlertMetrics(registry, rules)
    metrics.lag.labels("xray.predictions").set(0)
    metrics.delay.labels("ward").observe(0.1)
    return generate_latest(registry).decode()


def render_reports_page() -> str:
    """Render the page of reports to one target."""
    registry = CollectorRegistry()
    ReportMetrics(registry, ["fhir"])
    return generate_latest(registry).decode()
