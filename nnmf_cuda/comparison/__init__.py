"""The systems of `nnmf_cuda.baselines` and a user's own under one evaluation, side by side."""
