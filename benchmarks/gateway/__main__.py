"""The gateway at load: beside dcmtk's storescp, which only writes files; by HTTP on one core; where its time goes.

Four measurements, the same objects and the same senders for both receivers, which take turns in each round:

(a) several senders of 10 MB DICOM objects: megabytes a second of the gateway, which answers once Kafka has them
    (acks=all), and of storescp, which writes files; their ratio; the gateway's memory and processor time; beside them a
    bare producer with as many records on their way, which is what Kafka itself takes;
(b) PNG of 50 kB over kept HTTP connections, the gateway on one core: requests a second, and their latency;
(c) one sender of 1 MB objects, one behind the other: latency of each;
(d) (a) once more with a sampler in the gateway: which of its code the processor time goes to.

Run it: ``python -m benchmarks.gateway`` (``--help``). It needs the ``gateway`` extra and dcmtk. Nothing else should run
on the machine.
"""

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.gateway.objects import draw_dataset, draw_png
from benchmarks.gateway.receivers import STORESCP, open_broker, run_gateway, run_storescp, watching
from benchmarks.gateway.senders import Burst, send_dicom, send_http, send_kafka
from streaming.settings import StreamSettings
from xray.console import err, new_table, out, print_json, step
from xray.tabular import print_table

_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_CORE = 0
_SHOWN = 12


@dataclass
class Load:
    """What is sent in (a) and (d)."""

    dataset: bytes
    uid: str
    senders: int
    objects: int


@dataclass
class Found:
    """Figures of all rounds of (a) and (c)."""

    gateway: list[Burst] = field(default_factory=list)
    storescp: list[Burst] = field(default_factory=list)
    kafka: list[Burst] = field(default_factory=list)
    gateway_alone: list[Burst] = field(default_factory=list)
    storescp_alone: list[Burst] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    answer_s: list[float] = field(default_factory=list)
    pss_bytes: int = 0


