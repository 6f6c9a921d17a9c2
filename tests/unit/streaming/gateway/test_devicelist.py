"""Who may send, from where, and how much."""

import hashlib
import os
from pathlib import Path

import pytest

from schemas.errors import SettingsError
from streaming.gateway.devicelist import OTHER, DeviceList, read_devices
from streaming.gateway.refusals import Cause, Refusal
from streaming.settings import GatewaySettings

_TOKEN = "a-token-of-the-ward"  # noqa: S105
_HASH = "sha256:" + hashlib.sha256(_TOKEN.encode()).hexdigest()
_TWO = f"""
[[device]]
source = "/ward-3/dx-1"
aet = "DX1"
addresses = ["10.1.2.3", "10.9.0.0/16", "fd00::/8"]
tokens = ["{_HASH}"]
rate_per_s = 2.0
host = "10.1.2.3"
port = 11112

[[device]]
source = "/ward-4/dx-1"
aet = "DX2"
"""


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "devices.toml"
    path.write_text(_TWO)
    return path


def devices(file: Path | None, clock: Clock, **more: object) -> DeviceList:
    return DeviceList(GatewaySettings(devices=file, **more), clock)  # type: ignore[arg-type]


@pytest.mark.parametrize("address", ["10.1.2.3", "10.9.255.1", "::ffff:10.1.2.3", "fd00::1", "fd00::1%eth0"])
def test_a_device_is_known_by_title_and_token_at_its_addresses(file: Path, clock: Clock, address: str) -> None:
    known = devices(file, clock)
    assert known.find_by_title("DX1", address).source == "/ward-3/dx-1"
    assert known.find_by_token(_TOKEN, address) == known.find_by_title("DX1", address)


@pytest.mark.parametrize("address", ["10.1.2.4", "127.0.0.1", "::1", "fe80::1", "::ffff:10.1.2.4"])
def test_elsewhere_it_may_not_send(file: Path, clock: Clock, address: str) -> None:
    known = devices(file, clock)
    for find in (lambda: known.find_by_title("DX1", address), lambda: known.find_by_token(_TOKEN, address)):
        with pytest.raises(Refusal) as refused:
            find()
        assert refused.value.cause is Cause.NOT_ALLOWED


@pytest.mark.parametrize("aet", ["DX3", "dx1", "DX1 ", ""])
def test_a_title_that_is_not_named_is_refused_where_there_is_a_file(file: Path, clock: Clock, aet: str) -> None:
    with pytest.raises(Refusal):
        devices(file, clock).find_by_title(aet, "127.0.0.1")


def test_without_a_file_only_this_machine_may_send(clock: Clock) -> None:
    known = devices(None, clock)
    for address in ("127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"):
        device = known.find_by_title("CT 1/A", address)
        assert (device.source, device.label) == ("/dicom/CT%201%2FA", OTHER)
        assert known.find_by_token(None, address).source == "/http"
    for address in ("10.1.2.3", "192.168.1.1", "fd00::1"):
        with pytest.raises(Refusal):
            known.find_by_title("CT1", address)
        with pytest.raises(Refusal):
            known.find_by_token(None, address)


def test_anyone_may_send_where_the_setting_says_so(file: Path, clock: Clock) -> None:
    known = devices(file, clock, anyone=True)
    assert known.find_by_title("DX9", "10.7.7.7").source == "/dicom/DX9"
    assert known.find_by_title("DX1", "10.1.2.3").source == "/ward-3/dx-1"
    with pytest.raises(Refusal):  # a device that is named is held to its addresses all the same
        known.find_by_title("DX1", "10.7.7.7")


def test_a_wrong_token_is_refused_for_everyone(clock: Clock, file: Path) -> None:
    for known in (devices(file, clock, anyone=True), devices(None, clock)):
        with pytest.raises(Refusal):
            known.find_by_token("wrong", "127.0.0.1")


def test_rates_are_each_devices_own(file: Path, clock: Clock) -> None:
    known = devices(file, clock, rate_per_s=1.0)
    first, second = known.find_by_title("DX1", "10.1.2.3"), known.find_by_title("DX2", "10.1.2.3")
    for _ in range(20):
        known.admit(first)
    with pytest.raises(Refusal) as refused:
        known.admit(first)
    assert refused.value.cause is Cause.RATE
    assert refused.value.retry_after_s == pytest.approx(0.5)
    for _ in range(10):
        known.admit(second)
    with pytest.raises(Refusal):
        known.admit(second)
    clock.now += 0.5
    known.admit(first)
    with pytest.raises(Refusal):
        known.admit(first)
    clock.now += 1000
    for _ in range(20):
        known.admit(first)
    with pytest.raises(Refusal):
        known.admit(first)


