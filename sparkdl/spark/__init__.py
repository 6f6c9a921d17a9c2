"""The Spark session, Java, and the settings of a worker: what knows how Spark is started."""
