"""What is deployed, checked without Docker: structure, names that must agree, and promtool where it is installed."""

import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

import pytest
import typer.main
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from schemas.envelope import MAX_MESSAGE_BYTES
from schemas.errors import Reason
from streaming.alerts.rulesfile import read_rules
from streaming.gateway.refusals import Cause
from streaming.metrics import END_TO_END_BUCKETS_S, serve_metrics
from streaming.reports.report import LeftOut
from streaming.run.jars import KAFKA_JARS
from streaming.settings import (
    AlertsSettings,
    ArchiveSettings,
    GatewaySettings,
    MetricsSettings,
    ReportsSettings,
    ScoreSettings,
    StreamSettings,
    variable_names,
)
from tests.metricspage import (
    render_alerts_page,
    render_archive_page,
    render_gateway_page,
    render_reports_page,
    render_stream_page,
)
from tests.paths import ROOT
from xray.commands.app import app

DEPLOY = ROOT / "deploy"
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
RULES = DEPLOY / "alerts" / "RULES.yml"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
SLOS = DEPLOY / "prometheus" / "slo.yml"
RULE_TESTS = (DEPLOY / "prometheus" / "alerts_test.yml", DEPLOY / "prometheus" / "slo_test.yml")
ALERTMANAGER = DEPLOY / "alertmanager" / "alertmanager.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "xray-stream.json"
RUNBOOK = DEPLOY / "runbook.md"

DISCLAIMER = "Research use only. Not a medical device."
ONE_SHOT = {"init"}
WATCHING = {"prometheus", "alertmanager", "grafana"}
LONGEST_DELIVERY_S = 30.0
"""Of one attempt of any sink of alarms."""
# Prometheus makes these itself.
BUILT_IN = {"up", "ALERTS"}
PROMQL_WORDS = set(
    "by on group_left and or unless offset bool sum max min count abs time vector clamp_min".split()
) | set("rate increase changes deriv min_over_time max_over_time avg_over_time histogram_quantile".split())

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt-get install prometheus)"
)
needs_amtool = pytest.mark.skipif(
    shutil.which("amtool") is None, reason="amtool is not installed (Debian: apt-get install prometheus-alertmanager)"
)


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def compose() -> Any:
    return read_yaml(COMPOSE)


def services() -> list[Any]:
    return [pytest.param(name, service, id=name) for name, service in compose()["services"].items()]


def dockerfile() -> str:
    """The Dockerfile with continued lines joined and comments left out."""
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return "\n".join(lines).replace("\\\n", " ")


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.*)$", dockerfile(), re.MULTILINE)


def exposed_metrics() -> dict[str, set[str]]:
    """Names on the real pages, each with the labels it can have."""
    names: dict[str, set[str]] = {}
    pages = (render_stream_page, render_archive_page, render_gateway_page, render_alerts_page, render_reports_page)
    for page in (render() for render in pages):
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                names.setdefault(sample.name, set()).update(sample.labels)
    return names


def rules() -> list[dict[str, Any]]:
    return [rule for file in (ALERTS, SLOS) for group in read_yaml(file)["groups"] for rule in group["rules"]]


def alert_rules() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def recorded_rules() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "record" in rule]


def dashboard() -> Any:
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))


def panels() -> list[dict[str, Any]]:
    return [inner for panel in dashboard()["panels"] for inner in (panel, *panel.get("panels", []))]


def data_panels() -> list[dict[str, Any]]:
    return [panel for panel in panels() if panel["type"] not in {"row", "text"}]


def dashboard_expressions() -> list[str]:
    targets = [target["expr"] for panel in data_panels() for target in panel["targets"]]
    return targets + [note["expr"] for note in dashboard()["annotations"]["list"] if "expr" in note]


def expressions() -> list[str]:
    return [rule["expr"] for rule in (*alert_rules(), *recorded_rules())] + dashboard_expressions()


