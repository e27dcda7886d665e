"""Hand-written models: what code of users does, one pattern each."""

from __future__ import annotations

import pattern_blocks
import pattern_features
import pattern_sequences
import pattern_weights
import pattern_wrappers
from cases import Cases

CASES: Cases = {
    **pattern_blocks.CASES,
    **pattern_weights.CASES,
    **pattern_features.CASES,
    **pattern_sequences.CASES,
    **pattern_wrappers.CASES,
}
