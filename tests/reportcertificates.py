"""Certificates of an authority that is made for a test: of peers that reports go to, and of ours."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

HOST = "127.0.0.1"
WRONG = {"missing": None, "empty": b"", "text": b"no PEM\n", "cut": b"-----BEGIN CERTIFICATE-----\nMIIB\n"}
"""What is no PEM file; None is no file."""


@dataclass
class Files:
    """An authority, its PEM file, and a folder."""

    folder: Path
    authority: trustme.CA

    @property
    def ca(self) -> Path:
        self.authority.cert_pem.write_to_path(self.folder / "ca.pem")
        return self.folder / "ca.pem"

    def write_own(
        self, authority: trustme.CA | None = None, *, pass_phrase: bytes | None = None, **options: Any
    ) -> dict[str, Path]:
        """Write a certificate of ours, and give the settings that name it."""
        issued = (authority or self.authority).issue_cert("xray.hospital", **options)
        files = {"tls_certificate": self.folder / "own.pem", "tls_key": self.folder / "own-key.pem"}
        issued.cert_chain_pems[0].write_to_path(files["tls_certificate"])
        key = load_pem_private_key(issued.private_key_pem.bytes(), None)
        encryption = BestAvailableEncryption(pass_phrase) if pass_phrase else NoEncryption()
        files["tls_key"].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
        return files


def serve_as(issued: trustme.LeafCert, *, wanting: trustme.CA | None = None) -> ssl.SSLContext:
    """What a peer speaks that shows a certificate, and may want one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(context)
    if wanting is not None:
        wanting.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
