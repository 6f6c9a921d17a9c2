"""The front door: the ``xray`` command, the demo, and the services it starts on one machine."""
