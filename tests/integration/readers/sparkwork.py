"""What `test_readers` has Spark do, in a process of its own: copies of tables, and a MERGE; FOLDER OUT MERGED.

The session is that of the example: it runs before, in the same process.
"""

import runpy
import sys
from pathlib import Path

from pyspark.sql import SparkSession

_MERGE = """
    MERGE INTO delta.`{place}` AS old USING source AS new ON old.event_id = new.event_id
    WHEN MATCHED THEN UPDATE SET label = new.label WHEN NOT MATCHED THEN INSERT *
"""

example, folder, out, merged = sys.argv[1:]
sys.argv = [example, folder]
runpy.run_path(example, run_name="__main__")
spark = SparkSession.builder.getOrCreate()
spark.conf.set("spark.sql.parquet.outputTimestampType", "TIMESTAMP_MICROS")
for base, target in ((folder, "read"), (merged, "merged")):
    for table in sorted(path.name for path in Path(base).iterdir()):
        place = f"{base}/{table}"
        if target == "merged" and table == "predictions":
            rows = spark.read.format("delta").load(place)
            known = (
                rows.where("event_id LIKE '%0001'").selectExpr("*").drop("label").selectExpr("*", "'normal' AS label")
            )
            new = known.drop("event_id").selectExpr("*", "'merged' AS event_id")
            known.unionByName(new).localCheckpoint().createOrReplaceTempView("source")
            spark.sql(_MERGE.format(place=place))
        spark.read.format("delta").load(place).coalesce(1).write.parquet(f"{out}/{target}/{table}")
spark.stop()