def metric_names(expression: str) -> set[str]:
    """Names of the series that an expression reads."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]|\b(by|on|group_left)\s*\([^)]*\)', " ", expression)
    words = re.findall(r"(?<![\w:.])[A-Za-z_:][\w:]*", bare)
    return {word for word in words if word not in PROMQL_WORDS}


def used_labels(expression: str) -> Iterator[tuple[str, str]]:
    """Pairs of metric and label that an expression selects by."""
    for metric, selectors in re.findall(r"([A-Za-z_:][\w:]*)\{([^}]*)\}", expression):
        for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selectors):
            yield metric, label


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors() -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE)}


# --- compose ---------------------------------------------------------------------------------------------------------


def test_compose_has_the_whole_stream() -> None:
    programs = {"init", "stream", "archive", "gateway", "alerts", "reports", "page"}
    assert set(compose()["services"]) == {"kafka", *programs, *WATCHING}


def test_what_names_patients_is_not_made_unless_wanted() -> None:
    found = compose()["services"]
    assert {name for name, service in found.items() if "profiles" in service} == {"reports"}
    assert found["reports"]["profiles"] == ["reports"]
    for name in ("gateway", "reports"):
        assert found[name]["environment"]["XRAY_GATEWAY__CROSSWALK"] is None, "of whoever starts it, or not set"
    assert not [name for name, one in found.items() if "reports" in one.get("depends_on", {})]


def test_whose_images_they_are_is_known_to_gateway_and_reports_alone() -> None:
    """The crosswalk is on a volume of its own, its key on the one that all have: one of the two is of no use."""
    mounts = {name: service.get("volumes", []) for name, service in compose()["services"].items()}
    users = {
        volume: {name for name, own in mounts.items() if any(mount.startswith(f"{volume}:") for mount in own)}
        for volume in ("xray-crosswalk", "xray-reports")
    }
    assert users == {"xray-crosswalk": {"gateway", "reports"}, "xray-reports": {"reports"}}
    assert "xray-crosswalk:/var/lib/xray-crosswalk:ro" in mounts["reports"], "the gateway writes, reports read"
    (made,) = re.findall(r"install --directory --owner xray --group xray --mode 0700 ([^&]*) &&", dockerfile())
    assert set(made.split()) == {f"/var/lib/{volume}" for volume in users}, "a new volume is root's otherwise"
    command = compose()["services"]["reports"]["command"]
    assert command[-2:] == ["--to", "files:/var/lib/xray-reports"]
    key = StreamSettings(home=Path("/var/lib/xray")).crosswalk_key
    assert key.is_relative_to("/var/lib/xray")
    assert not key.is_relative_to("/var/lib/xray-crosswalk")


@pytest.mark.parametrize(("name", "service"), services())
def test_images_are_pinned(name: str, service: dict[str, Any]) -> None:
    repository, _, tag = service["image"].partition(":")
    assert re.search(r"\d+\.\d+", tag), f"{name}: {service['image']} has no version"
    assert "latest" not in tag
    assert "." not in repository.split("/")[0], f"{name}: {repository} names a registry"


@pytest.mark.parametrize(("name", "service"), services())
def test_every_service_has_a_health_check_or_ends(name: str, service: dict[str, Any]) -> None:
    if name in ONE_SHOT:
        assert service["restart"] == "no"
        assert service["healthcheck"] == {"disable": True}
        return
    assert service["restart"] == "unless-stopped"
    if "build" in service:
        assert instructions("HEALTHCHECK"), f"{name}: neither compose nor the image has a health check"
    else:
        assert service["healthcheck"]["test"], name


@pytest.mark.parametrize(("name", "service"), services())
def test_ports_are_open_to_this_machine_only(name: str, service: dict[str, Any]) -> None:
    for port in service.get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", str(port)), f"{name}: {port}"


def test_volumes_are_declared_and_used_and_mounts_exist() -> None:
    sources = [mount.split(":")[0] for s in compose()["services"].values() for mount in s.get("volumes", [])]
    assert {source for source in sources if not source.startswith(".")} == set(compose()["volumes"])
    folders = [ROOT / source for source in sources if source.startswith(".")]
    assert folders
    assert [folder for folder in folders if not folder.is_dir()] == []


def test_services_wait_for_what_they_need() -> None:
    found = compose()["services"]
    kafka = {"kafka": {"condition": "service_healthy"}}
    assert found["stream"]["depends_on"] == kafka | {"init": {"condition": "service_completed_successfully"}}
    assert found["archive"]["depends_on"] == kafka  # it needs no model
    assert found["alerts"]["depends_on"] == kafka | {"alertmanager": {"condition": "service_started"}}
    assert found["reports"]["depends_on"] == kafka | {"gateway": {"condition": "service_healthy"}}
    assert found["grafana"]["depends_on"] == {"prometheus": {"condition": "service_healthy"}}
    for name, service in found.items():
        for other, how in service.get("depends_on", {}).items():
            healthy = how["condition"] == "service_healthy"
            assert not healthy or other not in ONE_SHOT, f"{name} waits for the health of {other}, which ends"


@pytest.mark.parametrize(
    ("name", "least_s"),
    [
        ("stream", 300),
        ("archive", 120),
        ("gateway", 2 * GatewaySettings().answer_s),
        ("alerts", LONGEST_DELIVERY_S),
        ("reports", 2 * ReportsSettings().answer_s),
    ],
)
def test_there_is_time_to_end_in_order(name: str, least_s: float) -> None:
    """A micro-batch has two minutes, and then comes Spark's own end; a write has one; others wait for an answer."""
    minutes = re.fullmatch(r"(\d+)m", compose()["services"][name]["stop_grace_period"])
    assert minutes
    assert int(minutes[1]) * 60 > least_s - 1


