"""Publishing images as a device does, and taking out of them what names a patient; no Spark."""
