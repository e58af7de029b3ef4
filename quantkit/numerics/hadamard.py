"""Which rotations spread outliers over all channels and can be undone exactly?

A Hadamard matrix has entries ±1 and orthogonal rows; H/√n turns a vector with one large entry into one without. Orders are
built, not looked up: Paley's constructions (1933) give q + 1 for prime powers q ≡ 3 and 2(q + 1) for q ≡ 1 (mod 4), here
for primes and squares of primes, and the Kronecker product of two Hadamard matrices is one. So 576 = 36·16 has one, though
its odd factor 9 has none, and 1536 = 12·128. An order without any construction gets the orthogonal factor of a seeded
Gaussian matrix, as QuaRot-like tools do. Tables of known matrices, their usual way, cover fewer sizes with more bytes.
"""

from functools import cache
from math import isqrt

import torch
from torch import Tensor

from quantkit.errors import UsageError


def has_hadamard(size: int) -> bool:
    """Return whether `hadamard` can build this order.

    >>> [size for size in (1, 2, 6, 12, 36, 576, 92) if has_hadamard(size)]
    [1, 2, 12, 36, 576]
    """
    return _core(size) is not None


def hadamard(size: int) -> Tensor:
    """Return an orthogonal matrix `[size, size]`, float64, with entries ±1/√size.

    Raises:
        UsageError: no construction for this order is known here.
    """
    core = _core(size)
    if core is None:
        raise UsageError(f"no Hadamard matrix of order {size} can be built here; use `rotation`, which falls back to QR")
    matrix: Tensor = torch.kron(_signs(core), _sylvester(size // core)) * (1 / size**0.5)
    return matrix


def rotation(size: int, *, seed: int) -> Tensor:
    """Return a random orthogonal matrix `[size, size]`, float64: Hadamard with random signs, or QR of a Gaussian.

    The signs are drawn per input channel, so R = diag(±1)·H: still orthogonal, different for every seed.
    """
    generator = torch.Generator().manual_seed(seed)
    if has_hadamard(size):
        signs = torch.randint(0, 2, (size, 1), generator=generator, dtype=torch.float64) * 2 - 1
        return signs.mul(hadamard(size))
    factor, upper = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    turned: Tensor = factor * upper.diagonal().sign()
    return turned


@cache
def _core(size: int) -> int | None:
    """Return the smallest constructible order whose quotient with `size` is a power of two."""
    if size < 1:
        return None
    odd = size // (size & -size)
    candidate = odd
    while candidate <= size:
        if candidate in (1, 2) or _field(candidate) is not None:
            return candidate
        candidate *= 2
    return None


def _field(order: int) -> tuple[int, int] | None:
    """Return (q, construction 1 or 2) by which Paley gives this order."""
    if order % 4:
        return None
    if (order - 1) % 4 == 3 and _prime_root(order - 1):
        return order - 1, 1
    if (order // 2 - 1) % 4 == 1 and _prime_root(order // 2 - 1):
        return order // 2 - 1, 2
    return None


@cache
def _signs(order: int) -> Tensor:
    """Return a ±1 matrix of Paley's, or of order 1 or 2, float64."""
    if order in (1, 2):
        return _sylvester(order)
    found = _field(order)
    if found is None:
        raise UsageError(f"Paley's constructions give no Hadamard matrix of order {order}")
    field, construction = found
    characters = _jacobsthal(field)
    border = torch.ones(field + 1, field + 1, dtype=torch.float64)
    border[0, 0] = 0
    border[1:, 1:] = characters
    identity = torch.eye(field + 1, dtype=torch.float64)
    if construction == 1:  # q ≡ 3 (mod 4): the character matrix is skew
        border[1:, 0] = -1
        return border + identity
    return torch.kron(border, _sylvester(2)) + torch.kron(identity, torch.tensor([[1.0, -1.0], [-1.0, -1.0]]).double())


def _jacobsthal(field: int) -> Tensor:
    """Return χ(x_i − x_j) over the field of q = p or p² elements: 1 for squares, −1 for others, 0 for zero."""
    prime = _prime_root(field)
    index = torch.arange(field)
    if prime == field:
        table = _characters(prime)
        return table[(index[:, None] - index) % prime]
    # the square field: x = a + b·√r with r no square modulo p
    root = int((_characters(prime) < 0).nonzero()[0])
    a, b = index // prime, index % prime
    squares = -torch.ones(prime, prime, dtype=torch.float64)
    squares[(a * a + root * b * b) % prime, 2 * a * b % prime] = 1
    squares[0, 0] = 0
    return squares[(a[:, None] - a) % prime, (b[:, None] - b) % prime]


def _characters(prime: int) -> Tensor:
    """Return χ(0), …, χ(p − 1) of the prime field."""
    table = -torch.ones(prime, dtype=torch.float64)
    table[torch.arange(1, prime) ** 2 % prime] = 1
    table[0] = 0
    return table


def _sylvester(size: int) -> Tensor:
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), matrix)
    return matrix


@cache
def _prime_root(number: int) -> int:
    """Return p if the number is an odd prime p or its square, else 0."""
    for candidate in (number, isqrt(number)):
        is_root = candidate in (number, number / candidate) if candidate else False
        if is_root and candidate > 2 and candidate % 2 and all(candidate % d for d in range(3, isqrt(candidate) + 1, 2)):
            return candidate
    return 0
