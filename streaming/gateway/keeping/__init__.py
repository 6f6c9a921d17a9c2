"""What is kept on disk and synced before a device has its answer: the spool and the originals."""
