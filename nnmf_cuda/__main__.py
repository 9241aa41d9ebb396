"""``python -m nnmf_cuda``: the command `nnmf-cuda`, also as one of several of `torchrun`."""

import sys

from nnmf_cuda.cli.main import main

sys.exit(main())
