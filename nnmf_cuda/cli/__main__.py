"""``python -m nnmf_cuda.cli``: the command `nnmf-cuda` where it is not installed."""

import sys

from nnmf_cuda.cli.main import main

sys.exit(main())