def test_tables_have_one_writer() -> None:
    """Stream and archive share the volume: were both to write, the archive would wait for a lock, and end."""
    found = compose()["services"]
    assert found["stream"]["command"] == ["stream", "--no-archive"]
    assert found["archive"]["command"] == ["archive"]
    assert found["archive"]["volumes"] == found["stream"]["volumes"]
    assert found["archive"]["cpu_shares"] < 1024, "Docker's default, which the stream has"


@pytest.mark.parametrize(
    ("name", "port"),
    [
        ("archive", ArchiveSettings().metrics_port),
        ("alerts", AlertsSettings().metrics_port),
        ("reports", ReportsSettings().metrics_port),
    ],
)
@pytest.mark.parametrize(("ok", "healthy"), [(True, True), (False, False), (None, False)])
def test_health_is_what_its_page_says(name: str, port: int, ok: bool | None, healthy: bool) -> None:
    """None: nobody listens."""
    url, stop = serve_metrics(CollectorRegistry(), "127.0.0.1", 0, health=lambda: {"ok": ok})
    if ok is None:
        stop()
    _, interpreter, flag, program = compose()["services"][name]["healthcheck"]["test"]
    address = f"http://127.0.0.1:{port}/health"
    assert address in program
    command = [interpreter.replace("python", sys.executable), flag]
    here = program.replace(address, url.replace("/metrics", "/health"))
    try:
        done = subprocess.run([*command, here], capture_output=True, timeout=60, check=False)
    finally:
        if ok is not None:
            stop()
    assert (done.returncode == 0) is healthy, done.stderr


def test_only_known_settings_are_set() -> None:
    in_compose = {name for service in compose()["services"].values() for name in service.get("environment", {})}
    in_image = set(re.findall(r"^ENV (\w+)=", dockerfile(), re.MULTILINE))
    ours = {name for name in in_compose | in_image if name.startswith("XRAY_")}
    gateway = {f"XRAY_GATEWAY__{name}" for name in ("HOST", "ANYONE", "SPOOL", "CROSSWALK")}
    page = {f"XRAY_PAGE__{name}" for name in ("HOST", "PLAIN_HTTP")}
    page |= {f"XRAY_PAGE__{name}_URL" for name in ("STREAM", "ARCHIVE", "GATEWAY", "ALERTS", "REPORTS")}
    assert ours == {"XRAY_HOME", "XRAY_KAFKA__BOOTSTRAP_SERVERS", "XRAY_METRICS__HOST", *gateway, *page}
    assert ours <= set(variable_names())


def test_broker_is_the_local_one_in_a_container() -> None:
    kafka = compose()["services"]["kafka"]
    assert kafka["image"].partition(":")[2] == KAFKA_JARS.coordinates[0].rpartition(":")[2]
    template = Template((ROOT / "xray" / "server.properties").read_text(encoding="utf-8"))
    text = template.substitute(port=0, controller=0, data="", bytes=MAX_MESSAGE_BYTES)
    wanted = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    # Where it listens differs, and so does how many threads a laptop can spare.
    own = {"listeners", "advertised.listeners", "controller.quorum.voters", "log.dirs"}
    own |= {name for name in wanted if name.endswith("threads") or name.endswith("threads.per.data.dir")}
    for name, value in wanted.items():
        if name not in own:
            assert kafka["environment"].get("KAFKA_" + name.upper().replace(".", "_")) == value, name


