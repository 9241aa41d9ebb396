"""Images, labels and splits: readers, and the built-in synthetic data set."""

from __future__ import annotations

from nnmf_cuda.data.dataset import SPLITS, ImageDataset, groupings_of_test
from nnmf_cuda.data.images import (
    IMAGE_SHAPE,
    IMAGE_SUFFIXES,
    ImageBatch,
    ReadFailure,
    find_images,
    iter_image_batches,
    iter_images,
    read_image,
    read_images,
    resize_images,
)
from nnmf_cuda.data.leakage import LeakageAudit, audit_dataset
from nnmf_cuda.data.load import folds_by, load_dataset, parse_classes
from nnmf_cuda.data.phantom import phantom

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
    "groupings_of_test",
    "load_dataset",
    "parse_classes",
    "phantom",
    "read_image",
    "read_images",
    "resize_images",
]
