"""Hadamard matrices: entries, orthogonality, and the way out where none exists."""

import pytest
import torch

from quantkit.errors import UsageError
from quantkit.numerics.hadamard import hadamard, has_hadamard, rotation

SIZES = [1, 2, 4, 12, 20, 28, 36, 40, 44, 52, 60, 64, 76, 100, 108, 140, 192, 576, 896]


@pytest.mark.parametrize("size", SIZES)
def test_entries_are_plus_or_minus_one_and_rows_are_orthogonal(size):
    matrix = hadamard(size)
    assert torch.allclose(matrix.abs(), torch.full_like(matrix, size**-0.5))
    assert (matrix @ matrix.T - torch.eye(size, dtype=torch.float64)).abs().max() < 1e-12


def test_hidden_sizes_of_common_models_have_one():
    sizes = (576, 1536, 896, 4864, 1024, 3072, 2048, 5632, 2560, 9728, 3584, 18944, 4096, 14336, 5120, 13824, 8192, 28672)
    assert all(has_hadamard(size) for size in sizes)


@pytest.mark.parametrize("size", [92, 6, 576, 12])
def test_rotations_are_orthogonal_to_a_millionth_in_float32_and_depend_on_the_seed(size):
    turned = rotation(size, seed=3).float()
    assert (turned.double() @ turned.double().T - torch.eye(size)).abs().max() < 1e-6
    assert torch.equal(turned, rotation(size, seed=3).float())
    assert not torch.equal(turned, rotation(size, seed=4).float())


def test_a_rotation_spreads_one_outlier_over_all_channels():
    spike = torch.zeros(576, dtype=torch.float64)
    spike[5] = 24.0
    assert torch.allclose((spike @ rotation(576, seed=0)).abs(), torch.ones(576, dtype=torch.float64))


def test_orders_without_a_construction_are_refused():
    with pytest.raises(UsageError, match="no Hadamard matrix of order 92 can be built here; use `rotation`"):
        hadamard(92)
