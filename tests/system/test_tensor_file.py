"""Files of tensors are those of safetensors, whatever a plugin remembers."""

import pytest
import torch
from safetensors.torch import load_file

from simsfl.system.tensor_file import _DTYPES, write_tensors


@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
def test_tensors_are_read_as_they_were_written(dtype, tmp_path):
    tensor = torch.tensor([[0, 1, 3], [1, 0, 2]]).to(dtype)
    write_tensors(tmp_path / "x.safetensors", {"a.b": tensor, "none": tensor[:0]}, {})
    read = load_file(tmp_path / "x.safetensors")
    for name, expected in (("a.b", tensor), ("none", tensor[:0])):
        assert read[name].dtype == dtype
        assert torch.equal(read[name], expected)
