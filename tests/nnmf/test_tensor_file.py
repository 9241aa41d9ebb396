"""Files of tensors: whole or not at all, and nothing but what was written."""

from __future__ import annotations

import os
import resource

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nnmf_cuda.nnmf import tensor_file
from nnmf_cuda.nnmf.tensor_file import Content, Kind, read_tensors, write_tensors
from tests.processes import exit_code, fork

REMEDY = {
    Kind.CHECKPOINT: "delete it to begin the fit anew, or give checkpoint= another name",
    Kind.INDEX: "delete it to begin the fit anew, or give checkpoint= another name",
    Kind.ROWS: "delete the file that its folder is named after to begin the fit anew",
    Kind.ESTIMATOR: "give a file that NNMF.save has written, or save the estimator again",
}


@pytest.fixture
def content():
    return Content(
        {"words": ["a", "ü"], "third": 1 / 3, "none": None, "inf": np.inf},
        {
            "single": torch.rand(3, 5, dtype=torch.float32),
            "turned": torch.rand(4, 7, dtype=torch.float64).mT,
            "pixels": torch.arange(11, dtype=torch.uint8),
            "none": torch.empty(0, 3, 4),
            "scalar": torch.tensor(7),
            "signs": torch.tensor([True, False]),
        },
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some.file"


@pytest.mark.parametrize("kind", Kind)
def test_a_file_holds_what_was_written(path, content, kind):
    write_tensors(path, kind, content)
    found = read_tensors(path, kind)
    assert found.description == content.description
    assert set(found.tensors) == set(content.tensors)
    for name, tensor in content.tensors.items():
        assert torch.equal(found.tensors[name], tensor)
        assert found.tensors[name].dtype == tensor.dtype
        assert found.tensors[name].is_contiguous()
    # For any other reader of safetensors too.
    assert torch.equal(load_file(path)["turned"], content.tensors["turned"])


def test_tensors_that_share_memory_are_written_each_for_itself(path):
    base = torch.rand(4, 5)
    tensors = {"all": base, "again": base, "row": base[1], "turned": base.mT, "one": base[:1, :1]}
    write_tensors(path, Kind.ESTIMATOR, Content({}, tensors))
    found = read_tensors(path, Kind.ESTIMATOR).tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_what_was_read_does_not_hang_on_the_file(path, content):
    write_tensors(path, Kind.ESTIMATOR, content)
    tensor = read_tensors(path, Kind.ESTIMATOR).tensors["single"]
    os.truncate(path, 0)  # a mapped page would be gone
    assert torch.equal(tensor, content.tensors["single"])
    assert tensor.data_ptr() % 64 == 0  # as torch's own: kernels may sum in another order else


def test_every_damaged_byte_is_seen(path, content):
    kind = Kind.CHECKPOINT
    content.tensors.pop("signs")  # any byte but 0 means the same there
    write_tensors(path, kind, content)
    whole, bits = path.read_bytes(), np.random.default_rng(0)
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << bits.integers(8)
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=f"some.file: .*{REMEDY[kind]}"):
            read_tensors(path, kind)


@pytest.mark.parametrize("kind", Kind)
def test_a_file_that_is_cut_or_no_such_file_is_refused(path, content, kind):
    write_tensors(path, kind, content)
    whole = path.read_bytes()
    for other in (
        b"",
        b"PK\x03\x04" + bytes(999),
        b"X,Y\n1,2\n",
        whole[:99],
        whole[:-1],
        whole * 2,
    ):
        path.write_bytes(other)
        with pytest.raises(ValueError, match=f"some.file: damaged, or not .*{REMEDY[kind]}"):
            read_tensors(path, kind)
    save_file({"W": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=f"safetensors file of another program, {REMEDY[kind]}"):
        read_tensors(path, kind)
    with pytest.raises(ValueError, match="is a directory, not"):
        read_tensors(path.parent, kind)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"some\.file"):
        read_tensors(path, kind)


def test_a_file_of_another_kind_or_version_is_refused(path, content, monkeypatch):
    write_tensors(path, Kind.CHECKPOINT, content)
    with pytest.raises(ValueError, match=r"holds the checkpoint .*, which fit\(X, checkpoint=..."):
        read_tensors(path, Kind.ESTIMATOR)
    write_tensors(path, Kind.ESTIMATOR, content)
    with pytest.raises(ValueError, match=r"holds a fitted estimator, which NNMF\.load reads, and"):
        read_tensors(path, Kind.CHECKPOINT)
    monkeypatch.setattr(tensor_file, "FORMAT_VERSION", 2)
    with pytest.raises(ValueError, match="written in format 1 by nnmf-cuda .* reads format 2"):
        read_tensors(path, Kind.ESTIMATOR)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SafetensorError])
def test_a_write_that_fails_leaves_the_former_file(path, content, monkeypatch, error):
    write_tensors(path, Kind.CHECKPOINT, Content({"the": "former"}, {}))
    former = path.read_bytes()

    def half(tensors, file, metadata):
        file.write_bytes(former[: len(former) // 2])
        raise error("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("safetensors.torch.save_file", half)
        with pytest.raises((KeyboardInterrupt, OSError), match="No space left on device"):
            write_tensors(path, Kind.CHECKPOINT, content)
    assert path.read_bytes() == former
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_the_system_cuts_short_is_named_with_a_remedy(path, content, tmp_path):
    write_tensors(path, Kind.CHECKPOINT, content)
    former = path.read_bytes()

    def write():
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(former), len(former)))
        try:
            write_tensors(path, Kind.CHECKPOINT, Content({}, {"X": torch.zeros(9999)}))
        except OSError as error:
            expected = f"[Errno 27] File too large; give another path: {str(path)!r}"
            return 0 if str(error) == expected else 2
        return 1

    assert exit_code(fork(write, said=tmp_path / "said.txt")) == 0
    assert path.read_bytes() == former
