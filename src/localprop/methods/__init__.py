"""The papers by name: each a short composition of parts.

In the equations h_k is the output of module k = 1..K, f_k its layers, a_k its auxiliary network, sg a stop-gradient, y the
target and L_k = loss(a_k(h_k), y); L_K is the task's loss of the network's own classifier.
"""

from localprop.methods.borrowed import man, man_plus, solo
from localprop.methods.features import lopt, pathak
from localprop.methods.groups import gn_dgl
from localprop.methods.helpers import auglocal, contsup
from localprop.methods.links import backlink, interlocking
from localprop.methods.losses import infopro, predsim
from localprop.methods.penalised import sgr, trgl
from localprop.methods.plain import dgl, end_to_end, greedy
from localprop.methods.windowed import hpff, windows

__all__ = [
    "auglocal",
    "backlink",
    "contsup",
    "dgl",
    "end_to_end",
    "gn_dgl",
    "greedy",
    "hpff",
    "infopro",
    "interlocking",
    "lopt",
    "man",
    "man_plus",
    "pathak",
    "predsim",
    "sgr",
    "solo",
    "trgl",
    "windows",
]
