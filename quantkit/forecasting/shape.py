"""What does a forecast need to know of a model? Its linear layers, and the sizes that activations depend on.

A plain description, made of a `config.json` (`quantkit.forecasting.reading`). Carrying transformers' own model on the `meta`
device around instead would cost seconds and hundreds of megabytes wherever a forecast is wanted.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LinearShape:
    """One linear layer: its full name, outputs and inputs."""

    name: str
    outputs: int
    inputs: int
    bias: bool = False

    @property
    def weights(self) -> int:
        """Return the number of weights, without the bias."""
        return self.outputs * self.inputs

    @property
    def ending(self) -> str:
        """Return the last part of the name: `q_proj`."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Names and sizes of a decoder; counts are of parameters, not bytes."""

    name: str
    """The folder, file or hub id that it was read from."""
    family: str
    """`model_type` of the configuration."""
    linears: tuple[LinearShape, ...]
    """Every linear layer but the output head, in the model's order."""
    head: LinearShape | None
    """The output head."""
    tied: bool
    """Whether the head's weight is the embeddings'."""
    embeddings: int
    """Parameters of the embeddings of tokens and positions."""
    others: int
    """All other parameters: norms, biases, experts that are no linear layers."""
    blocks: int
    """Decoder blocks."""
    width: int
    """Size of a hidden state."""
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Inner size of an MLP."""
    vocabulary: int
    head_norms: bool = False
    """Whether queries and keys pass a norm each."""
    block_norms: int = 2
    """Norms of a decoder block, those of queries and keys not counted."""
    scores_kept: bool = False
    """Whether attention keeps its scores: those that caps or sinks change, which torch's fused attention does not know."""
    experts: int = 0
    """Experts of a block; 0: a plain MLP."""
    experts_per_token: int = 0
    dtype: str = "bfloat16"
    """Data type that the weights are stored in."""
    max_positions: int | None = None
    """Longest row that the model was made for."""

    @property
    def linear_weights(self) -> int:
        """Return the weights of all linear layers but the head."""
        return sum(layer.weights for layer in self.linears)

    @property
    def dense_parameters(self) -> int:
        """Return the parameters that no method quantizes: embeddings, an untied head, norms and biases."""
        head = 0 if self.head is None or self.tied else self.head.weights
        return self.embeddings + head + self.others

    @property
    def parameters(self) -> int:
        """Return all parameters, tied ones once."""
        return self.linear_weights + self.dense_parameters

    @property
    def largest(self) -> int:
        """Return the weights of the largest linear layer, the head included."""
        return max((layer.weights for layer in (*self.linears, *([self.head] if self.head else []))), default=0)

    def block_of(self, number: int) -> Iterator[LinearShape]:
        """Yield the linear layers of a decoder block, by the number that stands in their names."""
        return (layer for layer in self.linears if str(number) in layer.name.split("."))

    def to_dict(self) -> dict[str, Any]:
        """Return the sizes as plain JSON data; layers are counted by their endings, not listed."""
        data = asdict(self)
        data["linears"] = {}
        for layer in self.linears:
            kind = data["linears"].setdefault(layer.ending, {"outputs": layer.outputs, "inputs": layer.inputs, "layers": 0})
            kind["layers"] += 1
        return data | {"parameters": self.parameters}