def test_addresses_agree() -> None:
    found = compose()["services"]
    listeners = dict(
        entry.split("://") for entry in found["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"].split(",")
    )
    assert f"{listeners['HOST']}:19092" in found["kafka"]["ports"]
    scraped = read_yaml(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]
    exposed = instructions("EXPOSE")[-1].split()
    gateway = GatewaySettings()
    ports = {
        "stream": [MetricsSettings().port],
        "archive": [ArchiveSettings().metrics_port],
        "gateway": [gateway.dicom_port, gateway.http_port, gateway.metrics_port],
        "alerts": [AlertsSettings().metrics_port],
        "reports": [ReportsSettings().metrics_port],
    }
    for name, own in ports.items():
        assert found[name]["environment"]["XRAY_KAFKA__BOOTSTRAP_SERVERS"] == listeners["INTERNAL"]
        assert found[name]["ports"] == [f"127.0.0.1:{port}:{port}" for port in own]
        assert set(map(str, own)) <= set(exposed)
        assert {"job_name": f"xray-{name}", "static_configs": [{"targets": [f"{name}:{own[-1]}"]}]} in scraped
    source = read_yaml(DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml")["datasources"][0]
    assert source["url"] == "http://prometheus:9090"


@pytest.mark.parametrize("promoted", [False, True])
def test_init_trains_only_where_no_model_is(tmp_path: Path, promoted: bool) -> None:
    shell, flags, script = compose()["services"]["init"]["command"]
    (tmp_path / "models").mkdir()
    if promoted:
        (tmp_path / "models" / "champion").write_text("v1\n")
    stub = tmp_path / "xray"
    stub.write_text('#!/bin/sh\necho "$@"\n')
    stub.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "XRAY_HOME": str(tmp_path)}
    command = [shell, flags, script.replace("$$", "$")]
    answer = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    called = [shlex.split(line)[0] for line in answer.stdout.splitlines() if not line.startswith("a model")]
    assert called == ([] if promoted else ["phantom", "train"])


@pytest.mark.parametrize("name", ["stream", "archive", "gateway", "alerts", "reports"])
def test_programs_are_commands_that_there_are(name: str) -> None:
    command: Any = typer.main.get_command(app)
    *_, last = words = list(itertools.takewhile(str.isalpha, compose()["services"][name]["command"]))
    for word in words:
        command = command.commands[word]
    assert command.name == last


# --- alarms ----------------------------------------------------------------------------------------------------------


def test_rules_of_alarms_are_mounted_where_they_are_read() -> None:
    alerts = compose()["services"]["alerts"]
    assert f"./{RULES.parent.relative_to(ROOT)}:{Path(alerts['command'][-1]).parent}:ro" in alerts["volumes"]
    assert Path(alerts["command"][-1]).name == RULES.name


def test_rules_of_alarms_are_right(tmp_path: Path) -> None:
    """As 'xray alerts check' finds them, with sinks and tests; the container's folder is one of this machine here."""
    text = RULES.read_text(encoding="utf-8")
    assert text.count("path: /var/lib/xray/") == 1
    copy = tmp_path / RULES.name
    copy.write_text(text.replace("/var/lib/xray/", f"{tmp_path}/"), encoding="utf-8")
    answer = CliRunner().invoke(app, ["alerts", "check", str(copy), "--json"])
    assert answer.exit_code == 0, answer.output
    found = json.loads(answer.stdout)
    assert found["tests"]
    assert [test for test in found["tests"] if test["faults"]] == []


def test_each_rule_of_alarms_fires_in_a_test_and_some_events_make_none() -> None:
    rules = read_rules(RULES)
    assert {one.rule for test in rules.tests for one in test.expect} == {rule.name for rule in rules.rules}
    assert [test.name for test in rules.tests if not test.expect]


def test_alarms_go_to_the_alertmanager_that_there_is() -> None:
    rules = read_rules(RULES)
    (url,) = rules.sinks["duty"]["urls"]
    _, _, port = compose()["services"]["alertmanager"]["ports"][0].split(":")
    assert url == f"http://alertmanager:{port}"
    assert {sink for rule in rules.rules for sink in rule.routes} == set(rules.sinks)


# --- image -----------------------------------------------------------------------------------------------------------


def test_image_is_pinned_to_the_debian_that_has_java_17() -> None:
    assert {line.split()[0] for line in instructions("FROM")} == {"python:3.11-slim-bookworm"}
    assert "openjdk-17-jre-headless" in dockerfile()


def test_image_holds_every_package_and_the_build_sees_it() -> None:
    include = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = {name.rstrip("*") for name in include}
    copied = {word for line in instructions("COPY") if "--from" not in line for word in line.split()[:-1]}
    assert packages <= copied
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied <= let_in, "what .dockerignore keeps out cannot be copied"


