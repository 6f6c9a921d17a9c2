"""Predictions as hospitals read them: FHIR, DICOM SR and HL7 v2, of the patient whose image it was; no Spark."""
