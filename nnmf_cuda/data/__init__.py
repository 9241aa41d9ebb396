"""Images, labels and splits: one list of readers, and the built-in synthetic data set."""

from __future__ import annotations

from nnmf_cuda.data.dataset import SPLITS, ImageDataset, groupings_of_test
from nnmf_cuda.data.decoding import IMAGE_SHAPE, read_image, resize_images
from nnmf_cuda.data.images import (
    IMAGE_SUFFIXES,
    ArrayImage,
    ImageBatch,
    ImageSource,
    LazyImage,
    iter_image_batches,
    read_images,
)
from nnmf_cuda.data.leakage import LeakageAudit, audit_dataset
from nnmf_cuda.data.load import folds_by, load_dataset, parse_classes
from nnmf_cuda.data.phantom import phantom
from nnmf_cuda.data.readers import iter_images
from nnmf_cuda.data.reading import Account, ReadFailure, ReadOptions

__all__ = [
    "IMAGE_SHAPE",
    "IMAGE_SUFFIXES",
    "SPLITS",
    "Account",
    "ArrayImage",
    "ImageBatch",
    "ImageDataset",
    "ImageSource",
    "LazyImage",
    "LeakageAudit",
    "ReadFailure",
    "ReadOptions",
    "audit_dataset",
    "folds_by",
    "groupings_of_test",
    "iter_image_batches",
    "iter_images",
    "load_dataset",
    "parse_classes",
    "phantom",
    "read_image",
    "read_images",
    "resize_images",
]
