"""Imagined devices that send generated studies to the gateway as many modalities would, and keep the account of them.

::

    Fleet -> Device (a thread each) -> Shot -> DICOM object or picture -> C-STORE or HTTP -> Answer -> Account

Everything that a device does is drawn from the seed and its number: who made it, what it proposes, how it goes on after
a failure, and which of its objects are broken on purpose. Every text that could be a patient's has a marker in it, so
that a search for the marker finds what has leaked.
"""
