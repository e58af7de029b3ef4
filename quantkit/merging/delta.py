"""What does an adapter, as it lies in a folder, make of one weight?

    adapter = read_adapter_folder(folder)              # headers only; nothing of the base is needed
    adapter.check_tensors()                            # finite, and trained
    new = adapter.folded("model.layers.0.self_attn.q_proj", weight)     # float32 [out, in] -> float32 [out, in]

No model is built: the tensors of one module are read when its weight passes by. The arithmetic repeats PEFT's
(`get_delta_weight`, DoRA's `merge_safe`, VeRA's shared projections) operation by operation, so that the result is bit-equal to
`quantkit.merging.fold_adapters` on the same float32 weight. Loading a `PeftModel` to ask it needs the whole base in memory.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.errors import UsageError, VerificationError
from quantkit.files import sha256_of
from quantkit.headers import StoredTensor, read_tensor_index
from quantkit.layout import counted
from quantkit.merging.adapter_settings import AdapterSettings, read_settings
from quantkit.merging.tensorfiles import FLOATS, all_finite, read_tensor

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
SHARED = {"base_model.vera_A": "A", "base_model.vera_B": "B"}
PARTS = {
    "LoRa": {".lora_A.weight": "A", ".lora_B.weight": "B"},
    "DoRa": {".lora_A.weight": "A", ".lora_B.weight": "B", ".lora_magnitude_vector": "magnitude"},
    "VeRa": {".vera_lambda_b": "b", ".vera_lambda_d": "d"},
}
"""Kind to the endings under which PEFT stores the parts of a module's adapter."""
CARRIES = {"LoRa": "B", "DoRa": "B", "VeRa": "b"}
"""The part that starts at zero and holds what was learnt."""
SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class FolderAdapter:
    """An adapter whose tensors are read one module at a time."""

    folder: Path
    settings: AdapterSettings
    modules: Mapping[str, Mapping[str, StoredTensor]]
    """Module name, as in the bare model, to the parts of its adapter (`PARTS`)."""
    saved: Mapping[str, StoredTensor]
    """Tensor name to the trained or resized copy stored with the adapter: `modules_to_save`, embeddings."""
    shared: Mapping[str, StoredTensor] = field(default_factory=dict)
    """VeRA: the projections `A` `[r, in]` and `B` `[out, r]`, where they are stored."""
    largest: tuple[int, int] = (0, 0)
    """VeRA: largest (out, in) of the adapted layers, which size projections drawn anew; see `sized`."""

    @cached_property
    def weights_sha256(self) -> str:
        """Return the sha256 of the adapter's weight file, by which a merge remembers it."""
        return sha256_of(self.folder / ADAPTER_WEIGHTS)

    def check_tensors(self) -> None:
        """Read every tensor once.

        Raises:
            VerificationError: a value is not finite, or the adapter never learnt anything.
        """
        learnt = bool(self.saved)
        for module, parts in self.modules.items():
            for part, stored in parts.items():
                values = read_tensor(stored)
                if not all_finite(values):
                    raise VerificationError(f"{self.folder}: {module} ({part}) holds values that are not finite")
                learnt = learnt or (part == CARRIES[self.settings.kind] and bool(values.any()))
        for name, stored in {**self.shared, **self.saved}.items():
            if not all_finite(read_tensor(stored)):
                raise VerificationError(f"{self.folder}: {name} holds values that are not finite")
        if not learnt:
            raise VerificationError(f"{self.folder}: all B matrices are zero; the adapter was never trained")

    def check_shapes(self, layers: Mapping[str, tuple[int, int]]) -> None:
        """Compare the adapter's tensors with the (out, in) of the layers they change.

        Raises:
            VerificationError: names the module, with both shapes.
        """
        for module, parts in self.modules.items():
            outputs, inputs = layers[module]
            rank = self.settings.rank(module)
            wanted = {
                "A": (rank, inputs), "B": (outputs, rank), "magnitude": (outputs,), "b": (outputs,), "d": (self.settings.r,),
            }  # fmt: skip
            for part, stored in parts.items():
                if stored.shape != wanted[part]:
                    raise VerificationError(
                        f"{self.folder}: {module} ({part}) has the shape {list(stored.shape)}; a layer of {outputs} x {inputs}"
                        f" and rank {rank} takes {list(wanted[part])}. The adapter belongs to another base, or its"
                        " configuration was edited"
                    )
        if self.shared:
            outputs = max(size for size, _ in layers.values())
            inputs = max(size for _, size in layers.values())
            a, b, r = self.shared["A"].shape, self.shared["B"].shape, self.settings.r
            if len(a) != 2 or len(b) != 2 or a[0] < r or b[1] < r or a[1] < inputs or b[0] < outputs:
                raise VerificationError(
                    f"{self.folder}: the shared projections are {list(a)} and {list(b)}; layers of up to {outputs} x {inputs}"
                    f" and rank {r} need [{r}, {inputs}] and [{outputs}, {r}]"
                )

    def folded(self, module: str, weight: "Tensor", *, transposed: bool = False) -> "Tensor":
        """Return what a module's float32 weight `[out, in]` becomes; `transposed`: it is kept as `[in, out]` (`Conv1D`).

        Raises:
            VerificationError: the result is not finite.
        """
        parts = {name: read_tensor(stored).float() for name, stored in self.modules[module].items()}
        if self.settings.kind == "VeRa":
            delta = self._vera(parts, weight.T if transposed else weight)
            delta = delta.T if transposed else delta
        else:
            product = parts["B"] @ parts["A"]
            delta = (product.T if transposed else product).mul_(self.settings.scaling(module))
        folded = weight + delta if transposed else delta.add_(weight)  # in place: a copy less of the largest layer
        if self.settings.kind == "DoRa":
            folded = _dora(weight, delta, parts["magnitude"], folded, transposed=transposed)
        if not all_finite(folded):
            raise VerificationError(f"{module}: the folded weight is not finite; the adapter is broken")
        return folded

    def _vera(self, parts: Mapping[str, "Tensor"], weight: "Tensor") -> "Tensor":
        outputs, inputs = weight.shape
        down, up = self._projections
        return (parts["b"].unsqueeze(-1) * up[:outputs, :]) @ (parts["d"].unsqueeze(-1) * down[:, :inputs])

    @cached_property
    def _projections(self) -> tuple["Tensor", "Tensor"]:
        if self.shared:
            return read_tensor(self.shared["A"]).float(), read_tensor(self.shared["B"]).float()
        key = self.settings.projection_prng_key
        if key is None or 0 in self.largest:
            raise UsageError(f"{self.folder}: VeRA's projections are not stored and cannot be drawn: no projection_prng_key")
        return draw_projections(key, self.settings.r, *self.largest)


