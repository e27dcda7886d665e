"""The papers by name: each a short composition of parts.

In the equations h_k is the output of module k = 1..K, f_k its layers, a_k its auxiliary network, sg a stop-gradient, y the
target and L_k = loss(a_k(h_k), y); L_K is the task's loss of the network's own classifier.
"""

from localprop.methods.helpers import auglocal, contsup
from localprop.methods.links import backlink, interlocking
from localprop.methods.plain import end_to_end, greedy

__all__ = ["auglocal", "backlink", "contsup", "end_to_end", "greedy", "interlocking"]
