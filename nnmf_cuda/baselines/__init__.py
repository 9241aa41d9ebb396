"""The systems that the paper compares itself with, as estimators on images."""

from nnmf_cuda.baselines.base import ImageClassifier, LabelledImages, PixelNetwork
from nnmf_cuda.baselines.fuzzy_c_means import FuzzyCMeans
from nnmf_cuda.baselines.hossain import HossainClassifier
from nnmf_cuda.baselines.snnet import SNnet
from nnmf_cuda.baselines.systems import SYSTEMS, Setting, System

__all__ = [
    "SYSTEMS",
    "FuzzyCMeans",
    "HossainClassifier",
    "ImageClassifier",
    "LabelledImages",
    "PixelNetwork",
    "SNnet",
    "Setting",
    "System",
]
