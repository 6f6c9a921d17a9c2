# ruff: noqa: T201 - a script that prints what it finds
# %% [markdown]
# # Two folders of X-rays: features by transfer learning, logistic regression on top
#
# The procedure of the paper, on any two folders of images:
#
#     python examples/paper.py NORMAL_FOLDER COVID_FOLDER
#
# It needs `pip install -e '.[train]'` in the checkout, and Java 17 or newer. As a notebook: open it in an editor that
# knows `# %%` cells, and replace `sys.argv[1:]` in the second cell by a list.

# %%
"""Reproduces the paper's procedure on two folders of images: featurize, fit, split 70/30, four metrics."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from pyspark.ml import Pipeline
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.sql.functions import lit

from sparkdl import DeepImageFeaturizer
from sparkdl.image import imageIO
from sparkdl.network.catalog import NETWORKS
from sparkdl.spark.session import start_session

# %% What is asked for.
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("normal", help="folder of images of the first class, label 0")
parser.add_argument("covid", help="folder of images of the second class, label 1")
parser.add_argument("--network", default="EfficientNetLite0", choices=sorted(NETWORKS))
parser.add_argument("--weights", default="imagenet", help="imagenet, random (for a trial run) or a Keras file")
parser.add_argument("--seed", type=int, default=1, help="of the split, and of random weights")
asked = parser.parse_args(sys.argv[1:])
for folder in (asked.normal, asked.covid):
    if not Path(folder).is_dir():
        parser.error(f"{folder} is no folder of images")

print("Research use only. Not a medical device.")

# %% Spark. What it has to say goes to files, not to the terminal.
logs = Path(tempfile.mkdtemp(prefix="paper-logs-"))
spark = start_session(app_name="paper", log_folder=logs)

# %% Read. A file that is no image becomes a null image with a reason, and is counted.
# Rows are brought to the network's size at once: so few bytes can stay in memory, and no file is decoded twice.
height, width = NETWORKS[asked.network].input_size
decode = imageIO.PIL_decode_and_resize((width, height))


def read_folder(folder, label):
    """Read one folder as image rows with a label."""
    read = imageIO.readImagesWithCustomFn(folder, decode, spark=spark, reasonCol="reason")
    return read.withColumn("label", lit(label))


files = read_folder(asked.normal, 0.0).union(read_folder(asked.covid, 1.0)).cache()
images = files.where("image IS NOT NULL").select("image", "label")
counts = {row["label"]: row["count"] for row in images.groupBy("label").count().collect()}
unread = files.where("image IS NULL").count()
print(f"images              {counts.get(0.0, 0)} normal, {counts.get(1.0, 0)} covid, {unread} files not read")
if len(counts) < len((0.0, 1.0)):
    spark.stop()
    sys.exit("each folder needs images: one of them has none that can be read")

# %% The paper's lines.
train, test = images.randomSplit([0.7, 0.3], seed=asked.seed)

featurizer = DeepImageFeaturizer(
    inputCol="image", outputCol="features", modelName=asked.network, weights=asked.weights, seed=asked.seed
)
classifier = LogisticRegression(maxIter=10, regParam=0.05, elasticNetParam=0.3, labelCol="label")
pipeline = Pipeline(stages=[featurizer, classifier])

started = time.perf_counter()
model = pipeline.fit(train)
fit_s = time.perf_counter() - started

# %% Predict. The predictions are kept, so that the four metrics read them and no image is scored twice.
started = time.perf_counter()
predictions = model.transform(test).select("label", "prediction").cache()
n_test = predictions.count()
predict_s = time.perf_counter() - started
n_train = sum(counts.values()) - n_test

print(f"fit                 {n_train} images, {fit_s:.1f} s")
print(f"predict             {n_test} images, {predict_s:.1f} s, {n_test / predict_s:.1f} images/s")

# %% Judge.
if n_test:
    evaluator = MulticlassClassificationEvaluator(labelCol="label", predictionCol="prediction")
    for metric in ("accuracy", "f1", "weightedPrecision", "weightedRecall"):
        print(f"{metric:<20}{evaluator.setMetricName(metric).evaluate(predictions):.4f}")
else:
    print("no image fell into the 30 %: give more images")

print()
print(
    "The split is by image, as in the paper, not by patient. Where one patient has several images, they can be on both"
)
print("sides, and the figures are too good. They say nothing about patients of another hospital.")
spark.stop()
