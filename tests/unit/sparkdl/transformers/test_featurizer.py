"""What is asked of a featurizer that nothing can be built from."""

import pytest

from schemas.errors import SettingsError
from sparkdl import DeepImageFeaturizer


def test_without_a_network_it_says_which_there_are() -> None:
    with pytest.raises(SettingsError, match=r"modelName is not set, wanted 'custom' or one of .*InceptionV3"):
        _ = DeepImageFeaturizer(inputCol="image", outputCol="f").network


@pytest.mark.parametrize("options", [{}, {"weights": "random"}])
def test_a_custom_network_without_its_file(options: dict[str, str]) -> None:
    featurizer = DeepImageFeaturizer(inputCol="image", outputCol="f", modelName="custom", **options)
    with pytest.raises(SettingsError, match="wanted the path of the model's Keras file"):
        _ = featurizer.network


def test_a_weights_file_that_is_not_there() -> None:
    pytest.importorskip("keras", reason="reading Keras models needs the train extra")
    featurizer = DeepImageFeaturizer(inputCol="image", outputCol="f", modelName="custom", weights="/nope.keras")
    with pytest.raises(SettingsError, match=r"/nope\.keras is not there"):
        _ = featurizer.network
