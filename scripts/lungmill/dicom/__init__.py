"""Reading DICOM: headers, candidate series, slice geometry, pixels. Nothing else in lungmill imports pydicom."""
