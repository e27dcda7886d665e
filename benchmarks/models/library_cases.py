"""Models of smaller libraries: medicine, segmentation, transformers, sound, graphs."""

from __future__ import annotations

import library_graphs
import library_medicine
import library_sound
import library_transformers
from cases import Cases

CASES: Cases = {
    **library_medicine.CASES,
    **library_transformers.CASES,
    **library_sound.CASES,
    **library_graphs.CASES,
}
