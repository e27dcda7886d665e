"""What the modules of a trained network have learned, as the field of local learning looks at it.

Each function leaves the learner as it was, to the bit: parameters, gradients, buffers, modes and
random state::

    probes = lp.analysis.probe(learner, train, test)
    similarity = lp.analysis.compare_representations(learner, other, test)
    agreement = lp.analysis.compare_gradients(learner, batch)
"""

from localprop.analysis.gradients import GradientAgreement, compare_gradients
from localprop.analysis.probes import Probes, probe
from localprop.analysis.representations import Similarity, compare_representations

__all__ = [
    "GradientAgreement",
    "Probes",
    "Similarity",
    "compare_gradients",
    "compare_representations",
    "probe",
]
