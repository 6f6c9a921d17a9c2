"""Watches the model in service while the stream runs: drift, and the challenger in shadow, as metrics.

Both are computed from the tables that ARCHIVE writes, with one BLAS thread, in a thread of the driver, which scores no
image itself.
"""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from deltalake.exceptions import DeltaError
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from schemas.errors import ModelLoadError, XrayError
from schemas.extras import install_line
from schemas.modelcard import ModelCard, read_card
from schemas.registry import challenger_folder, champion_folder
from streaming.periodic import PeriodicTask, first_line
from streaming.settings import StreamSettings

if TYPE_CHECKING:
    from training.lifecycle.drift import Drift
    from training.lifecycle.shadowresult import Shadow

log = logging.getLogger(__name__)

FIRST_MEASUREMENT_S = 60.0
"""Seconds until drift is first measured: a dashboard is not empty for an hour, and ARCHIVE has mostly caught up."""

MAX_IMAGES = 5000
"""Images of the shadow comparison; of 1,280 values 26 MB."""

_NEEDED = ("scipy", "sklearn", "threadpoolctl")
_GAUGES = {
    "xray_drift_score_psi": "Population stability index of the scores.",
    "xray_drift_score_ks": "Kolmogorov-Smirnov distance of the scores.",
    "xray_drift_vector_energy": "Energy distance of the feature vectors.",
    "xray_drift_images": "Recent images that drift was measured on.",
    "xray_retraining_called_for": "1 where drift calls for retraining.",
    "xray_challenger_info": "The challenger.",
    "xray_shadow_images": "Images that the challenger was compared on.",
    "xray_shadow_agreement_ratio": "Share of images of which the challenger would have said the same.",
    "xray_shadow_score_difference": "Mean of the challenger's score less the one that was given.",
}
"""Each with the version of a model: the one in service, or the challenger."""


@dataclass(frozen=True)
class Findings:
    """What one measurement found.

    Parameters
    ----------
    version : str
        Of the model in service.
    drift : Drift
        Of its images and scores.
    challenger : str or None
        Version; None where there is none.
    shadow : Shadow or None
        None where there is no challenger, or it cannot be compared.
    found_at : float
        Unix time, seconds.
    """

    version: str
    drift: "Drift"
    challenger: str | None
    shadow: "Shadow | None"
    found_at: float


