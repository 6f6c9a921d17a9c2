"""Settings that contradict one another, each rule by an example, and that defaults break none."""

from pathlib import Path
from typing import Any

import pytest

from streaming.settings import StreamSettings
from xray.doctor.contradictions import check_settings
from xray.doctor.finding import Verdict

FAULT, WARNING = Verdict.FAULT, Verdict.WARNING


def test_the_defaults_contradict_nothing(tmp_path: Path) -> None:
    [finding] = check_settings(StreamSettings(home=tmp_path))
    assert finding.verdict is Verdict.OK


@pytest.mark.parametrize(
    ("changes", "verdict", "said"),
    [
        ({"metrics": {"port": 9465}}, FAULT, "XRAY_METRICS__PORT and XRAY_ARCHIVE__METRICS_PORT are all 9465"),
        ({"kafka": {"features_topic": "xray.images"}}, FAULT, "are all xray.images"),
        ({"kafka": {"sasl_username": "u", "sasl_password": "p-secret"}}, WARNING, "user and password are not used"),
        ({"kafka": {"ssl_ca_location": "/ca.pem"}}, WARNING, "certificates are not used"),
        ({"score": {"max_payload_bytes": 10**9}}, WARNING, "Kafka takes no image of that size"),
        ({"gateway": {"max_object_bytes": 10**9}}, WARNING, "becomes a dead letter"),
        ({"retry": {"first_wait_s": 60}}, FAULT, "XRAY_RETRY__FIRST_WAIT_S is 60"),
        ({"audit": {"interval_s": 7200}}, WARNING, "images between two accounts are in none"),
        ({"archive": {"trigger_s": 700}}, FAULT, "is ended as one that hangs"),
        ({"score": {"canary_s": 0}}, WARNING, "XRAY_SCORE__CANARY_S is 0"),
        ({"gateway": {"dicom_port": "off", "http_port": "off"}}, WARNING, "no device could send"),
        ({"gateway": {"host": "0.0.0.0"}}, FAULT, "no device may send"),  # noqa: S104 - that is the point
        ({"gateway": {"crosswalk": "/c", "deidentify": False}}, WARNING, "no pseudonyms to keep"),
        ({"gateway": {"spool": "/s", "keep_originals": "/s"}}, FAULT, "are one folder"),
        ({"spark": {"master": "spark://m:7077"}}, FAULT, "without XRAY_SPARK__SECRET"),
        ({"model": "/models/1"}, WARNING, "promoting another model changes nothing"),
        ({"page": {"tls_client_ca": "/ca.pem"}}, FAULT, "XRAY_PAGE__TLS_CLIENT_CA is set without"),
        ({"archive": {"folder": "tables"}}, WARNING, "XRAY_ARCHIVE__FOLDER is tables"),
        ({"home": "state"}, WARNING, "XRAY_HOME is state"),
    ],
)
def test_a_contradiction_is_told_once_with_what_to_do(
    tmp_path: Path, changes: dict[str, Any], verdict: Verdict, said: str
) -> None:
    found = list(check_settings(StreamSettings(**{"home": tmp_path, **changes})))
    [finding] = [one for one in found if said in one.found]
    assert finding.verdict is verdict
    assert finding.advice
    assert "p-secret" not in str(found)


@pytest.mark.parametrize(
    "changes",
    [
        {"gateway": {"dicom_port": 0, "http_port": 0}, "page": {"port": 0}},
        {"gateway": {"host": "0.0.0.0", "anyone": True}},  # noqa: S104 - that is the point
        {"gateway": {"host": "localhost"}},
        {"archive": {"folder": "s3://bucket/tables"}},
        {"audit": {"interval_s": 0}},
        {"spark": {"master": "spark://m:7077", "secret": "s"}},
    ],
)
def test_what_is_meant_so_is_no_contradiction(tmp_path: Path, changes: dict[str, Any]) -> None:
    [finding] = check_settings(StreamSettings(**{"home": tmp_path, **changes}))
    assert finding.verdict is Verdict.OK
