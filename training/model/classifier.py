"""The classifier on top of the features: Spark's logistic regression, and its numbers for use without Spark.

A `Head` gives probabilities, takes a calibrator in, exactly, and is saved as the model of Spark that is served. How one
is fitted: `training.model.regression`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pyspark.ml.classification import LogisticRegressionModel

from schemas.modelcard import BINARY
from sparkdl.transformers.featurizer import DeepImageFeaturizer
from sparkdl.transformers.pipelinefiles import Regression, read_regression, write_pipeline
from training.arrays import Features, Floats, Ints
from training.model.probability import Calibrator

_BLOCK_ROWS = 8192


@dataclass(frozen=True)
class ClassifierSettings:
    """How the classifier is fitted; the defaults are the paper's.

    Parameters
    ----------
    reg_param, elastic_net_param, max_iter
        See Spark's ``LogisticRegression``.
    class_weights : bool
        Whether each class counts as much as any other, however many images it has.
    """

    reg_param: float = 0.05
    elastic_net_param: float = 0.3
    max_iter: int = 10
    class_weights: bool = False

    def describe(self) -> str:
        """Say it in words."""
        weights = ", classes weighted alike" if self.class_weights else ""
        return (
            f"LogisticRegression(maxIter={self.max_iter}, regParam={self.reg_param:g}, "
            f"elasticNetParam={self.elastic_net_param:g}){weights}"
        )

    def to_params(self, threshold: float | None) -> dict[str, Any]:
        """Give the parameters of Spark's model; a threshold is of two classes."""
        params: dict[str, Any] = {
            "maxIter": self.max_iter,
            "regParam": self.reg_param,
            "elasticNetParam": self.elastic_net_param,
        }
        if self.class_weights:
            params["weightCol"] = "weight"
        return params if threshold is None else {**params, "threshold": threshold}


@dataclass(frozen=True, eq=False)
class Head:
    """A fitted classifier's numbers.

    Parameters
    ----------
    coefficients : numpy.ndarray
        float64, shape (1, n_features) of two classes, else (n_classes, n_features).
    intercepts : numpy.ndarray
        float64, shape (1,) or (n_classes,).
    """

    coefficients: Floats
    intercepts: Floats

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return max(BINARY, len(self.intercepts))

    @classmethod
    def of(cls, model: LogisticRegressionModel) -> "Head":
        """Take the numbers of Spark's model."""
        return cls(model.coefficientMatrix.toArray(), model.interceptVector.toArray())

    @classmethod
    def read(cls, folder: Path) -> "Head":
        """Read the numbers of a saved model's classifier from its files, without Spark.

        Parameters
        ----------
        folder : Path
            A saved ``PipelineModel`` of a featurizer and a logistic regression.

        Raises
        ------
        ModelLoadError
            It is another kind of pipeline, or its files cannot be read.
        """
        found = read_regression(folder)
        return cls(found.coefficients, found.intercepts)

    def predict(self, features: Features) -> Floats:
        """Give probabilities, as Spark's model would.

        Parameters
        ----------
        features : numpy.ndarray
            float32, shape (n, n_features).

        Returns
        -------
        numpy.ndarray
            float64, shape (n, n_classes).
        """
        margins = features.astype(np.float64) @ self.coefficients.T + self.intercepts
        if len(self.intercepts) == 1:
            margins = np.concatenate([np.zeros_like(margins), margins], axis=1)
        powers = np.exp(margins - margins.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    def calibrate(self, calibrator: Calibrator) -> "Head":
        """Fold a calibrator in: it is an affine change of the margins, so nothing is approximated."""
        return Head(self.coefficients * calibrator.slope, self.intercepts * calibrator.slope + calibrator.intercept)

    def reorder(self, order: Sequence[int]) -> "Head":
        """Give the same classifier with its classes in another order, each named by its place in this one."""
        if len(self.intercepts) > 1:
            return Head(self.coefficients[list(order)], self.intercepts[list(order)])
        # Of two classes there are the numbers of the second alone; those of the first are their negatives.
        return self if order[0] == 0 else Head(-self.coefficients, -self.intercepts)

    def save(
        self, folder: Path, featurizer: DeepImageFeaturizer, settings: ClassifierSettings, threshold: float | None
    ) -> None:
        """Save as a ``PipelineModel`` of a featurizer and this classifier.

        Parameters
        ----------
        folder : Path
            To be made.
        featurizer : DeepImageFeaturizer
            What its features are from.
        settings : ClassifierSettings
            How it was fitted.
        threshold : float, optional
            Of two classes: from which probability on ``prediction`` is 1.
        """
        params = settings.to_params(threshold)
        write_pipeline(folder, featurizer, Regression(self.coefficients, self.intercepts, params))


def predict_rows(head: Head, features: Features, rows: Ints) -> Floats:
    """Give the probabilities of some rows, a few thousand at a time.

    Parameters
    ----------
    head : Head
        The classifier.
    features : numpy.ndarray
        float32, shape (n, n_features).
    rows : numpy.ndarray
        int64, shape (n_rows,).

    Returns
    -------
    numpy.ndarray
        float64, shape (n_rows, n_classes).
    """
    found = np.zeros((rows.size, head.n_classes))
    for start in range(0, rows.size, _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        found[part] = head.predict(features[rows[part]])
    return found


PAPER = ClassifierSettings()

TUNED = tuple(replace(PAPER, reg_param=value, max_iter=50) for value in (0.01, 0.03, 0.1, 0.3))
"""What tuning tries beside the paper's; with iterations enough for the regularisation to be what decides."""