def read_adapter_folder(folder: Path, *, largest: tuple[int, int] = (0, 0)) -> FolderAdapter:
    """Return the adapter of a folder; only headers are read.

    Raises:
        UsageError: a file is missing, damaged or pickled, or the settings cannot be folded.
        VerificationError: tensors are missing, unknown, or there are none.
    """
    settings = read_settings(folder)
    index = read_tensor_index(folder, stem="adapter_model")
    if not index.tensors:
        raise VerificationError(f"{folder}: the adapter holds no tensors")
    endings = PARTS[settings.kind]
    modules: dict[str, dict[str, StoredTensor]] = {}
    saved: dict[str, StoredTensor] = {}
    shared: dict[str, StoredTensor] = {}
    unknown = []
    for key, stored in index.tensors.items():
        ending = next((ending for ending in endings if key.endswith(ending)), None)
        if stored.dtype not in FLOATS:
            raise VerificationError(f"{folder}: {key} is stored as {stored.dtype}; adapters are floating point")
        if key in SHARED and settings.kind == "VeRa":
            shared[SHARED[key]] = stored
        elif not key.startswith(PREFIX) or (_is_adapter_key(key) and ending is None):
            unknown.append(key)
        elif ending is not None:
            modules.setdefault(key.removeprefix(PREFIX).removesuffix(ending), {})[endings[ending]] = stored
        else:
            saved[key.removeprefix(PREFIX)] = stored
    if unknown:
        raise VerificationError(
            f"{folder}: {counted(len(unknown), 'tensor')} not those of a {settings.kind} adapter as PEFT stores it:"
            f" {', '.join(sorted(unknown)[:SHOWN])}; they were renamed, or belong to another kind"
        )
    missing = [f"{name}{end}" for name, parts in modules.items() for end, part in endings.items() if part not in parts]
    if missing:
        raise VerificationError(
            f"{folder}: {counted(len(missing), 'tensor')} of the adapter missing, e.g. {PREFIX}{missing[0]}"
        )
    if settings.kind == "VeRa" and len(shared) == 1:
        raise VerificationError(f"{folder}: one of the shared projections base_model.vera_A and base_model.vera_B is missing")
    if settings.kind == "VeRa" and settings.save_projection and not shared:
        raise VerificationError(f"{folder}: save_projection is true, but base_model.vera_A and base_model.vera_B are missing")
    return FolderAdapter(folder=folder, settings=settings, modules=modules, saved=saved, shared=shared, largest=largest)


def _is_adapter_key(key: str) -> bool:
    return any(mark in key for mark in (".lora_", ".vera_", "base_layer", ".modules_to_save.", ".trainable_tokens"))


def _dora(weight: "Tensor", delta: "Tensor", magnitude: "Tensor", direction: "Tensor", *, transposed: bool) -> "Tensor":
    """Return magnitude · (W + ΔW) / ||W + ΔW||, row by row (DoRA, arXiv:2402.09353)."""
    import torch

    norm = torch.linalg.norm(weight.T + delta.T if transposed else direction, dim=1)
    factor = (magnitude / norm).view(-1, 1)
    folded: Tensor = (factor.T if transposed else factor) * direction
    return folded


def draw_projections(key: int, r: int, outputs: int, inputs: int) -> tuple["Tensor", "Tensor"]:
    """Return VeRA's frozen projections `A` `[r, inputs]` and `B` `[outputs, r]` as PEFT draws them from a seed.

    Kaiming uniform, A first, from one CPU generator. The numbers are torch's: another release may draw others, which is why
    adapters trained here store them.
    """
    import torch

    generator = torch.Generator(device="cpu").manual_seed(key)
    drawn = []
    for shape in ((r, inputs), (outputs, r)):
        bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(shape[1]))
        drawn.append(torch.empty(shape).uniform_(-bound, bound, generator=generator))
    return drawn[0], drawn[1]


def adapter_hash(folder: Path) -> str:
    """Return the sha256 over configuration and weights of an adapter folder."""
    parts = [sha256_of(folder / name) for name in ("adapter_config.json", ADAPTER_WEIGHTS)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
