"""What all tests share: one thread each, since tests run in parallel and waiting threads of one slow the others fifty times."""

import torch

torch.set_num_threads(1)
