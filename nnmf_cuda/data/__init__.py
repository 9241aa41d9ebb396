"""Images, labels and splits: readers, and the built-in synthetic data set."""

from __future__ import annotations

from nnmf_cuda.data.classes import parse_classes
from nnmf_cuda.data.dataset import SPLITS, ImageDataset
from nnmf_cuda.data.images import (
    IMAGE_SHAPE,
    IMAGE_SUFFIXES,
    find_images,
    iter_images,
    read_image,
    resize_images,
)
from nnmf_cuda.data.leakage import LeakageAudit, audit_dataset
from nnmf_cuda.data.load import folds_by, load_dataset
from nnmf_cuda.data.phantom import phantom
from nnmf_cuda.data.streams import ImageBatch, ReadFailure, iter_image_batches, read_images

__all__ = [
    "IMAGE_SHAPE",
    "IMAGE_SUFFIXES",
    "SPLITS",
    "ImageBatch",
    "ImageDataset",
    "LeakageAudit",
    "ReadFailure",
    "audit_dataset",
    "find_images",
    "iter_image_batches",
    "iter_images",
    "folds_by",
    "load_dataset",
    "parse_classes",
    "phantom",
    "read_image",
    "read_images",
    "resize_images",
]
