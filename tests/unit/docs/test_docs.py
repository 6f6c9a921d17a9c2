"""What the pages under docs/ say, checked against the code: names, tables, commands, links and examples."""

import ast
import hashlib
import importlib
import json
import re
import sys
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pyarrow as pa
import pytest
import typer
import yaml
from deltalake import write_deltalake
from kafka import KafkaProducer
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from schemas.documents import load_schema, load_tables
from schemas.envelope import DISCLAIMER, derive_event_id, derive_image_event_id
from schemas.errors import Reason
from schemas.modelcard import ModelCard, Remark
from sparkdl.network.catalog import NETWORKS
from streaming.gateway.dicom.contexts import IMPLEMENTATION_VERSION
from streaming.kafka.topics import receipt_topics, wanted_topics
from streaming.settings import ArchiveSettings, KafkaSettings, StreamSettings, variable_names
from tests.metricspage import (
    render_alerts_page,
    render_archive_page,
    render_gateway_page,
    render_reports_page,
    render_stream_page,
)
from tests.paths import ROOT
from tests.testimages import png
from training.data import positive
from training.model.classifier import PAPER
from xray.commands.app import app

DOCS = ROOT / "docs"
DEPLOY = ROOT / "deploy"
PAGES = (
    "devices",
    "publishing",
    "results",
    "alert-sinks",
    "reports",
    "events",
    "operating",
    "security",
    "training",
    "models",
    "retraining",
    "page",
    "metrics",
    "performance",
    "architecture",
)
COMMANDS: Any = typer.main.get_command(app)

pages = pytest.mark.parametrize("name", PAGES)


def read_page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def section(name: str, heading: str) -> str:
    """The text below a heading, up to the next one of its level."""
    _, _, rest = read_page(name).partition(f"\n## {heading}\n")
    assert rest, f"docs/{name}.md has no section {heading}"
    return re.split(r"\n## ", rest)[0]


def table_rows(text: str) -> list[list[str]]:
    """Cells of every table row, the lines of dashes left out."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not re.fullmatch(r"[|\-\s]+", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def rows_of(text: str, first_column: str) -> list[list[str]]:
    """Rows of the one table whose first column has that name."""
    _, _, rest = text.partition(f"| {first_column} |")
    assert rest, f"no table begins with the column {first_column}"
    return table_rows(rest.partition("\n\n")[0].partition("\n")[2])


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def code_blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", read_page(name), re.DOTALL)


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


# --- every page -------------------------------------------------------------------------------------------------------


@pages
def test_page_says_research_use_only(name: str) -> None:
    assert DISCLAIMER in read_page(name)


@pages
def test_relative_links_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\(([^)]+)\)", read_page(name))
    assert links
    for link in links:
        assert "://" not in link, f"{link}: pages link to this repository only"
        path, _, anchor = link.partition("#")
        target = (DOCS / path).resolve() if path else DOCS / f"{name}.md"
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, link


def command_calls(text: str) -> list[list[str]]:
    """Words after ``xray`` wherever a command is named in code."""
    blocks = re.findall(r"```(?:\w*)\n(.*?)```", text, re.DOTALL)
    code = [line.partition("  #")[0] for block in blocks for line in block.splitlines()]
    code += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [match[1].split() for line in code if (match := re.search(r"(?:^|stream )xray ([a-z].*)$", line.strip()))]


@pages
def test_named_commands_and_options_exist(name: str) -> None:
    calls = command_calls(read_page(name))
    assert calls
    for words in calls:
        command = COMMANDS.commands.get(words[0])
        assert command is not None, f"xray {words[0]}"
        if hasattr(command, "commands"):
            assert words[1] in command.commands, f"xray {words[0]} {words[1]}"
            command = command.commands[words[1]]
        known = {option for param in command.params for option in (*param.opts, *param.secondary_opts)} | {"--help"}
        assert {word for word in words if word.startswith("--")} <= known, " ".join(words)


def test_operating_names_every_command() -> None:
    groups = {name: getattr(command, "commands", {}) for name, command in COMMANDS.commands.items()}
    wanted = {(name, inner) for name, inners in groups.items() for inner in inners}
    wanted |= {(name, "") for name, inners in groups.items() if not inners}
    calls = command_calls(section("operating", "Commands"))
    named = {(words[0], words[1] if groups[words[0]] else "") for words in calls}
    assert named == wanted


@pages
def test_only_known_variables_are_named(name: str) -> None:
    named = set(re.findall(r"\bXRAY_\w+", read_page(name))) - {IMPLEMENTATION_VERSION}
    assert named <= set(variable_names())


@pages
def test_examples_are_valid(name: str) -> None:
    for block in code_blocks(name, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
    for block in code_blocks(name, "json"):
        json.loads(block)


# --- metrics ----------------------------------------------------------------------------------------------------------


SERIES = {
    "Series of the stream": render_stream_page,
    "Series of the archive": render_archive_page,
    "Series of the gateway": render_gateway_page,
    "Series of the alarms": render_alerts_page,
    "Series of the reports": render_reports_page,
}


def exposed_series(page: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Type and labels of each family on a real page, by the name that the page shows."""
    names = re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE)
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(page):
        shown = family.name + ("_total" if family.type == "counter" else "")
        labels[shown] = {label for sample in family.samples for label in sample.labels} - {"le"}
    return {name: (kind, frozenset(labels[name])) for name, kind in names}


