"""Into how many tasks Spark cuts work on images."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_IMAGES_PER_TASK = 32  # about half a second: progress moves, the last tasks end together, and starting one is 5 % of it

_MIN_TASKS_PER_CORE = 4  # a small set still keeps every core busy to the end


def count_tasks(spark: "SparkSession", n_images: int) -> int:
    """Give the number of tasks for some images, at most one for each."""
    n_cores: int = spark.sparkContext.defaultParallelism
    return min(max(math.ceil(n_images / _IMAGES_PER_TASK), n_cores * _MIN_TASKS_PER_CORE), n_images)
