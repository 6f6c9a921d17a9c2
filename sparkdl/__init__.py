"""Deep learning for image columns, on Spark 4: the model library under the stream, and sparkdl 1.x's API.

Everything is imported on first use, so that the parts which need no Spark (decoding, inference) start without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparkdl.estimators.keras import KerasImageFileEstimator, KerasImageFileModel
    from sparkdl.folders import featurize_folder
    from sparkdl.transformers.featurizer import DeepImageFeaturizer
    from sparkdl.transformers.keras import KerasImageFileTransformer, KerasTransformer
    from sparkdl.transformers.predictor import DeepImagePredictor
    from sparkdl.transformers.udf import registerKerasImageUDF

__all__ = [
    "DeepImageFeaturizer",
    "DeepImagePredictor",
    "KerasImageFileEstimator",
    "KerasImageFileModel",
    "KerasImageFileTransformer",
    "KerasTransformer",
    "featurize_folder",
    "registerKerasImageUDF",
]

_MODULES = {
    "DeepImageFeaturizer": "sparkdl.transformers.featurizer",
    "DeepImagePredictor": "sparkdl.transformers.predictor",
    "KerasImageFileEstimator": "sparkdl.estimators.keras",
    "KerasImageFileModel": "sparkdl.estimators.keras",
    "KerasImageFileTransformer": "sparkdl.transformers.keras",
    "KerasTransformer": "sparkdl.transformers.keras",
    "featurize_folder": "sparkdl.folders",
    "registerKerasImageUDF": "sparkdl.transformers.udf",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        try:
            module = import_module(_MODULES[name])
        except AttributeError as exc:  # Python would take it for a name that is not here
            msg = f"sparkdl.{name} cannot be imported: {exc}"
            raise ImportError(msg) from exc
        return getattr(module, name)
    msg = f"module 'sparkdl' has no attribute {name!r}"
    raise AttributeError(msg)
