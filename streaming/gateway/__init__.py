"""The gateway: images from devices by DICOM and HTTP, answered once Kafka has them; no Spark."""
