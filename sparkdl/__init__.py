"""Deep learning for image columns, on Spark 4: the model library under the stream.

`DeepImageFeaturizer` is imported on first use, so that the parts which need no Spark (decoding, inference) start
without it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparkdl.featurizer import DeepImageFeaturizer

__all__ = ["DeepImageFeaturizer"]


def __getattr__(name: str) -> Any:
    if name == "DeepImageFeaturizer":
        from sparkdl.featurizer import DeepImageFeaturizer  # noqa: PLC0415

        return DeepImageFeaturizer
    msg = f"module 'sparkdl' has no attribute {name!r}"
    raise AttributeError(msg)
