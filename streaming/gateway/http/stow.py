"""What a STOW-RS client is told of the objects that it has posted.

References
----------
DICOM PS3.18 10.5.3 (status codes), annex I.2 (Store Instances Response Module), annex F (DICOM JSON); PS3.19 A.1
(Native DICOM Model); PS3.4 B.2.3.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from xml.etree import ElementTree as ET  # only writes

from streaming.gateway.http.objectnames import ObjectNames
from streaming.gateway.refusals import Cause

JSON_TYPE, XML_TYPE = "application/dicom+json", "application/dicom+xml"
_ACCEPTED = {
    JSON_TYPE: JSON_TYPE,
    "application/json": JSON_TYPE,
    "application/*": JSON_TYPE,
    "*/*": JSON_TYPE,
    XML_TYPE: XML_TYPE,
    "application/xml": XML_TYPE,
}

_SPACE = "http://dicom.nema.org/PS3.19/models/NativeDICOM"
_CREATOR = "XRAY"
"""Of the private elements (group 0009, JSON alone): receipts go by the event id, which DICOM has no element for."""
_KEYWORDS = {
    "00081150": "ReferencedSOPClassUID",
    "00081155": "ReferencedSOPInstanceUID",
    "00081190": "RetrieveURL",
    "00081197": "FailureReason",
    "00081198": "FailedSOPSequence",
    "00081199": "ReferencedSOPSequence",
}

Element = dict[str, Any]


def choose_type(accept: str) -> str | None:
    """Choose how the answer is written; None where the client takes neither DICOM JSON nor XML.

    Parameters
    ----------
    accept : str
        The header; empty where there is none.
    """
    best: tuple[float, str] | None = None
    for one in (accept or "*/*").split(","):
        name, *parameters = (part.strip().lower() for part in one.split(";"))
        chosen, weight = _ACCEPTED.get(name), _weigh(parameters)
        if chosen is not None and weight > 0 and (best is None or weight > best[0]):
            best = (weight, chosen)
    return best and best[1]


def _weigh(parameters: Iterable[str]) -> float:
    for one in parameters:
        name, _, value = one.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


@dataclass
class StowAnswer:
    """Which objects are safe, under which event ids, and which are not, and why."""

    stored: list[tuple[ObjectNames, str]] = field(default_factory=list)
    failed: list[tuple[ObjectNames, Cause]] = field(default_factory=list)

    @property
    def status(self) -> int:
        """Of the HTTP answer: 200 all, 202 some, 409 none; 503 or 429 where none is, and it is worth to try again."""
        if not self.failed:
            return HTTPStatus.OK
        if self.stored:
            return HTTPStatus.ACCEPTED
        transient = [cause.value.http for _, cause in self.failed if cause.value.is_transient]
        return max(transient, default=HTTPStatus.CONFLICT)

    def render(self, media_type: str) -> bytes:
        """Write it as DICOM JSON or as the Native DICOM Model in XML."""
        return _write_xml(self._dataset()) if media_type == XML_TYPE else _write_json(self._dataset())

    def _dataset(self) -> dict[str, Element]:
        # RetrieveURL has type 2: it is there and empty, since nothing can be fetched from here.
        found: dict[str, Element] = {"00081190": {"vr": "UR"}}
        if self.failed:
            items = [_refer(names) | {"00081197": _put("US", cause.value.status)} for names, cause in self.failed]
            found["00081198"] = {"vr": "SQ", "Value": items}
        if self.stored:
            found["00081199"] = {"vr": "SQ", "Value": [_tell_stored(names, event) for names, event in self.stored]}
        return found


def _tell_stored(names: ObjectNames, event_id: str) -> dict[str, Element]:
    own = {"00090010": _put("LO", _CREATOR), "00091001": _put("LO", event_id)}
    return own | _refer(names) | {"00081190": {"vr": "UR"}}


def _refer(names: ObjectNames) -> dict[str, Element]:
    return {"00081150": _put("UI", names.sop_class), "00081155": _put("UI", names.sop_instance)}


def _put(vr: str, value: str | int | None) -> Element:
    return {"vr": vr} if value is None else {"vr": vr, "Value": [value]}


def _write_json(dataset: dict[str, Element]) -> bytes:
    return json.dumps(_in_order(dataset), separators=(",", ":")).encode()


def _in_order(dataset: dict[str, Element]) -> dict[str, Element]:
    ordered = dict(sorted(dataset.items()))
    for element in ordered.values():
        if element["vr"] == "SQ":
            element["Value"] = [_in_order(item) for item in element["Value"]]
    return ordered


def _write_xml(dataset: dict[str, Element]) -> bytes:
    root = ET.Element("NativeDicomModel", {"xmlns": _SPACE, "xml:space": "preserve"})
    _add_elements(root, _in_order(dataset))
    text: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return text


def _add_elements(parent: ET.Element, dataset: dict[str, Element]) -> None:
    for tag, element in dataset.items():
        if tag not in _KEYWORDS:  # private: dicomweb-client's reader of XML wants a keyword of every element
            continue
        child = ET.SubElement(parent, "DicomAttribute", {"tag": tag, "vr": element["vr"], "keyword": _KEYWORDS[tag]})
        for number, value in enumerate(element.get("Value", ()), start=1):
            if element["vr"] == "SQ":
                _add_elements(ET.SubElement(child, "Item", {"number": str(number)}), value)
            else:
                ET.SubElement(child, "Value", {"number": str(number)}).text = str(value)