def test_a_device_without_a_rate_is_not_counted(clock: Clock) -> None:
    known = devices(None, clock)
    device = known.find_by_title("DX1", "127.0.0.1")
    for _ in range(10_000):
        known.admit(device)


def test_the_file_is_read_again_when_it_changes(file: Path, clock: Clock) -> None:
    known = devices(file, clock)
    file.write_text(_TWO.replace('"DX2"', '"DX22"'))
    clock.now += 1.5
    assert known.find_by_title("DX22", "127.0.0.1").source == "/ward-4/dx-1"
    with pytest.raises(Refusal):
        known.find_by_title("DX2", "127.0.0.1")


@pytest.mark.parametrize(
    "damage", ["not toml [", '[[device]]\nsource = ""', '[[device]]\nsource = "/a"\naett = "x"', None]
)
def test_a_wrong_change_is_left_out(file: Path, clock: Clock, damage: str | None) -> None:
    known = devices(file, clock)
    if damage is None:
        file.unlink()
    else:
        file.write_text(damage)
    clock.now += 1.5
    assert known.find_by_title("DX2", "127.0.0.1").source == "/ward-4/dx-1"
    os.utime(file) if file.exists() else file.write_text("")
    file.write_text(_TWO + '\n[[device]]\nsource = "/new"\naet = "DX3"\n')
    clock.now += 1.5
    assert known.find_by_title("DX3", "127.0.0.1").source == "/new"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[device]\n", "is not TOML"),
        ('[[device]]\naet = "DX1"\n', "device.0.source"),
        ('[[device]]\nsource = "/a"\naet = "much too long a title"\n', "device.0.aet: an AE title"),
        ('[[device]]\nsource = "/a"\naddresses = ["10.1.2.3/8"]\n', "device.0.addresses.0"),
        ('[[device]]\nsource = "/a"\ntokens = ["secret"]\n', "device.0.tokens.0"),
        ('[[device]]\nsource = "/a"\nport = 70000\n', "device.0.port"),
        ('[[devices]]\nsource = "/a"\n', "devices"),
        ('[[device]]\nsource = "/a"\nis_named = false\n', "device.0.is_named"),
        ('[[device]]\nsource = "/a"\n', "/a has neither aet nor tokens"),
        ('[[device]]\nsource = "/a"\naet = "A"\nhost = "h"\n', "/a has host or port alone"),
        ('[[device]]\nsource = "/a"\naet = "A"\nport = 104\n', "/a has host or port alone"),
        (_TWO + '[[device]]\nsource = "/a"\naet = "DX2"\n', "/a has an aet or a token of /ward-4/dx-1"),
        (
            f'[[device]]\nsource = "/a"\ntokens = ["{_HASH}"]\n[[device]]\nsource = "/b"\ntokens = ["{_HASH}"]\n',
            "/b has an aet or a token of /a",
        ),
    ],
)
def test_a_wrong_file_stops_the_start(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "devices.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match="XRAY_GATEWAY__DEVICES") as refused:
        read_devices(file)
    assert said in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_missing_file_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="XRAY_GATEWAY__DEVICES"):
        DeviceList(GatewaySettings(devices=tmp_path / "none.toml"))


def test_tokens_are_not_shown(file: Path, clock: Clock) -> None:
    assert _HASH not in repr(devices(file, clock).find_by_title("DX1", "10.1.2.3"))


def test_where_a_device_listens(file: Path, clock: Clock) -> None:
    known = devices(file, clock)
    assert known.find_peer("DX1") == ("10.1.2.3", 11112)
    assert known.find_peer("DX2") is None
    assert known.find_peer("DX9") is None


def test_one_title_may_be_of_several_devices_at_their_addresses(file: Path, clock: Clock) -> None:
    file.write_text(
        "".join(f'[[device]]\nsource = "/dx-{i}"\naet = "DX"\naddresses = ["10.0.0.{i}"]\n' for i in range(3))
        + '[[device]]\nsource = "/any"\naet = "DX"\n'
    )
    known = devices(file, clock)
    found = [known.find_by_title("DX", f"10.0.0.{i}").source for i in range(4)]
    assert found == ["/dx-0", "/dx-1", "/dx-2", "/any"]
