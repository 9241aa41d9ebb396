"""The systems that the paper compares itself with, as estimators on images."""

from nnmf_cuda.baselines.activation_maps import ActivationMapNetwork
from nnmf_cuda.baselines.augmentation import Augmentation
from nnmf_cuda.baselines.base import ImageClassifier, LabelledImages, PixelNetwork
from nnmf_cuda.baselines.cnn_activations import ActivationFactors
from nnmf_cuda.baselines.convolutional import AlmuhaimeedNetwork, HossainNetwork
from nnmf_cuda.baselines.denoising import ThiryGuthNetwork
from nnmf_cuda.baselines.fuzzy_c_means import FuzzyCMeans
from nnmf_cuda.baselines.hossain import HossainClassifier
from nnmf_cuda.baselines.ours import DefendedFeatures
from nnmf_cuda.baselines.residual import DeemNetwork
from nnmf_cuda.baselines.snnet import SNnet
from nnmf_cuda.baselines.systems import SYSTEMS, Setting, System
from nnmf_cuda.baselines.torch_classifier import TorchImageClassifier
from nnmf_cuda.baselines.transformers import AlmuhaimeedSwin, GomezHybrid

__all__ = [
    "SYSTEMS",
    "ActivationFactors",
    "ActivationMapNetwork",
    "AlmuhaimeedNetwork",
    "AlmuhaimeedSwin",
    "Augmentation",
    "DeemNetwork",
    "DefendedFeatures",
    "FuzzyCMeans",
    "GomezHybrid",
    "HossainClassifier",
    "HossainNetwork",
    "ImageClassifier",
    "LabelledImages",
    "PixelNetwork",
    "SNnet",
    "Setting",
    "System",
    "ThiryGuthNetwork",
    "TorchImageClassifier",
]
