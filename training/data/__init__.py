"""Images and findings as they are given: manifests, patients, copies, splits, confirmed findings."""
