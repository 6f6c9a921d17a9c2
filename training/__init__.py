"""Offline: labelled image files in, a saved and measured ``PipelineModel`` out.

``dataset -> features (decoding, featurecache) -> split (duplicates) -> fit (classifier, calibration) -> judge (probes,
statistics) -> evaluation -> report``; each module is one step. Which of the saved models is served is kept in
`schemas.registry`, because the stream asks too. Nothing is imported here, so that Spark's Python workers, which need
only `training.features.decoding`, start fast.
"""
