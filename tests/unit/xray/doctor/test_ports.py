"""Who listens on a port: real sockets of this process, and a made-up /proc."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge, start_http_server

from streaming.scraping import ask_part
from streaming.settings import (
    AlertsSettings,
    ArchiveSettings,
    GatewaySettings,
    KafkaSettings,
    MetricsSettings,
    PageSettings,
    ReportsSettings,
    StreamSettings,
)
from xray.doctor import ports as module
from xray.doctor.finding import Finding, Verdict
from xray.doctor.ports import Owner, check_ports, find_owners, list_ports


def settings(**changes: Any) -> StreamSettings:
    """Give settings with no port but those that a test names."""
    none: dict[str, Any] = {
        "kafka": KafkaSettings(bootstrap_servers="broker.invalid:9092"),
        "metrics": MetricsSettings(port=0),
        "archive": ArchiveSettings(metrics_port=0),
        "gateway": GatewaySettings(metrics_port=0, dicom_port="off", http_port=0),
        "alerts": AlertsSettings(metrics_port=0),
        "reports": ReportsSettings(metrics_port=0),
        "page": PageSettings(port=0),
    }
    return StreamSettings(**none | changes)


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


def only(found: Iterator[Finding]) -> Finding:
    [finding] = found
    return finding


def test_ports_that_are_off_or_any_free_one_are_not_looked_at() -> None:
    assert list_ports(settings()) == {}
    assert list_ports(settings(page=PageSettings(port=8050))) == {"XRAY_PAGE__PORT": 8050}


def test_this_process_is_found_by_its_socket(listening: int) -> None:
    found = find_owners([listening])[listening]
    assert found is None or found.pid > 0  # None where the kernel does not tell


def test_a_port_that_nobody_listens_on_is_free(listening: int) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    assert port not in find_owners([port, listening])
    finding = only(check_ports(settings(page=PageSettings(port=port))))
    assert finding.verdict is Verdict.OK
    assert "is free" in finding.found


def test_without_proc_a_port_is_connected_to(listening: int, tmp_path: Path) -> None:
    assert find_owners([listening], proc=tmp_path) == {listening: None}


def make_proc(tmp_path: Path, *, port: int, command: str) -> Path:
    (tmp_path / "net").mkdir()
    entry = f"   0: 0100007F:{port:04X} 00000000:0000 {{}} 00000000:00000000 00:00000000 00000000 0 0 {{}} 1"
    lines = ["  sl  local_address", entry.format("0A", "777"), entry.format("01", "778")]
    (tmp_path / "net" / "tcp").write_text("\n".join(lines))
    (tmp_path / "42" / "fd").mkdir(parents=True)
    (tmp_path / "42" / "fd" / "3").symlink_to("socket:[777]")
    (tmp_path / "42" / "comm").write_text("python\n")
    (tmp_path / "42" / "cmdline").write_bytes(command.replace(" ", "\0").encode())
    return tmp_path


@pytest.mark.parametrize(
    ("command", "is_ours"),
    [
        ("python /usr/local/bin/xray page", True),
        ("python -m streaming", True),
        ("python /srv/xray-of-others/serve.py", False),
    ],
)
def test_a_process_is_ours_by_its_command(tmp_path: Path, command: str, is_ours: bool) -> None:
    proc = make_proc(tmp_path, port=8050, command=command)
    assert find_owners([8050, 8051], proc=proc) == {8050: Owner(42, "python", is_ours)}


def test_a_process_that_may_not_be_looked_at_is_somebody_elses(tmp_path: Path) -> None:
    proc = make_proc(tmp_path, port=8050, command="x")
    (proc / "42" / "fd" / "3").unlink()
    assert find_owners([8050], proc=proc) == {8050: None}


@pytest.mark.parametrize(
    ("owner", "verdict", "said"),
    [
        (Owner(42, "python", True), Verdict.OK, "process 42"),
        (Owner(42, "nginx", False), Verdict.FAULT, "another program (nginx, process 42)"),
        (None, Verdict.WARNING, "another user"),
    ],
)
def test_a_taken_port_is_judged_by_who_has_it(
    monkeypatch: pytest.MonkeyPatch, owner: Owner | None, verdict: Verdict, said: str
) -> None:
    monkeypatch.setattr(module, "find_owners", lambda _: {8050: owner})
    finding = only(check_ports(settings(page=PageSettings(port=8050))))
    assert finding.verdict is verdict
    assert said in finding.found
    assert bool(finding.advice) == (verdict is not Verdict.OK)


@pytest.mark.parametrize(("name", "verdict"), [("xray_query_up", Verdict.OK), ("other_total", Verdict.FAULT)])
def test_a_metrics_page_is_known_by_its_series(name: str, verdict: Verdict) -> None:
    registry = CollectorRegistry()
    Gauge(name, "a test's", registry=registry).set(1)
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    try:
        port = server.server_address[1]
        finding = only(check_ports(settings(metrics=MetricsSettings(port=port))))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert finding.verdict is verdict
    assert str(port) in finding.found


def test_what_hangs_on_a_metrics_port_is_a_fault(listening: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module, "ask_part", lambda address, *, has_health: ask_part(address, has_health=False, within_s=0.2)
    )
    finding = only(check_ports(settings(metrics=MetricsSettings(port=listening))))
    assert finding.verdict is Verdict.FAULT
    assert "has not answered" in finding.found


def test_who_listens_where_the_local_broker_should_is_told(listening: int) -> None:
    told = settings(kafka=KafkaSettings(bootstrap_servers=f"127.0.0.1:{listening}"))
    assert "is listened on" in only(check_ports(told)).found