def test_image_has_what_every_service_needs() -> None:
    """The lock of the image is that of all extras whose programs compose runs."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"^\t@\$\(COMPILE\) (.*) -o locks/train.lock$", makefile, re.MULTILINE)
    extras = set(re.findall(r"--extra (\w+)", recipe))
    assert extras == {"train", "gateway", "alerts", "reports", "page"}
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lock = (ROOT / "locks" / "train.lock").read_text(encoding="utf-8")
    locked = set(re.findall(r"^([\w.-]+)==", lock, re.MULTILINE))
    names = {re.match(r"[\w.-]+", line)[0].lower() for extra in extras for line in wanted[extra]}  # type: ignore[index]
    assert names
    assert names <= locked


def test_image_has_the_project_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {s["image"] for s in compose()["services"].values() if "build" in s} == {f"xray-stream:{version}"}


def test_image_runs_as_a_named_user_that_hears_sigterm() -> None:
    user = instructions("USER")[-1]
    assert user != "root"
    # Java and Hadoop want a user that has a name: a bare number in USER would not do.
    assert f"useradd --uid 10001 --create-home {user}" in dockerfile()
    assert json.loads(instructions("ENTRYPOINT")[-1]) == ["tini", "--", "xray"]
    assert json.loads(instructions("CMD")[-1]) == ["stream"]


@pytest.mark.parametrize("archive", [True, False], ids=["archive beside", "no archive"])
def test_health_check_reads_the_real_page(archive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    words = json.loads(instructions("HEALTHCHECK")[-1].partition("CMD ")[2])
    assert f":{MetricsSettings().port}/metrics" in words[2]
    page = render_stream_page(archive=archive)
    well = re.sub(r"^(xray_query_up\{.*) 0\.0$", r"\1 1.0", page, flags=re.MULTILINE)
    queries = re.findall(r'^xray_query_up\{query="(\w+)"\} 1\.0$', well, re.MULTILINE)
    assert set(queries) == ({"score", "archive"} if archive else {"score"})
    assert verdict(words[2], well, monkeypatch) == 0
    for query in queries:
        down = well.replace(f'xray_query_up{{query="{query}"}} 1.0', f'xray_query_up{{query="{query}"}} 0.0')
        assert verdict(words[2], down, monkeypatch) == 1
    assert verdict(words[2], "", monkeypatch) == 1


def verdict(program: str, page: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit code of the image's health check where that page is served."""

    class Answer:
        def read(self) -> bytes:
            return page.encode()

    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: Answer())
    with pytest.raises(SystemExit) as ended:
        exec(program, {})  # noqa: S102  the health check's own program
    return int(ended.value.code or 0)


# --- metrics in dashboard and alerts ---------------------------------------------------------------------------------


def test_metric_names_are_found_in_an_expression() -> None:
    expression = 'sum by (le) (rate(a_bucket{x="y z"}[5m])) / on (m) group_left () (b:c > 1e-3) and time() - d > 0'
    assert metric_names(expression) == {"a_bucket", "b:c", "d"}


@pytest.mark.parametrize("expression", expressions())
@pytest.mark.slow
def test_every_metric_exists(expression: str) -> None:
    known = set(exposed_metrics()) | {rule["record"] for rule in recorded_rules()} | BUILT_IN
    named = metric_names(expression)
    assert named or re.fullmatch(r"vector\([\d.]+\)", expression), "no metric found in it"
    assert named <= known


@pytest.mark.parametrize("expression", expressions())
def test_every_selected_label_exists(expression: str) -> None:
    exposed = exposed_metrics()
    for metric, label in used_labels(expression):
        assert metric in BUILT_IN or label in exposed[metric] | {"job", "instance"}, f"{metric} has no label {label}"


def test_every_metric_is_shown() -> None:
    shown = {name for expression in dashboard_expressions() for name in metric_names(expression)}
    shown = {re.sub(r"_(bucket|count|sum)$", "", name) for name in shown}
    exposed = {re.sub(r"_(bucket|count|sum)$", "", name) for name in exposed_metrics()}
    exposed = {name for name in exposed if not name.endswith("_created")}
    assert exposed <= shown


# --- alerts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", alert_rules(), ids=lambda rule: str(rule["alert"]))
def test_alert_says_what_it_is_and_where_help_is(rule: dict[str, Any]) -> None:
    notes = rule["annotations"]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert notes["summary"]
    assert notes["description"]
    path, _, anchor = notes["runbook_url"].partition("#")
    assert ROOT / path == RUNBOOK
    assert anchor in anchors()


