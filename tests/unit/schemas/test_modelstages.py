"""A model folder is checked as files: what a stage's metadata names is refused before it could be imported."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import ModelLoadError
from schemas.modelstages import PIPELINES, PYTHON_STAGES, check_stages
from tests.paths import FIRST_RELEASE

FIXTURE = FIRST_RELEASE
_LOGISTIC = "org.apache.spark.ml.classification.LogisticRegressionModel"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the first release's saved model."""
    return Path(shutil.copytree(FIXTURE, tmp_path / "model"))


def metadata_file(stage: Path) -> Path:
    [path] = (stage / "metadata").glob("part-*")
    return path


def stages(model: Path) -> list[Path]:
    return sorted((model / "stages").iterdir())


def change(stage: Path, **values: Any) -> None:
    path = metadata_file(stage)
    path.write_text(json.dumps(json.loads(path.read_text()) | values) + "\n")


def write_stage(stage: Path, class_name: str) -> None:
    """Write a stage as Spark 3 names its files."""
    (stage / "metadata").mkdir(parents=True)
    metadata = {"class": class_name, "uid": stage.name, "paramMap": {"stageUids": []}, "defaultParamMap": {}}
    (stage / "metadata" / "part-00000").write_text(json.dumps(metadata) + "\n")
    (stage / "metadata" / "_SUCCESS").touch()
    (stage / "metadata" / ".part-00000.crc").write_bytes(b"crc")


def refusal(model: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        check_stages(model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_saved_model_passes() -> None:
    check_stages(FIXTURE)


def test_the_lists_hold_what_the_product_writes_and_no_more() -> None:
    assert PYTHON_STAGES == {"sparkdl.DeepImageFeaturizer"}
    assert PIPELINES == {"pyspark.ml.pipeline.PipelineModel", "org.apache.spark.ml.PipelineModel"}
    [top] = {json.loads(metadata_file(FIXTURE).read_text())["class"]}
    found = {json.loads(metadata_file(stage).read_text())["class"] for stage in stages(FIXTURE)}
    assert top in PIPELINES
    assert found == {"sparkdl.DeepImageFeaturizer", _LOGISTIC}


@pytest.mark.parametrize(
    "name",
    [
        _LOGISTIC,
        "org.apache.spark.ml.classification.RandomForestClassificationModel",
        "org.apache.spark.ml.feature.StandardScalerModel",
        "org.apache.spark.ml.regression.IsotonicRegressionModel",
    ],
)
def test_stages_of_sparks_own_pass(model: Path, name: str) -> None:
    change(stages(model)[1], **{"class": name})
    check_stages(model)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "sparkdl.DeepImageFeaturizer.evil",
        "sparkdl.transformers.featurizer.DeepImageFeaturizer",
        "sparkdl.KerasTransformer",
        "evil.sparkdl.DeepImageFeaturizer",
        "pyspark.ml.classification.LogisticRegressionModel",
        "org.apache.spark.ml.connect.classification.LogisticRegressionModel",  # it unpickles a file of the folder
        "pyspark.ml.connect.classification.LogisticRegressionModel",
        "org.apache.spark.ml.torch.distributor.TorchDistributor",
        "org.apache.spark.ml.classification.evil.Module",
        "org.apache.spark.ml.classification.ThreadPool\n",
        "org.apache.spark.sql.SparkSession",
        "org.apache.spark.mlevil.Stage",
        "org_apache.spark.ml.feature.Stage",
        "",
        None,
        7,
        ["sparkdl.DeepImageFeaturizer"],
    ],
)
def test_another_class_is_refused_and_named(model: Path, name: object) -> None:
    stage = stages(model)[0]
    change(stage, **{"class": name})
    said = refusal(model)
    assert f"stages/{stage.name}" in said
    assert repr(name) in said


