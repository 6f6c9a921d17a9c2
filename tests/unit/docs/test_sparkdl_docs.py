"""What the pages under docs/sparkdl/ say, checked against the code: names, parameters, figures, links and examples."""

import ast
import builtins
import importlib
import inspect
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import sparkdl
from schemas import errors
from schemas.envelope import DISCLAIMER
from sparkdl.folders import FolderResult
from sparkdl.image import imageIO
from sparkdl.network.base import BIN_FILE, GRAPH_FILES, KERAS_FILE, MANIFEST_FILE, MANIFEST_FORMAT, XML_FILE
from sparkdl.network.catalog import NETWORKS
from sparkdl.spark.session import _BASE_CONF
from sparkdl.transformers.batches import NULL_INPUT
from sparkdl.transformers.predictor import DeepImagePredictor
from tests.paths import ROOT

DOCS = ROOT / "docs" / "sparkdl"
PAGES = sorted(path.stem for path in DOCS.glob("*.md"))

STAGES = (
    "DeepImageFeaturizer",
    "DeepImagePredictor",
    "KerasImageFileEstimator",
    "KerasImageFileTransformer",
    "KerasTransformer",
)
FUNCTIONS = ("featurize_folder", "registerKerasImageUDF")
ON_ANOTHER_PAGE = {"KerasImageFileModel": "KerasImageFileEstimator"}  # what the estimator gives
NO_PARAM = {"imageLoader"}  # an argument that is code, which no Param can hold

pages = pytest.mark.parametrize("name", PAGES)


def read_page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def section(name: str, heading: str) -> str:
    """The text below a heading, up to the next one of its level."""
    _, _, rest = read_page(name).partition(f"\n## {heading}\n")
    assert rest, f"docs/sparkdl/{name}.md has no section {heading}"
    return re.split(r"\n## ", rest)[0]


