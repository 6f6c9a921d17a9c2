"""Publishing images as a device does; no Spark."""
