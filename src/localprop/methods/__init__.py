"""The papers by name. One paper is one file, which holds the paper's parts and its function.

The function composes parts of a rule. A file is found by its `__all__`, so a new method is one new
file here and no other edit.

In the equations h_k is the output of module k = 1..K, f_k its layers, a_k its auxiliary network, sg
a stop-gradient, y the target and L_k = loss(a_k(h_k), y). L_K is the task's loss of the network's
own classifier.
"""

import inspect
from importlib import import_module
from pkgutil import iter_modules

__all__ = []

for _info in iter_modules(__path__):
    if _info.name in ("names", "parse"):  # about methods as text
        continue
    _module = import_module(f"{__name__}.{_info.name}")
    for _name in _module.__all__:
        _value = getattr(_module, _name)
        if inspect.isfunction(_value):
            # The import has bound the module to this name, for example `dgl`: the function of that
            # name takes its place.
            globals()[_name] = _value
            __all__.append(_name)
