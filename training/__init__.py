"""Offline: labelled image files in, a saved and measured ``PipelineModel`` out.

``data -> features -> model -> evidence -> report``, and ``lifecycle`` for what happens to a model later. Each of these
packages stands on the ones before it, and all on ``figures``. Which of the saved models is served is kept in
`schemas.registry`, because the stream asks too. Nothing is imported here, so that Spark's Python workers, which need
only `training.features.decoding`, start fast.
"""