@pytest.mark.parametrize("heading", SERIES)
def test_metrics_page_lists_every_series_with_its_type_and_labels(heading: str) -> None:
    rows = rows_of(section("metrics", heading), "name")
    documented = {names_in(row[0])[0]: (row[1], frozenset(names_in(row[2]))) for row in rows}
    assert len(documented) == len(rows)
    assert documented == exposed_series(SERIES[heading]())


def test_metrics_examples_read_real_series() -> None:
    exposed = {name: kind for render in SERIES.values() for name, (kind, _) in exposed_series(render()).items()}
    known = {name for name, kind in exposed.items() if kind != "histogram"}
    histograms = set(exposed) - known
    known |= {f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count")}
    recorded = yaml.safe_load((DEPLOY / "prometheus" / "slo.yml").read_text(encoding="utf-8"))["groups"]
    known |= {rule["record"] for group in recorded for rule in group["rules"] if "record" in rule}
    used = {name for block in code_blocks("metrics", "promql") for name in re.findall(r"\bxray_[\w:]+", block)}
    assert used
    assert used <= known


# --- operating --------------------------------------------------------------------------------------------------------


def setting_defaults() -> dict[str, Any]:
    """Default by variable; None where there is none."""
    defaults: dict[str, Any] = {}
    for name, info in StreamSettings.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            for inner, inner_info in info.annotation.model_fields.items():
                defaults[f"XRAY_{name}__{inner}".upper()] = inner_info.default
        elif info.default_factory is None:
            defaults[f"XRAY_{name}".upper()] = info.default
    return defaults


def test_operating_lists_every_variable_with_its_default_and_meaning() -> None:
    rows = {names_in(row[0])[0]: row[1:] for row in rows_of(section("operating", "Settings"), "variable")}
    assert {name: row[1] for name, row in rows.items()} == {
        name: meaning.replace("``", "`") for name, meaning in variable_names().items()
    }
    for name, default in setting_defaults().items():
        assert rows[name][0] == ("" if default is None else f"`{default}`"), name


def test_results_give_the_topics_retention() -> None:
    kafka = KafkaSettings()
    topics = wanted_topics(kafka) | receipt_topics(kafka)
    days = {name: int(config["retention.ms"]) / 86_400_000 for name, config in topics.items()}
    rows = rows_of(section("results", "Topics"), "topic")
    assert {names_in(row[0])[0]: float(row[2].split()[0]) for row in rows} == {
        name: days[name]
        for name in (kafka.predictions_topic, kafka.deadletters_topic, kafka.features_topic, kafka.receipts_topic)
    }


# --- the promise about the tables -------------------------------------------------------------------------------------

_SPAN = ArchiveSettings().span_days
PROMISE = (
    f"one row for each event id within {_SPAN} days of `received_at`, either side (`XRAY_ARCHIVE__SPAN_DAYS`), "
    "whatever is replayed or killed, with a lost, old or restored table too"
)
PROMISED_IN = {
    "README.md": 1,
    "docs/architecture.md": 1,
    "docs/operating.md": 2,
    "docs/results.md": 1,
    "deploy/runbook.md": 1,
}
SECOND_ROW = re.compile(rf"image (?:that )?is sent again after more than {_SPAN} days")
"""What follows from it, wherever the promise is made to a reader of the tables."""


def read_plainly(path: str) -> str:
    """A document without line ends and bold letters."""
    return " ".join((ROOT / path).read_text(encoding="utf-8").replace("**", "").split())


@pytest.mark.parametrize("path", PROMISED_IN)
def test_the_tables_are_promised_the_same_everywhere(path: str) -> None:
    assert read_plainly(path).lower().count(PROMISE.lower()) == PROMISED_IN[path]


@pytest.mark.parametrize("path", ["README.md", "docs/operating.md", "docs/results.md", "docs/architecture.md"])
def test_what_is_not_promised_of_the_tables_is_said(path: str) -> None:
    assert SECOND_ROW.search(read_plainly(path))


_READ_BY_USERS = [ROOT / "README.md", DEPLOY / "runbook.md", *(DOCS / f"{name}.md" for name in PAGES)]


@pytest.mark.parametrize("page", _READ_BY_USERS, ids=lambda page: str(page.name))
def test_no_other_promise_is_made_of_the_tables(page: Path) -> None:
    """What was promised before: of an id at any time, of a second query."""
    text = read_plainly(str(page.relative_to(ROOT))).lower()
    former = (
        "exactly one row",
        "one row per event",
        "one row per id",
        "one row for each id",
        "merges these",
        "both queries",
    )
    assert [words for words in former if words in text] == []


# --- publishing -------------------------------------------------------------------------------------------------------


def test_publishing_explains_every_reason() -> None:
    rows = rows_of(section("publishing", "What cannot be read"), "reason")
    assert [names_in(row[0]) for row in rows] == [[reason.value] for reason in Reason]
    assert all(all(row) for row in rows), "a cell is empty"


def test_publishing_has_the_real_limits() -> None:
    text = section("publishing", "Sizes")
    settings = StreamSettings.model_fields
    for value in (
        KafkaSettings().max_message_bytes,
        settings["score"].default.max_payload_bytes,
        settings["score"].default.max_pixels,
    ):
        assert f"{value:,}" in text


def test_results_explain_every_remark() -> None:
    rows = rows_of(section("results", "Remarks"), "remark")
    assert [names_in(row[0]) for row in rows] == [[remark.value] for remark in Remark]
    assert all(all(row) for row in rows), "a cell is empty"


@dataclass
class FakeBroker:
    """Stands in for the client libraries, and keeps what an example published."""

    options: dict[str, Any] = field(default_factory=dict)
    sent: list[tuple[str, bytes, str | bytes, dict[str, str]]] = field(default_factory=list)

    def confluent(self, options: dict[str, Any]) -> Any:
        broker, reports = self, []
        broker.options = options

        class Message:
            def key(self) -> bytes:
                return b"key"

        class Producer:
            def produce(self, topic: str, value: bytes, *, key: Any, headers: dict[str, str], on_delivery: Any) -> None:
                broker.sent.append((topic, value, key, headers))
                reports.append(on_delivery)

            def poll(self, timeout: float) -> None:
                assert timeout == 0

            def flush(self) -> None:
                for report in reports:
                    report(None, Message())

        return Producer()

    def kafka_python(self, **options: Any) -> Any:
        broker = self
        broker.options = options

        class Future:
            def get(self, timeout: float) -> None:
                assert timeout > 0

        class Producer:
            def send(self, topic: str, value: bytes, *, key: bytes, headers: list[tuple[str, bytes]]) -> Future:
                broker.sent.append((topic, value, key, {name: content.decode() for name, content in headers}))
                return Future()

            def close(self) -> None:
                pass

        return Producer()


def fake_module(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    module = ModuleType(name)
    module.__dict__.update(members)
    monkeypatch.setitem(sys.modules, name, module)


def run_example(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, "example", "exec"), names)  # noqa: S102  the example's own code
    return names


@pytest.mark.parametrize("place", [0, 1], ids=["confluent-kafka", "kafka-python"])
def test_producer_examples_publish_what_the_contract_wants(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = FakeBroker()
    fake_module(monkeypatch, "confluent_kafka", Producer=broker.confluent)
    fake_module(monkeypatch, "kafka", KafkaProducer=broker.kafka_python)
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for number, path in enumerate(files):
        path.write_bytes(png() + bytes(number))
    monkeypatch.setattr(sys, "argv", ["example", *map(str, files)])

    run_example(code_blocks("publishing", "python")[place])

    kafka = KafkaSettings()
    assert [topic for topic, *_ in broker.sent] == [kafka.images_topic] * 2
    assert [value for _, value, *_ in broker.sent] == [path.read_bytes() for path in files]
    for *_, headers in broker.sent:
        jsonschema.validate(headers, load_schema("image_headers"))
    assert len({headers["ce_id"] for *_, headers in broker.sent}) == 2
    limits = [broker.options.get(name) for name in ("message.max.bytes", "max_request_size")]
    assert kafka.max_message_bytes in limits
    assert kafka.bootstrap_servers in broker.options.values()
    assert broker.options.get("enable.idempotence") or broker.options.get("enable_idempotence")


def test_producer_example_options_are_known_to_the_client() -> None:
    code = code_blocks("publishing", "python")[1]
    used = re.findall(r"^    (\w+)=", code, re.MULTILINE)
    assert used
    assert set(used) <= set(KafkaProducer.DEFAULT_CONFIG)


# --- results ----------------------------------------------------------------------------------------------------------


def example_prediction() -> Any:
    return json.loads(code_blocks("results", "json")[0])


def leaves(schema: dict[str, Any], prefix: str = "") -> set[str]:
    """Dotted names of a schema's fields; objects with free names count as one."""
    names: set[str] = set()
    for name, inner in schema["properties"].items():
        names |= leaves(inner, f"{prefix}{name}.") if "properties" in inner else {prefix + name}
    return names


def test_example_prediction_keeps_the_contract() -> None:
    event = example_prediction()
    jsonschema.validate(event, load_schema("prediction"))
    parts = (event["image"]["source"], event["image"]["id"], event["image"]["sha256"], event["model"]["sha256"])
    assert event["event_id"] == derive_event_id(*parts)
    assert sum(event["probabilities"].values()) == 1
    assert event["label"] == event["positive_label"]


def test_example_prediction_shows_and_explains_every_field() -> None:
    schema = load_schema("prediction")
    event = example_prediction()
    for name in leaves(schema) - {"remarks"}:  # which hardly any message has
        value = event
        for part in name.split("."):
            assert part in value, name
            value = value[part]
    rows = rows_of(section("results", "A prediction"), "field")
    explained = {name for row in rows for name in names_in(row[0])}
    # In a cell with several names the later ones leave out what they share with the first.
    explained |= {f"image.{name}" for name in explained}
    assert leaves(schema) - {"disclaimer"} <= explained


def test_example_receipt_is_of_the_example_prediction_and_every_field_is_explained() -> None:
    receipt, event = json.loads(code_blocks("results", "json")[1]), example_prediction()
    schema = load_schema("receipt")
    jsonschema.validate(receipt, schema)
    assert receipt["image"] == {name: event["image"][name] for name in ("source", "id", "sha256")}
    assert receipt["event_id"] == derive_image_event_id(*receipt["image"].values())
    assert (receipt["outcome_event_id"], receipt["model"]) == (event["event_id"], event["model"]["version"])
    explained = {name for row in rows_of(section("results", "Receipts"), "field") for name in names_in(row[0])}
    assert explained == set(schema["properties"]) - {"event_id"}


def test_results_list_the_real_headers() -> None:
    rows = rows_of(section("results", "A prediction"), "header")
    assert {name for row in rows for name in names_in(row[0])} == set(load_schema("outcome_headers")["properties"])
    rows = rows_of(section("results", "Dead letters"), "header")
    named = {name for row in rows for name in names_in(row[0])}
    assert named == set(load_schema("dead_letter_headers")["properties"])


def test_results_list_every_table_with_key_and_partition() -> None:
    rows = rows_of(section("results", "Tables"), "table")
    assert {names_in(row[0])[0]: (names_in(row[1])[0], names_in(row[2])[0]) for row in rows} == {
        name: ("event_id", table.partition_by[0]) for name, table in load_tables().items()
    }


def test_consumer_example_alerts_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    committed: list[int] = []

    @dataclass
    class Record:
        value: bytes

    class Consumer(list[Record]):
        def __init__(self, topic: str, **options: Any) -> None:
            assert topic == KafkaSettings().predictions_topic
            assert options["enable_auto_commit"] is False
            normal = {**example_prediction(), "event_id": "0" * 32, "label": "normal"}
            flagged = {**example_prediction(), "event_id": "1" * 32, "flags": ["of_a_later_version"]}
            events = (example_prediction(), example_prediction(), normal, flagged)
            super().__init__(Record(json.dumps(event).encode()) for event in events)

        def commit(self) -> None:
            committed.append(1)

    fake_module(monkeypatch, "kafka", KafkaConsumer=Consumer)
    run_example(code_blocks("results", "python")[0])
    assert capsys.readouterr().out == "ALERT 1f0c2a7e 0.9375\nUNDECIDED 1f0c2a7e ['of_a_later_version']\n"
    assert len(committed) == 4


def test_table_example_reads_a_real_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [hashlib.sha256(bytes([i])).hexdigest()[:32] for i in range(5)]
    rows = pa.table(
        {
            "event_id": ids,
            "label": ["normal", "opacities", "opacities", "normal", "opacities"],
            "score": [0.25, 0.5, 1.0, 0.5, 0.75],
            "flags": [[], [], None, ["uncertain"], ["of_a_later_version"]],
            "received_at": [datetime(2026, 1, 31, tzinfo=UTC)] * 5,
            "date": [date(2026, 1, 31)] * 5,
        }
    )
    assert set(rows.column_names) <= set(load_tables()["predictions"].columns)
    write_deltalake(str(tmp_path / "tables" / "predictions"), rows, partition_by=["date"])
    monkeypatch.chdir(tmp_path)
    found = run_example(code_blocks("results", "python")[1])["rows"].fetchall()
    day = date(2026, 1, 31)
    assert found == [(day, "normal", 1, 0.25), (day, "opacities", 2, 0.75), (day, "undecided", 2, 0.625)]


# --- training ---------------------------------------------------------------------------------------------------------


def test_training_lists_every_network() -> None:
    documented: dict[str, tuple[tuple[int, int], int]] = {}
    for row in rows_of(section("training", "Networks"), "`--network`"):
        height, _, width = row[1].partition("x")
        documented |= {name: ((int(height), int(width)), int(row[2])) for name in names_in(row[0])}
    assert documented == {name: (spec.input_size, spec.n_features) for name, spec in NETWORKS.items()}


def test_training_lists_every_negative_name() -> None:
    rows = rows_of(section("training", "Data"), "a negative name")
    named = [set(names_in(row[0].partition(": ")[2])) for row in rows[:4]]
    assert named == [
        set(positive.NEGATIVE_WORDS),
        set(positive.NEGATIVE_PHRASES),
        set(positive.NEGATIVE_STARTS),
        set(positive.NEGATIVE_ENDS),
    ]
    assert set(names_in(rows[4][0])) - {"non"} <= positive.FINDINGS
    for row in rows:
        assert all(positive.is_negative(name.strip()) for name in row[1].split(",")), row
    [alike] = re.findall(r"begins or ends alike is\s+not negative: ([^.]+)\.", section("training", "Data"))
    assert len(names_in(alike)) == 5
    assert not any(map(positive.is_negative, names_in(alike)))


def test_training_names_every_field_of_the_card() -> None:
    text = section("training", "The saved model")
    card = text[text.index("The card:") : text.index("The stream checks")]
    assert set(names_in(card)) == set(ModelCard.__dataclass_fields__)


def test_training_names_the_classifiers_parameters() -> None:
    assert PAPER.describe() in read_page("training")
