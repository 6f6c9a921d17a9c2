"""Names for the arrays that training hands on."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
"""Scores, probabilities, weights."""
Ints = npt.NDArray[np.int64]
"""Class codes, row numbers, counts; a confusion matrix is one with truth in rows."""
Features = npt.NDArray[np.float32]
"""Feature vectors, one image a row."""
Mask = npt.NDArray[np.bool_]
"""Which rows."""
Names = npt.NDArray[np.str_]
"""Patients, sources, labels of rows."""
