"""What ``nnmf-cuda bench`` runs: a quick look at the ops, and the seconds of the paper's stages.

Comparisons with other libraries and with the machine's ceilings are in the folder ``bench`` of the
source tree, which writes records of the same layout.
"""