def test_no_module_is_imported(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = tmp_path / "imported"
    (tmp_path / "sideeffect.py").write_text(f"open({str(imported)!r}, 'w').close()\nclass Stage: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    change(stages(model)[1], **{"class": "sideeffect.Stage"})
    assert "'sideeffect.Stage'" in refusal(model)
    assert not imported.exists()


@pytest.mark.parametrize("name", ["os.system", _LOGISTIC, "sparkdl.DeepImageFeaturizer"])
def test_the_folder_itself_is_a_pipeline(model: Path, name: str) -> None:
    change(model, **{"class": name})
    assert "the pipeline itself" in refusal(model)


def test_nested_pipelines_are_walked(model: Path) -> None:
    inner = stages(model)[1]
    change(inner, **{"class": "org.apache.spark.ml.PipelineModel", "paramMap": {"stageUids": ["A_1", "B_2"]}})
    write_stage(inner / "stages" / "0_A_1", _LOGISTIC)
    check_stages(model)
    write_stage(inner / "stages" / "1_B_2", "os.system")
    assert f"stages/{inner.name}/stages/1_B_2 is of class 'os.system'" in refusal(model)


def test_models_inside_a_stage_are_checked_wherever_they_lie(model: Path) -> None:
    # One-vs-rest keeps its parts beside its data, not under stages/.
    stage = stages(model)[1]
    change(stage, **{"class": "org.apache.spark.ml.classification.OneVsRestModel"})
    write_stage(stage / "model_0", "os.system")
    assert "model_0 is of class 'os.system'" in refusal(model)


def test_no_pipeline_is_named(tmp_path: Path) -> None:
    assert "is no saved pipeline" in refusal(tmp_path)
    assert "is no saved pipeline" in refusal(tmp_path / "missing")


@pytest.mark.parametrize("uid", ["../../elsewhere", "*", "a/b", "..", "/etc", "hdfs:x", "%2e%2e", "", None])
def test_a_name_that_leads_elsewhere_is_refused(model: Path, uid: object) -> None:
    change(model, paramMap={"stageUids": [uid]})
    assert "names a stage" in refusal(model)


@pytest.mark.parametrize("params", [None, [], {}, {"stageUids": "A"}])
def test_a_pipeline_without_a_list_of_stages_is_refused(model: Path, params: object) -> None:
    change(model, paramMap=params)
    assert "stageUids" in refusal(model)


def _second_file(metadata: Path) -> None:
    (metadata / "part-00001").write_text('{"class":"os.system"}\n')


def _compressed_file(metadata: Path) -> None:
    next(metadata.glob("part-*")).rename(metadata / "part-00000.gz")


def _folder_inside(metadata: Path) -> None:
    (metadata / "a=1").mkdir()


def _second_line(metadata: Path) -> None:
    path = next(metadata.glob("part-*"))
    path.write_text('{"class":\n"os.system"}\n')


def _name_twice(metadata: Path) -> None:
    next(metadata.glob("part-*")).write_text(f'{{"class":"os.system","class":"{_LOGISTIC}"}}\n')


def _no_json(metadata: Path) -> None:
    next(metadata.glob("part-*")).write_bytes(b"\xff\xfe not JSON")


def _deep_json(metadata: Path) -> None:
    next(metadata.glob("part-*")).write_text("[" * 200_000)


def _other_json(metadata: Path) -> None:
    next(metadata.glob("part-*")).write_text('["os.system"]')


def _nothing(metadata: Path) -> None:
    next(metadata.glob("part-*")).unlink()


def _plain_file(metadata: Path) -> None:
    shutil.rmtree(metadata)
    metadata.write_text('{"class":"os.system"}\n')


@pytest.mark.parametrize(
    "damage",
    [
        _second_file,
        _compressed_file,
        _folder_inside,
        _second_line,
        _name_twice,
        _no_json,
        _deep_json,
        _other_json,
        _nothing,
        _plain_file,
    ],
)
def test_metadata_that_could_be_read_in_two_ways_is_refused(model: Path, damage: Callable[[Path], None]) -> None:
    stage = stages(model)[1]
    damage(stage / "metadata")
    assert f"stages/{stage.name}" in refusal(model)


def test_a_link_is_refused(model: Path, tmp_path: Path) -> None:
    stage = stages(model)[1]
    elsewhere = tmp_path / "elsewhere"
    stage.rename(elsewhere)
    stage.symlink_to(elsewhere)
    assert f"stages/{stage.name} is a link" in refusal(model)
