"""A report from a prediction: whose image it is, and whether there is a report of it at all."""

from pathlib import Path

from schemas.errors import SettingsError
from schemas.modelcard import is_demonstration
from streaming.devices.crosswalk import FILE_SETTING, CrosswalkIndex
from streaming.reports.report import (
    Correction,
    LeftOut,
    NotReportedError,
    Prediction,
    Report,
    check_identity,
)
from streaming.settings import StreamSettings


class Reporter:
    """Makes reports.

    Parameters
    ----------
    settings : StreamSettings
        Where the crosswalk is, and which models are for demonstration.
    demonstration : bool
        Whether predictions of those are reported too.

    Raises
    ------
    SettingsError
        There is no crosswalk, or it cannot be read: nobody knows whose images they are, and none is reported.
    """

    def __init__(self, settings: StreamSettings, *, demonstration: bool) -> None:
        self._index = CrosswalkIndex(find_crosswalk(settings), settings.crosswalk_key)
        self._demonstration = demonstration
        self._left_out_models = frozenset(settings.reports.demonstration_models.split(","))

    def make(self, prediction: Prediction, correction: Correction | None = None) -> Report:
        """Make the report of a prediction.

        Raises
        ------
        NotReportedError
            There is none.
        SettingsError
            The crosswalk cannot be read any more.
        """
        name = prediction.model_name
        if not self._demonstration and (name in self._left_out_models or is_demonstration(name)):
            raise NotReportedError(LeftOut.DEMONSTRATION)
        identity = self._index.find(prediction.image_id)
        if identity is None:
            raise NotReportedError(LeftOut.NOT_FROM_THE_GATEWAY)
        if self._index.has_several_patients(prediction.image_id):
            raise NotReportedError(LeftOut.SEVERAL_PATIENTS)
        check_identity(identity)
        if correction is not None and correction.label not in prediction.labels:
            raise NotReportedError(LeftOut.UNKNOWN_LABEL)
        return Report(prediction, identity, correction)


def find_crosswalk(settings: StreamSettings) -> Path:
    """Give where the crosswalk is.

    Raises
    ------
    SettingsError
        It is nowhere; the message says why no report is sent.
    """
    file = settings.gateway.crosswalk
    if file is None:
        msg = (
            f"no report is sent: {FILE_SETTING} is not set. Images are known by pseudonyms, and the gateway's crosswalk"
            " alone says whose they are. Have the gateway keep one ('xray gateway --crosswalk FILE'), and name it here;"
            " see docs/reports.md"
        )
        raise SettingsError(msg)
    return file
