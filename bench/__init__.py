"""Benchmarks of a checkout: `python -m bench --help`.

What is measured here compares with other libraries, with the machine's ceilings, or over growing
problems, and is no part of the installed package. Two things that users of the package run are:
`nnmf-cuda bench kernels`, a quick look at the ops, and `nnmf-cuda bench stages`. This package
imports from those; they import nothing from here.
"""
