"""Images as Spark rows, under the import path that users of the first sparkdl know: ``sparkdl.image.imageIO``."""
