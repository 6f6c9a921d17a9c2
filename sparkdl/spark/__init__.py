"""The Spark session, Java, a worker's settings, and files on their way to it: what knows how Spark is started."""