@pytest.mark.parametrize("name", [rule["alert"] for rule in alert_rules()])
@pytest.mark.slow
def test_alert_is_tested_both_ways(name: str) -> None:
    cases = [case for file in RULE_TESTS for test in read_yaml(file)["tests"] for case in test["alert_rule_test"]]
    outcomes = {bool(case["exp_alerts"]) for case in cases if case["alertname"] == name}
    assert outcomes == {True, False}, "wanted one case where it fires and one where it is silent"


def test_alert_of_lag_begins_at_a_full_batch() -> None:
    rule = next(rule for rule in alert_rules() if rule["alert"] == "XrayLagGrowing")
    assert f"> {ScoreSettings().max_images_per_batch}\n" in rule["expr"]


def test_alert_of_the_archives_lag_begins_at_a_full_write() -> None:
    rule = next(rule for rule in alert_rules() if rule["alert"] == "XrayArchiveBehind")
    assert f"> {ArchiveSettings().max_records_per_batch}\n" in rule["expr"]


def test_alert_of_the_spool_begins_at_half_of_it() -> None:
    found = [rule["expr"] for rule in alert_rules() if rule["alert"] == "XrayGatewaySpool"]
    (least,) = (float(expression.partition("> ")[2]) for expression in found if "_bytes" in expression)
    assert least == GatewaySettings().spool_max_bytes / 2


def test_alerts_name_jobs_that_are_scraped() -> None:
    scraped = {job["job_name"] for job in read_yaml(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]}
    named = {job for expression in expressions() for job in re.findall(r'job="([^"]*)"', expression)}
    assert named == {"xray-stream", "xray-archive", "xray-gateway", "xray-alerts", "xray-reports"}
    assert named <= scraped


def run_promtool(*words: str) -> None:
    answer = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


@needs_promtool
def test_promtool_accepts_the_configuration() -> None:
    run_promtool("check", "config", str(DEPLOY / "prometheus" / "prometheus.yml"))


@needs_promtool
@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, marks=mark)
        for file, mark in zip(RULE_TESTS, (pytest.mark.slow, pytest.mark.long), strict=True)
    ],
    ids=lambda file: str(file.stem),
)
def test_promtool_finds_the_alerts_right(file: Path) -> None:
    run_promtool("test", "rules", str(file))


def test_prometheus_reads_every_file_of_rules() -> None:
    named = read_yaml(DEPLOY / "prometheus" / "prometheus.yml")["rule_files"]
    assert named == [ALERTS.name, SLOS.name]
    assert [read_yaml(file)["rule_files"] for file in RULE_TESTS] == [[name] for name in named]


@needs_promtool
def test_promtool_accepts_the_dashboard(tmp_path: Path) -> None:
    plain = [expression.replace("$__rate_interval", "1m") for expression in dashboard_expressions()]
    rules = [{"record": f"panel_{number}", "expr": expression} for number, expression in enumerate(plain)]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    run_promtool("check", "rules", str(path))


# --- objectives ------------------------------------------------------------------------------------------------------

WINDOWS = ("5m", "30m", "1h", "6h", "3d", "30d")


def recorded(name: str) -> dict[str, str]:
    """Expressions of a recorded series, by objective."""
    return {rule["labels"]["slo"]: rule["expr"] for rule in recorded_rules() if rule["record"] == name}


@pytest.mark.parametrize("window", WINDOWS)
def test_every_objective_is_measured_over_every_window_alike(window: str) -> None:
    longest = {
        slo: text.replace("[30d]", f"[{window}]") for slo, text in recorded("xray_slo:error_ratio:rate30d").items()
    }
    assert recorded(f"xray_slo:error_ratio:rate{window}") == longest
    assert set(longest) == set(recorded("xray_slo:budget:ratio"))


def test_every_refusal_is_either_ours_or_the_objects() -> None:
    text = recorded("xray_slo:error_ratio:rate1h")["intake"]
    (ours,), (theirs,) = (re.findall(rf'result{sign}"([^"]*)"', text) for sign in ("=~", "!~"))
    assert sorted([*ours.split("|"), *theirs.split("|")]) == sorted(cause.label for cause in Cause)
    transient = {cause.label for cause in Cause if cause.value.is_transient}
    assert set(ours.split("|")) == transient - {Cause.RATE.label} | {Cause.FAILED.label}


