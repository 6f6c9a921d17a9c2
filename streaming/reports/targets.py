"""One target from its address."""

from pathlib import Path

from streaming.reports.dicomstore import DicomStore
from streaming.reports.fhirserver import FhirServer
from streaming.reports.mllp import MllpPeer
from streaming.reports.reportfolder import ReportFolder
from streaming.reports.stowserver import StowServer
from streaming.reports.target import Address, Kind, Target
from streaming.settings import ReportsSettings


def open_target(address: Address, settings: ReportsSettings) -> Target:
    """Make what sends to an address; nothing is connected yet.

    Raises
    ------
    SettingsError
        A file of TLS is not what it should be; names the setting.
    """
    match address.kind:
        case Kind.FHIR:
            return FhirServer(address.place, settings)
        case Kind.STOW:
            return StowServer(address.place, settings)
        case Kind.DICOM | Kind.DICOMS:
            return DicomStore(address, settings)
        case Kind.MLLP | Kind.MLLPS:
            return MllpPeer(address, settings)
        case Kind.FILES:
            return ReportFolder(Path(address.place), settings, "fhir")
