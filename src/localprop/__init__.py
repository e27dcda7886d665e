"""localprop: supervised local learning for PyTorch.

Public names are imported when they are first used, so that `localprop --help` does without torch.
`__init__.pyi` beside this file says where each of them lives; `make stubs` generates it from the
`__all__` of the modules.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
