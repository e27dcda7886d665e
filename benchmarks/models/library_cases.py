"""To come."""

from cases import Cases

CASES: Cases = {}
