"""The DICOM door: associations, objects that come in pieces, and what each device is answered."""
