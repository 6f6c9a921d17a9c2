"""What a connection failed of, in words of the system alone: nothing that the other side wrote."""

import socket
import ssl


def describe_failure(exc: OSError) -> str:
    """Describe what the system says of a connection: a name, a certificate, a time-out, and so on."""
    match exc:
        case socket.gaierror():
            return f"the name cannot be resolved: {exc.strerror}"
        case ssl.SSLCertVerificationError():
            return f"its certificate is not accepted: {exc.verify_message}"
        case ssl.SSLError():
            return f"TLS failed: {exc.reason or type(exc).__name__}"
        case TimeoutError():
            return "no answer in time"
    return exc.strerror or str(exc) or type(exc).__name__