def test_bound_of_the_latency_is_one_of_the_histograms() -> None:
    (bound,) = re.findall(r'le="([^"]*)"', recorded("xray_slo:error_ratio:rate1h")["latency"])
    assert float(bound) in END_TO_END_BUCKETS_S
    assert f'xray_end_to_end_seconds_bucket{{le="{bound}"}}' in render_stream_page()


def test_burn_rates_are_those_of_the_workbook() -> None:
    """A burn rate is the share of the budget that is used, times 30 days, by the long window."""
    found = {}
    for rule in alert_rules():
        if rule["alert"] == "XrayErrorBudget":
            (long, factor), (short, again) = re.findall(r"error_ratio:rate(\w+) > on \(slo\) ([\d.]+) \*", rule["expr"])
            assert rule["labels"]["window"] == long
            assert f"xray_slo:errors:increase{long} < 10\n" in rule["expr"]
            assert factor == again
            found[long, short] = float(factor), rule["labels"]["severity"]
    hours = 30 * 24
    assert found == {
        ("1h", "5m"): (pytest.approx(0.02 * hours / 1), "critical"),
        ("6h", "30m"): (pytest.approx(0.05 * hours / 6), "critical"),
        ("3d", "6h"): (pytest.approx(0.10 * hours / 72), "warning"),
    }


def test_objectives_are_documented_as_they_are() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*?\| ([\d.]+) % \|", text.partition("## SLOs")[2], re.MULTILINE)
    budgets = {slo: float(text.removeprefix("vector(")[:-1]) for slo, text in recorded("xray_slo:budget:ratio").items()}
    assert {slo: pytest.approx(1 - float(percent) / 100) for slo, percent in rows} == budgets


# --- Alertmanager ----------------------------------------------------------------------------------------------------


def run_amtool(*words: str) -> str:
    answer = subprocess.run(["amtool", *words], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout.strip()


@needs_amtool
def test_amtool_accepts_the_configuration() -> None:
    run_amtool("check-config", str(ALERTMANAGER))


@needs_amtool
@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (["alertname=XrayStreamDown", "severity=critical"], "on-call"),
        (["alertname=XrayLagGrowing", "severity=warning"], "office"),
        (["alertname=opacity", "severity=critical", "alarm_id=1"], "readers"),
        (["alertname=opacity", "severity=info", "alarm_id=1"], "readers"),
    ],
    ids=" ".join,
)
def test_alerts_go_to_who_acts_on_them(labels: list[str], receiver: str) -> None:
    assert run_amtool("config", "routes", "test", "--config.file", str(ALERTMANAGER), *labels) == receiver


def routes() -> list[dict[str, Any]]:
    route = read_yaml(ALERTMANAGER)["route"]
    return [route, *route["routes"]]


def test_nothing_is_grouped_by_an_id() -> None:
    grouped = {label for route in routes() for label in route.get("group_by", [])}
    assert grouped == {"alertname", "job", "slo", "severity"}


def matches(matchers: list[str], labels: dict[str, str]) -> bool:
    """Whether labels meet all matchers, as Alertmanager reads them."""
    for matcher in matchers:
        found = re.fullmatch(r'(\w+)(=~|!=|=)"(.*)"', matcher)
        assert found, matcher
        label, sign, value = found.groups()
        is_met = bool(re.fullmatch(value, labels.get(label, ""))) if sign == "=~" else labels.get(label, "") == value
        if is_met == (sign == "!="):
            return False
    return True


def as_fired() -> list[dict[str, str]]:
    """Labels of every alert that can fire, as far as the configuration looks at them."""
    found = [{"alertname": rule["alert"], **rule["labels"]} for rule in alert_rules()]
    kinds = {
        "XrayErrorBudget": ("slo", recorded("xray_slo:budget:ratio")),
        "XrayQueryDown": ("query", ("score", "archive")),
    }
    alerts = []
    for labels in found:
        name, values = kinds.get(labels["alertname"], ("", ("",)))
        alerts += [{**labels, name: value} if name else labels for value in values]
    return alerts


