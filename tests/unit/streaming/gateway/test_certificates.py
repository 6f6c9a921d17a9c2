"""TLS of the doors: what is wrong with PEM files is said, and files that change are read again."""

import os
import ssl
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from schemas.errors import SettingsError
from streaming.gateway.certificates import Certificates, load_context
from streaming.settings import GatewaySettings


def write_certificate(folder: Path, name: str = "door") -> dict[str, Path]:
    """Write a certificate of a new authority, its key, and the authority."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    files = {kind: folder / f"{name}-{kind}.pem" for kind in ("certificate", "key", "authority")}
    issued.cert_chain_pems[0].write_to_path(files["certificate"])
    issued.private_key_pem.write_to_path(files["key"])
    authority.cert_pem.write_to_path(files["authority"])
    return files


def to_settings(files: dict[str, Path], *, mutual: bool = False) -> GatewaySettings:
    authority = files["authority"] if mutual else None
    return GatewaySettings(tls_certificate=files["certificate"], tls_key=files["key"], tls_client_ca=authority)


def test_no_certificate_is_no_tls() -> None:
    assert load_context(GatewaySettings()) is None
    assert Certificates(GatewaySettings()).current() is None


def test_old_protocols_are_off_and_devices_need_a_certificate_where_their_authority_is_named(tmp_path: Path) -> None:
    files = write_certificate(tmp_path)
    one_sided, mutual = load_context(to_settings(files)), load_context(to_settings(files, mutual=True))
    assert one_sided is not None
    assert mutual is not None
    assert one_sided.minimum_version == ssl.TLSVersion.TLSv1_2
    assert (one_sided.verify_mode, mutual.verify_mode) == (ssl.CERT_NONE, ssl.CERT_REQUIRED)


WRONG = {"missing": None, "empty": b"", "text": b"no PEM\n", "cut": b"-----BEGIN CERTIFICATE-----\nMIIB\n"}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(
    ("kind", "setting"),
    [("certificate", "TLS_CERTIFICATE"), ("key", "TLS_KEY"), ("authority", "TLS_CLIENT_CA")],
)
def test_a_bad_file_is_told_with_its_setting(tmp_path: Path, kind: str, setting: str, wrong: str) -> None:
    files = write_certificate(tmp_path)
    content = WRONG[wrong]
    if content is None:
        files[kind].unlink()
    else:
        files[kind].write_bytes(content)
    with pytest.raises(SettingsError, match=f"XRAY_GATEWAY__{setting}"):
        Certificates(to_settings(files, mutual=True))


def test_a_key_of_another_certificate_is_told(tmp_path: Path) -> None:
    files, others = write_certificate(tmp_path), write_certificate(tmp_path, "other")
    with pytest.raises(SettingsError, match="TLS_KEY"):
        Certificates(to_settings(files | {"key": others["key"]}))


def test_a_key_with_a_pass_phrase_is_told_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    files = write_certificate(tmp_path)
    key = serialization.load_pem_private_key(files["key"].read_bytes(), None)
    files["key"].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(SettingsError, match="without a pass phrase"):
        Certificates(to_settings(files))


def test_files_that_change_are_read_again_and_a_wrong_change_is_left_out(tmp_path: Path) -> None:
    files = write_certificate(tmp_path)
    certificates = Certificates(to_settings(files))
    first = certificates.current()
    assert certificates.current() is first
    others = write_certificate(tmp_path, "renewed")
    os.replace(others["certificate"], files["certificate"])
    assert certificates.current() is first, "the key is still the former one"
    os.replace(others["key"], files["key"])
    second = certificates.current()
    assert second is not first
    files["key"].unlink()
    assert certificates.current() is second