class MonitorMetrics(Collector):
    """The series of the last measurement; without a finding there is no sample.

    Parameters
    ----------
    registry : CollectorRegistry
        Where they appear.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._findings: Findings | None = None
        registry.register(self)

    def show(self, findings: Findings) -> None:
        """Let these take the place of what was found before, all at once."""
        self._findings = findings

    def collect(self) -> Iterable[Metric]:
        """Give the families to Prometheus."""
        found = self._findings
        values = {} if found is None else _list_values(found)
        for name, text in _GAUGES.items():
            family = GaugeMetricFamily(name, text, labels=["version"])
            if name in values:
                version, value = values[name]
                family.add_metric([version], value)
            yield family
        moment = GaugeMetricFamily("xray_last_monitor_timestamp_seconds", "When drift was last measured.")
        if found is not None:
            moment.add_metric([], found.found_at)
        yield moment


def _list_values(found: Findings) -> dict[str, tuple[str, float]]:
    """Give the version and the value of each gauge that there is something to say of."""
    drift, shadow = found.drift, found.shadow
    own: dict[str, float] = {}
    if drift.scores is not None:
        own |= {"xray_drift_score_psi": drift.scores.psi, "xray_drift_score_ks": drift.scores.ks}
    if drift.vectors is not None:
        own["xray_drift_vector_energy"] = drift.vectors.energy
    if drift.called_for is not None:
        own["xray_retraining_called_for"] = float(drift.called_for)
        # Of vectors at most 2,000 are compared; scores all are.
        own["xray_drift_images"] = max(part.n_recent for part in (drift.scores, drift.vectors) if part is not None)
    values = {name: (found.version, value) for name, value in own.items()}
    if found.challenger is None:
        return values
    of_challenger = {"xray_challenger_info": 1.0}
    if shadow is not None:
        of_challenger["xray_shadow_images"] = shadow.n_judged
        if shadow.agreement is not None:
            of_challenger["xray_shadow_agreement_ratio"] = shadow.agreement.value
        if shadow.difference is not None:
            of_challenger["xray_shadow_score_difference"] = shadow.difference.mean
    return values | {name: (found.challenger, value) for name, value in of_challenger.items()}


class Monitor:
    """Measures drift of the model in service and compares its challenger, in a thread of its own.

    Parameters
    ----------
    settings : StreamSettings
        All settings; ``monitor`` says how often.
    registry : CollectorRegistry
        Where the findings show.
    model_folder : Path, optional
        The model that the stream serves and stays with. By default the settings' one; where they name none, whichever
        is promoted at the time.
    """

    def __init__(
        self, settings: StreamSettings, registry: CollectorRegistry, *, model_folder: Path | None = None
    ) -> None:
        self._settings = settings
        self._metrics = MonitorMetrics(registry)
        self._pinned = model_folder or settings.model
        interval_s = settings.monitor.interval_s
        # E.g. tables that are not there yet. When something was last found shows in its time.
        self._task = PeriodicTask(
            "monitor",
            self._measure,
            interval_s,
            failure="drift could not be measured",
            expected=(XrayError, DeltaError, OSError),
            first_wait_s=min(FIRST_MEASUREMENT_S, interval_s),
        )

    def start(self) -> None:
        """Start the thread, once; it first measures a minute later."""
        if not self._settings.monitor.interval_s:
            return
        if missing := [name for name in _NEEDED if find_spec(name) is None]:
            log.warning("drift is not watched: that needs %s: %s", ", ".join(missing), install_line("train"))
            return
        self._task.start()

    def stop(self) -> None:
        """Tell the thread to end; a measurement that is under way is not waited for."""
        self._task.stop()

    def measure(self) -> None:
        """Measure now; where that fails, what was found before stays, and the log says why."""
        self._task.run_once()

    def _measure(self) -> None:
        self._metrics.show(self._find())

    def _find(self) -> Findings:
        from threadpoolctl import threadpool_limits  # noqa: PLC0415  in the train extra

        settings = self._settings
        folder = self._pinned or champion_folder(settings.models_folder)
        card = read_card(folder)
        with threadpool_limits(1):
            drift = _measure_drift(settings, folder, card)
            rival = _read_challenger(settings.models_folder)
            shadow = None if rival is None else _compare(settings, (folder, card), rival)
        return Findings(card.version, drift, None if rival is None else rival[1].version, shadow, time.time())


def _measure_drift(settings: StreamSettings, folder: Path, card: ModelCard) -> "Drift":
    from training.features.stored import describe_featurizer, find_models_with  # noqa: PLC0415
    from training.figures.shift import load_reference  # noqa: PLC0415  heavy
    from training.lifecycle.drift import measure_drift  # noqa: PLC0415  heavy

    featurizer = describe_featurizer(folder, card)
    # A model that is served from elsewhere is none of those in the registry.
    hashes = sorted({card.sha256, *find_models_with(settings.models_folder, featurizer)})
    reference = load_reference(settings.reports_folder / card.version)
    return measure_drift(settings.tables_folder, card, featurizer, hashes, reference)


def _read_challenger(models_folder: Path) -> tuple[Path, ModelCard] | None:
    try:
        folder = challenger_folder(models_folder)
        return None if folder is None else (folder, read_card(folder))
    except ModelLoadError as exc:
        log.warning("there is no challenger to compare: %s", first_line(exc))
        return None


def _compare(
    settings: StreamSettings, champion: tuple[Path, ModelCard], rival: tuple[Path, ModelCard]
) -> "Shadow | None":
    from training.lifecycle.shadow import compare_shadow  # noqa: PLC0415  heavy

    try:
        return compare_shadow(settings.tables_folder, champion, rival, max_images=MAX_IMAGES)
    except ModelLoadError as exc:
        log.warning("the challenger is not compared: %s", first_line(exc))
        return None
