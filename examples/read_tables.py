"""Counts predictions in Spark: spark-submit --packages io.delta:delta-spark_4.2_2.13:4.4.0 read_tables.py FOLDER."""

import sys

from pyspark.sql import SparkSession

delta = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}
spark = SparkSession.builder.config(map=delta).getOrCreate()
predictions = spark.read.format("delta").load(f"{sys.argv[1]}/predictions")
decided = predictions.where("size(flags) = 0 OR flags IS NULL")
decided.groupBy("date", "label").count().orderBy("date", "label").show()
