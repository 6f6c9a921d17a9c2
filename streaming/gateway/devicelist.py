"""Which devices may send, who they are in the results, and how much: one TOML file for both doors.

::

    [[device]]
    source = "/hospital/ward-3/dx-1"      # ce_source of its images
    aet = "DX1"                           # its calling AE title, for the DICOM door
    addresses = ["10.1.2.3", "10.1.3.0/24"]   # from where; everywhere, when left out
    tokens = ["sha256:..."]               # SHA-256 of its bearer tokens, for the HTTP door
    rate_per_s = 2.0                      # instead of XRAY_GATEWAY__RATE_PER_S
    host = "10.1.2.3"                     # where Storage Commitment is reported to
    port = 11112
"""

import hmac
import ipaddress
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from streaming.accessfile import TokenHash, WatchedFile, hash_token, read_access
from streaming.gateway.refusals import Cause, Refusal
from streaming.settings import AeTitle, GatewaySettings, Port

_SETTING = "XRAY_GATEWAY__DEVICES"
_BURST_S = 10.0
"""A device may send at once what it may send in so many seconds: a study has several images."""
OTHER = "other"
"""What metrics call all devices that the file does not name."""


def _network(text: str) -> str:
    ipaddress.ip_network(text)
    return text


class UnknownTokenError(Refusal):
    """A token is wanted, or another one: an HTTP client is told so, rather than that it may not send."""

    def __init__(self, detail: str) -> None:
        super().__init__(Cause.NOT_ALLOWED, detail)


class Device(BaseModel):
    """A device; see the module for its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    source: str = Field(min_length=1, max_length=1024)
    aet: AeTitle | None = None
    addresses: tuple[Annotated[str, AfterValidator(_network)], ...] = ()
    tokens: tuple[TokenHash, ...] = Field(default=(), repr=False)
    rate_per_s: float | None = Field(default=None, ge=0)
    host: str | None = None
    port: Port | None = None

    @property
    def label(self) -> str:
        """What metrics call it."""
        return self.source

    def may_be_at(self, address: str) -> bool:
        """Tell whether it may send from an address."""
        own = _parse(address)
        return not self.addresses or any(own in ipaddress.ip_network(one) for one in self.addresses)


class Stranger(Device):
    """A device that no file names."""

    @property
    def label(self) -> str:
        """What metrics call all of them: their names are whatever they say."""
        return OTHER


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    device: tuple[Device, ...] = ()

    @field_validator("device")
    @classmethod
    def _each_has_its_use(cls, devices: tuple[Device, ...]) -> tuple[Device, ...]:
        """Refuse a device that could never send, or never be reported to: its engineer would look for the reason."""
        everywhere: dict[str, str] = {}
        for device in devices:
            if device.aet is None and not device.tokens:
                msg = f"{device.source} has neither aet nor tokens, so it could not send"
                raise ValueError(msg)
            if (device.host is None) != (device.port is None):
                msg = f"{device.source} has host or port alone, which are wanted both or neither"
                raise ValueError(msg)
            for name in filter(None, (device.aet, *device.tokens)):
                if name in everywhere:
                    msg = f"{device.source} has an aet or a token of {everywhere[name]}, which may send from everywhere"
                    raise ValueError(msg)
                if not device.addresses:
                    everywhere[name] = device.source
        return devices


class DeviceList:
    """The devices of the file, which is read again when it changes, and how much each of them has sent.

    Parameters
    ----------
    settings : GatewaySettings
        ``devices``, ``anyone``, ``rate_per_s``.
    clock : callable
        Seconds; for tests.

    Raises
    ------
    SettingsError
        The file cannot be read, or says something wrong. Once it was read, a wrong change is left out, and logged.
    """

    def __init__(self, settings: GatewaySettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}
        self._file = (
            None
            if settings.devices is None
            else WatchedFile(
                settings.devices,
                read_devices,
                kept="the devices stay as they were",
                describe=lambda devices: f": {len(devices)} devices",
                clock=clock,
            )
        )

    def find_by_title(self, aet: str, address: str) -> Device:
        """Find the device that calls itself so, from there.

        Raises
        ------
        Refusal
            ``NOT_ALLOWED``.
        """
        found = [device for device in self._current() if device.aet == aet]
        if found:
            return self._at(found, address)
        return self._stranger(f"/dicom/{quote(aet, safe='')}", address)

    def find_by_token(self, token: str | None, address: str) -> Device:
        """Find the device that has a bearer token; None where the request has none.

        Raises
        ------
        UnknownTokenError
            It has none, or another one is wanted.
        Refusal
            ``NOT_ALLOWED``: not from there.
        """
        devices = self._current()
        if token is None:
            if not self._may_be_strange(address):
                msg = "a bearer token is wanted"
                raise UnknownTokenError(msg)
            return Stranger(source="/http")
        given = hash_token(token)
        found = [one for one in devices if any(hmac.compare_digest(given, known) for known in one.tokens)]
        if not found:
            msg = "no device has this token"
            raise UnknownTokenError(msg)
        return self._at(found, address)

    def find_peer(self, aet: str) -> tuple[str, int] | None:
        """Give where a device listens itself; None where the file does not say."""
        for device in self._current():
            if device.aet == aet and device.host is not None and device.port is not None:
                return device.host, device.port
        return None

    def admit(self, device: Device) -> None:
        """Count an object of a device.

        Raises
        ------
        Refusal
            ``RATE``, with the time until the next one.
        """
        rate = self._settings.rate_per_s if device.rate_per_s is None else device.rate_per_s
        if not rate:
            return
        most = max(1.0, rate * _BURST_S)
        with self._lock:
            now = self._clock()
            left, then = self._buckets.get(device.source, (most, now))
            left = min(most, left + (now - then) * rate)
            if left >= 1:
                self._buckets[device.source] = (left - 1, now)
                return
            self._buckets[device.source] = (left, now)
        raise Refusal(Cause.RATE, f"more than {rate:g} objects a second", retry_after_s=(1 - left) / rate)

    def _at(self, found: list[Device], address: str) -> Device:
        for device in found:
            if device.may_be_at(address):
                return device
        raise Refusal(Cause.NOT_ALLOWED, f"{found[0].source} may not send from {address}")

    def _stranger(self, source: str, address: str) -> Device:
        if self._may_be_strange(address):
            return Stranger(source=source)
        raise Refusal(Cause.NOT_ALLOWED, f"{_SETTING} names no such device, at {address}")

    def _may_be_strange(self, address: str) -> bool:
        return self._settings.anyone or (self._settings.devices is None and _parse(address).is_loopback)

    def _current(self) -> tuple[Device, ...]:
        return () if self._file is None else self._file.current()


def read_devices(file: Path) -> tuple[Device, ...]:
    """Read the file of devices.

    Raises
    ------
    SettingsError
        It cannot be read, or says something wrong; names the file and the place.
    """
    return read_access(file, _File, _SETTING).device


def _parse(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    own = ipaddress.ip_address(address.partition("%")[0])
    mapped = own.ipv4_mapped if isinstance(own, ipaddress.IPv6Address) else None
    return mapped or own