@pytest.mark.parametrize("number", range(len(read_yaml(ALERTMANAGER)["inhibit_rules"])))
@pytest.mark.slow
def test_a_cause_silences_what_is_no_graver(number: int) -> None:
    """Were a warning to silence a page, nobody would be called."""
    rule = read_yaml(ALERTMANAGER)["inhibit_rules"][number]
    sources = [labels for labels in as_fired() if matches(rule["source_matchers"], labels)]
    targets = [labels for labels in as_fired() if matches(rule["target_matchers"], labels)]
    assert sources
    assert targets
    for named in (rule["source_matchers"], rule["target_matchers"]):
        known = {labels["alertname"] for labels in as_fired()}
        texts = [re.split(r"[=~]+", matcher, maxsplit=1) for matcher in named]
        assert {name for label, names in texts if label == "alertname" for name in names.strip('"').split("|")} <= known
    if "equal" not in rule:
        assert not [labels for labels in sources if labels in targets]
        graver = [labels for labels in targets if labels["severity"] == "critical"]
        assert not graver or {labels["severity"] for labels in sources} == {"critical"}


@pytest.mark.parametrize("severity", ["info", "warning", "critical"])
def test_alarms_about_images_silence_nothing_and_are_never_silenced(severity: str) -> None:
    """A rule for images may have any name, that of an alert among them."""
    alarms = [{**labels, "severity": severity, "alarm_id": "1"} for labels in as_fired()]
    for rule in read_yaml(ALERTMANAGER)["inhibit_rules"]:
        for matchers in (rule["source_matchers"], rule["target_matchers"]):
            assert not [labels for labels in alarms if matches(matchers, labels)]


# --- dashboard -------------------------------------------------------------------------------------------------------


def test_panels_have_their_own_ids() -> None:
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("panel", data_panels(), ids=lambda panel: str(panel["title"]))
def test_panel_has_title_unit_and_source(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    source = read_yaml(DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml")["datasources"][0]
    for part in (panel, *panel["targets"]):
        assert part["datasource"] == {"type": "prometheus", "uid": source["uid"]}


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not taken & cells, panel["title"]
        taken |= cells


def test_dashboard_says_research_use_only() -> None:
    texts = [panel["options"]["content"] for panel in panels() if panel["type"] == "text"]
    assert any(DISCLAIMER in text for text in texts)


def test_dashboard_is_provisioned_where_it_is_mounted() -> None:
    provider = read_yaml(DEPLOY / "grafana" / "provisioning" / "dashboards" / "xray.yml")["providers"][0]
    grafana = compose()["services"]["grafana"]
    folder = provider["options"]["path"]
    assert f"./deploy/grafana/dashboards:{folder}:ro" in grafana["volumes"]
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == f"{folder}/{DASHBOARD.name}"


# --- runbook ---------------------------------------------------------------------------------------------------------


def test_runbook_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(#([^)]*)\)", RUNBOOK.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if link not in anchors()] == []


def test_runbook_explains_every_reason() -> None:
    named = set(re.findall(r"`([a-z_0-9]+)`", RUNBOOK.read_text(encoding="utf-8")))
    assert {reason.value for reason in Reason} <= named


def test_runbook_explains_every_reason_why_nobody_knows_whose_an_image_is() -> None:
    """And the alert counts these, not those that are meant."""
    _, _, text = RUNBOOK.read_text(encoding="utf-8").partition("### XrayReportsLeftOut")
    named = set(re.findall(r"`([a-z_]+)`", text.partition("\n### ")[0])) & {reason.value for reason in LeftOut}
    (rule,) = (rule for rule in alert_rules() if rule["alert"] == "XrayReportsLeftOut")
    (meant,) = re.findall(r'reason!~"([^"]*)"', rule["expr"])
    assert named | set(meant.split("|")) == {reason.value for reason in LeftOut}
    assert not named & set(meant.split("|"))


def test_runbook_explains_every_refusal_as_devices_see_it() -> None:
    text = RUNBOOK.read_text(encoding="utf-8")
    _, _, table = text.partition("### XrayGatewayRefusing")
    rows = [line.split("|")[1:4] for line in table.partition("\n### ")[0].splitlines() if line.startswith("| `")]
    told = {}
    for names, answers, _ in rows:
        statuses, codes = (re.findall(pattern, answers) for pattern in (r"\b[0-9A-C]\w{3}\b", r"\b[45]\d\d\b"))
        for name, status in zip(re.findall(r"`(\w+)`", names), statuses, strict=True):
            told[name] = (int(status, 16), int(codes[-1]))
    assert told == {cause.label: (cause.value.status, cause.value.http) for cause in Cause}


def test_runbook_names_real_settings() -> None:
    named = set(re.findall(r"\bXRAY_\w+", RUNBOOK.read_text(encoding="utf-8")))
    assert named <= set(variable_names())


def test_runbook_says_research_use_only() -> None:
    assert DISCLAIMER in RUNBOOK.read_text(encoding="utf-8")