def rows_of(text: str, first_column: str) -> list[list[str]]:
    """Rows of the first table whose first column has that name."""
    _, _, rest = text.partition(f"| {first_column} |")
    assert rest, f"no table begins with the column {first_column}"
    lines = rest.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def names_in(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


# --- every page -------------------------------------------------------------------------------------------------------


def test_every_public_name_has_a_page() -> None:
    assert {ON_ANOTHER_PAGE.get(name, name) for name in sparkdl.__all__} | {"imageIO", "index", "migration"} == set(
        PAGES
    )
    for name, page in ON_ANOTHER_PAGE.items():
        assert section(page, name)
    linked = {target for target in re.findall(r"\]\((\w+)\.md\)", read_page("index"))}
    assert linked == set(PAGES) - {"index"}


@pytest.mark.parametrize("name", ["index", "migration"])
def test_page_says_research_use_only(name: str) -> None:
    assert DISCLAIMER in read_page(name)


@pytest.mark.parametrize("path", [*DOCS.glob("*.md"), ROOT / "README.md"], ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8"))
    for link in links:
        assert "://" not in link, f"{link}: pages link to this repository only"
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, link


@pages
def test_tables_are_whole(name: str) -> None:
    for table in re.findall(r"(?:^\|.*\n)+", read_page(name), re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


@pages
def test_examples_are_valid(name: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", read_page(name), re.DOTALL)
    assert bool(blocks) == (name != "migration")
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and find_spec(node.module.partition(".")[0]):
                module = importlib.import_module(node.module)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pages
def test_only_real_errors_are_named(name: str) -> None:
    for error in set(re.findall(r"`(\w+Error)`", read_page(name))):
        assert hasattr(errors, error) or hasattr(builtins, error), error


# --- parameters -------------------------------------------------------------------------------------------------------


def documented(name: str, heading: str = "Parameters") -> dict[str, list[str]]:
    rows = rows_of(section(name, heading), "parameter")
    assert all(row[1] and row[3] for row in rows), "a type or a meaning is missing"
    found = {names_in(row[0])[0]: row[1:] for row in rows}
    assert len(found) == len(rows)
    return found


def shown_default(stage: Any, param: Any) -> str:
    if not stage.hasDefault(param):
        return ""
    default = stage.getOrDefault(param)
    text = json.dumps(default).replace(f'"{stage.uid}__output"', "<uid>__output")
    return f"`{text}`"


@pytest.mark.parametrize("name", STAGES)
def test_every_param_is_listed_with_its_default(name: str) -> None:
    stage = getattr(sparkdl, name)()
    listed = documented(name)
    extra = NO_PARAM & set(inspect.signature(type(stage).__init__).parameters)
    assert set(listed) == {param.name for param in stage.params} | extra
    assert {param.name: listed[param.name][1] for param in stage.params} == {
        param.name: shown_default(stage, param) for param in stage.params
    }


@pytest.mark.parametrize("name", STAGES)
def test_every_argument_is_listed(name: str) -> None:
    arguments = set(inspect.signature(getattr(sparkdl, name).__init__).parameters) - {"self"}
    assert arguments <= set(documented(name))


def test_the_model_has_the_transformers_params_and_those_listed() -> None:
    model = sparkdl.KerasImageFileModel()
    listed = documented("KerasImageFileEstimator", "KerasImageFileModel")
    shared = set(documented("KerasImageFileTransformer")) - NO_PARAM
    assert {param.name for param in model.params} == shared | set(listed)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_of_a_function_is_listed_with_its_default(name: str) -> None:
    empty = inspect.Parameter.empty
    parameters = inspect.signature(getattr(sparkdl, name)).parameters
    wanted = {key: "" if value.default is empty else f"`{value.default}`" for key, value in parameters.items()}
    assert {key: row[1] for key, row in documented(name).items()} == wanted


def test_fit_params_are_those_taken() -> None:
    estimator = importlib.import_module("sparkdl.estimators.keras")
    _, _, rest = section("KerasImageFileEstimator", "Parameters").partition("\n`kerasFitParams` takes")
    assert set(names_in(rest)) == estimator._FIT_PARAMS


def test_model_names_are_those_taken() -> None:
    for name, wanted in (("DeepImageFeaturizer", [*NETWORKS, "custom"]), ("DeepImagePredictor", [*NETWORKS])):
        assert [word for word in names_in(documented(name)["modelName"][2]) if word != "weights"] == sorted(
            wanted, key=lambda word: (word == "custom", word)
        )


def test_decoded_predictions_have_the_fields_listed() -> None:
    decoded = DeepImagePredictor(decodePredictions=True)._output_type()
    row = section("DeepImagePredictor", "Columns")
    for field in decoded.elementType.fields:
        assert f"`{field.name}` {field.dataType.simpleString()}" in row


# --- networks, format, reasons ----------------------------------------------------------------------------------------


def test_networks_table_is_the_code() -> None:
    rows = {names_in(row[0])[0]: row[1:4] for row in rows_of(section("index", "Networks"), "network")}
    assert rows == {
        name: [
            "x".join(map(str, spec.input_size)),
            str(spec.count_features("avg")),
            str(spec.count_features("none")),
        ]
        for name, spec in NETWORKS.items()
    }


def test_preprocessing_is_the_codes() -> None:
    for row in rows_of(section("index", "Networks"), "network"):
        preprocessing = NETWORKS[names_in(row[0])[0]].preprocessing
        assert row[4].startswith("RGB" if preprocessing.rgb else "BGR")
        figures = {float(number) for number in re.findall(r"\d+(?:\.\d+)?", row[4])} - {1.0}
        used = {*preprocessing.mean, *preprocessing.scale} - {0.0, 1.0}
        assert figures == used


def test_migration_counts_the_same_features() -> None:
    for row in rows_of(section("migration", "Features"), "network"):
        spec = NETWORKS[names_in(row[0])[0]]
        assert row[1:] == [
            str(spec.count_features("none")),
            str(spec.count_features("avg")),
            str(spec.count_features("none")),
        ]


def test_saved_format_is_the_codes() -> None:
    text = section("index", "Conversion and the saved format")
    rows = rows_of(text, "file in `network/`")
    files = {name for row in rows for name in names_in(row[0])}
    assert files == {MANIFEST_FILE, XML_FILE, BIN_FILE, KERAS_FILE}
    assert f"The format is {MANIFEST_FORMAT}." in text


def test_engines_are_the_codes() -> None:
    rows = rows_of(section("index", "Engines and precisions"), "`engine`")
    assert {names_in(row[0])[0] for row in rows} == set(GRAPH_FILES)


def test_memory_properties_are_those_a_session_is_started_with() -> None:
    for row in rows_of(section("index", "Memory"), "property"):
        assert _BASE_CONF[names_in(row[0])[0]] == names_in(row[1])[0]


def test_reason_codes_exist() -> None:
    codes = {names_in(row[0])[0] for row in rows_of(section("index", "Rows without a result"), "code")}
    assert codes <= {NULL_INPUT, *(reason.value for reason in errors.Reason)}


def test_folder_results_fields_are_listed() -> None:
    rows = rows_of(section("featurize_folder", "Result"), "field")
    assert [names_in(row[0])[0] for row in rows] == list(FolderResult.__dataclass_fields__)


# --- imageIO ----------------------------------------------------------------------------------------------------------


def test_image_types_are_the_codes() -> None:
    rows = rows_of(section("imageIO", "Types"), "name")
    assert [[names_in(row[0])[0], *row[1:]] for row in rows] == [
        [kind.name, str(kind.ord), str(kind.nChannels), kind.dtype] for kind in imageIO.supportedOcvTypes
    ]


def test_every_function_is_listed_with_its_arguments() -> None:
    listed = {}
    for row in rows_of(section("imageIO", "Functions"), "function"):
        name, _, arguments = names_in(row[0])[0].rstrip(")").partition("(")
        listed[name] = [argument.partition("=")[0] for argument in arguments.split(", ")]
    public = {
        name: value
        for name, value in vars(imageIO).items()
        if inspect.isfunction(value) and value.__module__ == imageIO.__name__ and not name.startswith("_")
    }
    assert listed == {
        name: [
            parameter.name
            for parameter in inspect.signature(value).parameters.values()
            if parameter.kind is not parameter.KEYWORD_ONLY
        ]
        for name, value in public.items()
    }
    reading = {names_in(row[0])[0] for row in rows_of(section("imageIO", "readImagesWithCustomFn"), "parameter")}
    assert reading == set(inspect.signature(imageIO.readImagesWithCustomFn).parameters)