def main(
    senders: Annotated[int, typer.Option(min=1, help="DICOM senders at once.")] = 8,
    megabytes: Annotated[float, typer.Option(min=0.2, help="Size of their objects.")] = 10,
    objects: Annotated[int, typer.Option(min=1, help="Objects of each sender in a round.")] = 8,
    single: Annotated[int, typer.Option(min=1, help="Objects of 1 MB of the one sender in a round.")] = 50,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each receiver.")] = 3,
    connections: Annotated[int, typer.Option(min=1, help="Kept HTTP connections.")] = 16,
    seconds: Annotated[float, typer.Option(min=0.5, help="Length of the HTTP load.")] = 15,
    json_: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Measure the gateway and storescp side by side."""
    if shutil.which(STORESCP) is None:
        msg = "storescp is not installed (Debian: apt-get install dcmtk)"
        raise SystemExit(msg)
    with step("drawing objects"):
        load = Load(*draw_dataset(round(megabytes * 1e6)), senders, objects)
        small = Load(*draw_dataset(1_000_000), 1, single)
        png = draw_png(50_000)
    with open_broker() as settings, TemporaryDirectory(prefix="xray-storescp-") as folder:
        found = _take_turns(settings, Path(folder), load, small, rounds)
        with step(f"HTTP: {connections} connections, gateway on one core"):
            http, http_cpu_s = _measure_http(settings, png, connections, seconds)
        with step("profile"):
            profile = _measure_profile(settings, load, rounds)
    figures = {
        "cores": os.cpu_count(),
        "senders": senders,
        "object_mb": round(len(load.dataset) / 1e6, 2),
        "objects": senders * objects * rounds,
        **_describe_load(found),
        "single_latency_s": {
            "gateway": _quantiles(found.gateway_alone),
            "storescp": _quantiles(found.storescp_alone),
        },
        "http": {
            "png_kb": round(len(png) / 1e3, 1),
            "connections": connections,
            "requests_s": round(len(http.latencies) / http.seconds, 1),
            "later": http.later,
            "gateway_cpu_share": round(http_cpu_s / http.seconds, 3),
            "latency_s": _quantiles([http]),
        },
        "profile": profile,
    }
    if json_:
        print_json(figures)
    else:
        _show(figures)


def _take_turns(settings: StreamSettings, folder: Path, load: Load, small: Load, rounds: int) -> Found:
    """Measure both receivers once a round, in one order and then in the other; a first round counts nothing."""
    found = Found()
    with run_gateway(settings) as gateway, run_storescp(folder) as storescp:

        def measure_gateway(turn: int) -> None:
            answered, waited = gateway.read_answers("dicom")
            with watching(gateway.pid) as usage:
                burst = _send(gateway.dicom_port, load, turn)
            now, waited_now = gateway.read_answers("dicom")
            alone = _send(gateway.dicom_port, small, 100 + turn)
            if turn:
                found.gateway.append(burst)
                found.gateway_alone.append(alone)
                found.cpu_s.append(usage.cpu_s / len(burst.latencies))
                found.answer_s.append((waited_now - waited) / max(1.0, now - answered))
            found.pss_bytes = max(found.pss_bytes, usage.peak_pss_bytes)

        def measure_storescp(turn: int) -> None:
            burst = _send(storescp.dicom_port, load, turn)
            alone = _send(storescp.dicom_port, small, 100 + turn)
            if turn:
                found.storescp.append(burst)
                found.storescp_alone.append(alone)
            for file in folder.iterdir():
                file.unlink()

        def measure_kafka(turn: int) -> None:
            records = load.senders * load.objects
            burst = send_kafka(settings.kafka, load.dataset, window=load.senders, records=records)
            if turn:
                found.kafka.append(burst)

        for turn in range(rounds + 1):
            with step(f"round {turn} of {rounds}" if turn else "warming up"):
                order = (measure_gateway, measure_kafka, measure_storescp)
                for measure in order if turn % 2 else reversed(order):
                    os.sync()  # nobody waits for the disk on behalf of the one before
                    measure(turn)
            if turn:
                err.print(
                    f"  gateway {found.gateway[-1].mb_s:.0f}, storescp {found.storescp[-1].mb_s:.0f}, "
                    f"Kafka alone {found.kafka[-1].mb_s:.0f} MB/s"
                )
    return found


def _send(port: int, load: Load, turn: int) -> Burst:
    return send_dicom(port, load.dataset, load.uid, senders=load.senders, objects=load.objects, turn=turn)


def _measure_http(settings: StreamSettings, png: bytes, connections: int, seconds: float) -> tuple[Burst, float]:
    others = set(range(os.cpu_count() or 1)) - {_CORE}
    before = os.sched_getaffinity(0)
    with run_gateway(settings, core=_CORE) as gateway:
        assert gateway.http_port is not None  # noqa: S101
        os.sched_setaffinity(0, others or before)
        try:
            send_http(gateway.http_port, png, connections=connections, seconds=min(2.0, seconds), turn=0)
            with watching(gateway.pid) as usage:
                burst = send_http(gateway.http_port, png, connections=connections, seconds=seconds, turn=1)
        finally:
            os.sched_setaffinity(0, before)
    return burst, usage.cpu_s


def _measure_profile(settings: StreamSettings, load: Load, rounds: int) -> dict[str, Any]:
    with TemporaryDirectory(prefix="xray-profile-") as folder:
        file = Path(folder) / "profile.json"
        with run_gateway(settings, profile=file) as gateway:
            bursts = [_send(gateway.dicom_port, load, 200 + turn) for turn in range(rounds)]
        profile: dict[str, Any] = json.loads(file.read_text())
    return {"objects": sum(len(burst.latencies) for burst in bursts), **profile}


def _describe_load(found: Found) -> dict[str, Any]:
    ratios = [ours.mb_s / theirs.mb_s for ours, theirs in zip(found.gateway, found.storescp, strict=True)]
    latencies = [latency for burst in found.gateway for latency in burst.latencies]
    return {
        "gateway_mb_s": round(median(burst.mb_s for burst in found.gateway), 1),
        "storescp_mb_s": round(median(burst.mb_s for burst in found.storescp), 1),
        "kafka_mb_s": round(median(burst.mb_s for burst in found.kafka), 1),
        "ratio": round(median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "later": sum(burst.later for burst in found.gateway),
        "gateway_peak_pss_mb": round(found.pss_bytes / 1e6, 1),
        "gateway_cpu_s_per_object": round(median(found.cpu_s), 4),
        "object_s": round(sum(latencies) / len(latencies), 4),
        "answer_s": round(median(found.answer_s), 4),
    }


def _quantiles(bursts: list[Burst]) -> dict[str, float]:
    found = sorted(latency for burst in bursts for latency in burst.latencies)
    return {name: round(found[min(len(found) - 1, int(share * len(found)))], 4) for name, share in _QUANTILES.items()}


def _show(figures: dict[str, Any]) -> None:
    title = f"{figures['cores']} cores, {figures['senders']} senders of {figures['object_mb']} MB"
    table = new_table("receiver", "#MB/s", "#1 MB alone: p50, s", "#p95", "#p99", title=title)
    for name in ("gateway", "storescp"):
        table.add_row(name, str(figures[f"{name}_mb_s"]), *map(str, figures["single_latency_s"][name].values()))
    print_table(table)
    out.print(
        f"Ratio {figures['ratio']} ({figures['ratios']}); a bare producer: {figures['kafka_mb_s']} MB/s. "
        f"{figures['later']} objects were told to come again. "
        f"Gateway: {figures['gateway_peak_pss_mb']} MB at most, {figures['gateway_cpu_s_per_object']} CPU s an object; "
        f"an object takes {figures['object_s']} s, of which {figures['answer_s']} s behind its last byte.",
        soft_wrap=True,
    )
    http = figures["http"]
    out.print(
        f"HTTP on one core: {http['requests_s']} requests of {http['png_kb']} kB a second over {http['connections']} "
        f"connections, p50 {http['latency_s']['p50']} s, p99 {http['latency_s']['p99']} s.",
        soft_wrap=True,
    )
    profile = figures["profile"]
    shown = new_table("processor time of the gateway", "#s", "#share", title=f"{profile['objects']} objects")
    for name, spent in list(profile["callers"].items())[:_SHOWN]:
        shown.add_row(name, f"{spent:.2f}", f"{spent / max(profile['cpu_s'], 1e-9):.1%}")
    print_table(shown)


if __name__ == "__main__":
    typer.run(main)
