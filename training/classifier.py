"""The classifier on top of the features: Spark's logistic regression, and its numbers for use without Spark.

Every fit, also those of cross-validation, is Spark's: what is measured is fitted as what is served. Everything after a
fit is numpy: a `Head` gives probabilities, and takes a calibrator in, exactly.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.ml.classification import LogisticRegression, LogisticRegressionModel
from pyspark.ml.common import _py2java
from pyspark.ml.functions import array_to_vector
from pyspark.ml.linalg import DenseMatrix, DenseVector
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import col

from training.calibration import Calibrator
from training.features import Features

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

N_FOLDS = 5
_BINARY = 2
_FITS_AT_ONCE = 2  # a fit is many small jobs, between which the cores would wait


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
        return max(_BINARY, len(self.intercepts))

    @classmethod
    def of(cls, model: LogisticRegressionModel) -> "Head":
        """Take the numbers of Spark's model."""
        return cls(model.coefficientMatrix.toArray(), model.interceptVector.toArray())

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

    def to_spark(
        self, spark: SparkSession, fitted: LogisticRegressionModel, threshold: float | None
    ) -> LogisticRegressionModel:
        """Give Spark's model with these numbers.

        Parameters
        ----------
        spark : SparkSession
            Where.
        fitted : LogisticRegressionModel
            What it takes its id and parameters from.
        threshold : float, optional
            Of two classes: from which probability on its ``prediction`` is 1.
        """
        context = spark.sparkContext
        rows, columns = self.coefficients.shape
        java = context._jvm.org.apache.spark.ml.classification.LogisticRegressionModel(
            fitted.uid,
            _py2java(context, DenseMatrix(rows, columns, self.coefficients.ravel(), True)),
            _py2java(context, DenseVector(self.intercepts)),
            self.n_classes,
            len(self.intercepts) > 1,
        )
        model = LogisticRegressionModel(java)
        fitted._copyValues(model)
        if threshold is not None:
            model.setThreshold(threshold)
        model._transfer_params_to_java()
        return model


def fit_classifier(
    spark: SparkSession, features: Features, labels: Ints, settings: ClassifierSettings, n_classes: int
) -> LogisticRegressionModel:
    """Fit in Spark.

    Parameters
    ----------
    spark : SparkSession
        Where.
    features : numpy.ndarray
        float32, shape (n, n_features).
    labels : numpy.ndarray
        int64, shape (n,); every class occurs.
    settings : ClassifierSettings
        How.
    n_classes : int
        Number of classes.
    """
    weights = np.bincount(labels, minlength=n_classes)[labels] * n_classes / len(labels)
    regression = LogisticRegression(
        maxIter=settings.max_iter, regParam=settings.reg_param, elasticNetParam=settings.elastic_net_param
    )
    if settings.class_weights:
        regression = regression.setWeightCol("weight")
    return regression.fit(_to_frame(spark, features, labels, 1 / weights))


def _to_frame(spark: SparkSession, features: Features, labels: Ints, weights: Floats) -> DataFrame:
    n_features = features.shape[1]
    offsets = pa.array(np.arange(len(features) + 1, dtype=np.int64) * n_features)
    lists = pa.LargeListArray.from_arrays(offsets, pa.array(features.ravel())).cast(pa.list_(pa.float32()))
    columns = [pa.array(labels.astype(np.float64)), pa.array(weights), lists]
    frame = spark.createDataFrame(pa.table(columns, names=["label", "weight", "values"]))
    # One partition for each core: every iteration is a job over all of them.
    frame = frame.coalesce(spark.sparkContext.defaultParallelism)
    return frame.select("label", "weight", array_to_vector(col("values")).alias("features"))


def deal_folds(labels: Ints, groups: Sequence[str], seed: int) -> list[tuple[Ints, Ints]]:
    """Deal images into folds, a group's into one, classes alike.

    Returns
    -------
    list of (numpy.ndarray, numpy.ndarray)
        Indices of the images to fit on, and of those to predict. Fewer than `N_FOLDS` where a class has fewer groups;
        a fold without some class to fit on is left out.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # noqa: PLC0415  part of the train extra only

    names = np.asarray(groups, dtype=str)
    classes = np.unique(labels)
    fewest = min(np.unique(names[labels == label]).size for label in classes)
    if fewest < _BINARY:
        return []
    folds = StratifiedGroupKFold(min(N_FOLDS, fewest), shuffle=True, random_state=seed)
    dealt = [(train, test) for train, test in folds.split(labels, labels, names)]
    return [(train, test) for train, test in dealt if np.unique(labels[train]).size == classes.size]


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """What classifiers say about training images that they were not fitted on.

    Parameters
    ----------
    probabilities : numpy.ndarray
        float64, shape (n, n_classes).
    known : numpy.ndarray
        bool, shape (n,): which images have any.
    """

    probabilities: Floats
    known: npt.NDArray[np.bool_]


def predict_out_of_fold(
    spark: SparkSession,
    features: Features,
    labels: Ints,
    folds: Sequence[tuple[Ints, Ints]],
    settings: ClassifierSettings,
    n_classes: int,
) -> OutOfFold:
    """Predict each training image by a classifier fitted on the other folds.

    Parameters
    ----------
    spark, features, labels, settings, n_classes
        See `fit_classifier`.
    folds : sequence of (numpy.ndarray, numpy.ndarray)
        See `deal_folds`.
    """
    probabilities = np.full((len(labels), n_classes), 1 / n_classes)
    known = np.zeros(len(labels), bool)

    def predict(fold: tuple[Ints, Ints]) -> Floats:
        train, test = fold
        head = Head.of(fit_classifier(spark, features[train], labels[train], settings, n_classes))
        return head.predict(features[test])

    with ThreadPoolExecutor(_FITS_AT_ONCE) as pool:
        for (_, test), found in zip(folds, pool.map(predict, folds), strict=True):
            probabilities[test], known[test] = found, True
    return OutOfFold(probabilities, known)


PAPER = ClassifierSettings()

TUNED = tuple(replace(PAPER, reg_param=value, max_iter=50) for value in (0.01, 0.03, 0.1, 0.3))
"""What tuning tries beside the paper's; with iterations enough for the regularisation to be what decides."""
