"""What does a sweep take on disk, and which of its runs make the same quantized base? Counted from shapes alone.

Times are not guessed from shapes: they depend on the machine, and are taken from what earlier runs of the same sweep took.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from quantkit.plan import AdapterPlan
from quantkit.spec import DENSE_BITS
from quantkit_tools.planning import RunPlan
from quantkit_tools.sizes import Sizes

ADAPTER_BYTES = 4
"""Bytes of an adapter's weight; they are trained and stored in float32."""


@dataclass(slots=True)
class Costs:
    """Sizes of what runs leave on disk; each base's skeleton is read once."""

    _skeletons: dict[tuple[str, str | None], Any] = field(default_factory=dict)

    def check_base(self, run: RunPlan) -> None:
        """Refuse a base that the method cannot quantize, e.g. where the group size does not divide a layer's columns.

        Raises:
            UsageError: names the layer and the sizes that fit.
        """
        if run.quantizes_base:
            self._base_bytes(run)

    def base_key(self, run: RunPlan) -> str | None:
        """Return what decides the quantized base that a run trains on, as text; None where it makes none of its own."""
        if not run.quantizes_base:
            return None
        config = run.config
        text = (config.dataset_name, config.trunc_train, config.max_length, config.system_prompt)
        drawn = (config.seed, config.calib_rows, config.calib_length)
        return json.dumps([run.base, run.revision, run.plan.spec.to_dict(), dict(run.plan.options), text, drawn])

    def train_bytes(self, run: RunPlan, *, with_base: bool) -> int:
        """Return about what a training leaves on disk, its quantized base included if it is the one to make it."""
        base = self._base_bytes(run) if with_base else 0
        return base + (self.adapter_bytes(run) if run.kind == "adapter" else self.model_bytes(run))

    def model_bytes(self, run: RunPlan) -> int:
        """Return about the size of a saved model's weights."""
        if run.stored.is_quantized:
            return Sizes.of(self._skeleton(run), run.stored, (), DENSE_BITS[run.base_dtype] // 8).stored
        return run.parameters * run.stored.weights_bits // 8

    def adapter_bytes(self, run: RunPlan) -> int:
        """Return about the size of a kept adapter's weights."""
        from quantkit.layers import features, linear_layers
        from quantkit.modeling import resolve_targets

        model = self._skeleton(run)
        layers = linear_layers(model)
        adapter = run.plan.adapter
        named = [name for name in resolve_targets(model, adapter.target_modules) if name in layers]
        shapes = [features(layers[name]) for name in named]
        return ADAPTER_BYTES * adapter_weights(adapter, shapes)

    def _base_bytes(self, run: RunPlan) -> int:
        return Sizes.of(self._skeleton(run), run.plan.spec, (), DENSE_BITS[run.base_dtype] // 8).stored

    def _skeleton(self, run: RunPlan) -> Any:
        from quantkit.skeleton import read_skeleton

        config = run.config
        key = (config.model_name_or_path, config.revision)
        if key not in self._skeletons:
            self._skeletons[key] = read_skeleton(key[0], revision=key[1], trust_remote_code=config.trust_remote_code).model
        return self._skeletons[key]


def adapter_weights(adapter: AdapterPlan, shapes: list[tuple[int, int]]) -> int:
    """Return the number of trained weights on layers of these (in, out) shapes.

    LoRA: A and B; DoRA: a magnitude per output besides; VeRA (arXiv:2310.11454): two vectors, and one shared projection.

    >>> adapter_weights(AdapterPlan(kind="LoRa", r=4), [(8, 16)]), adapter_weights(AdapterPlan(kind="DoRa", r=4), [(8, 16)])
    (96, 112)
    """
    if adapter.kind == "VeRa":
        widest = (max((one for one, _ in shapes), default=0), max((other for _, other in shapes), default=0))
        return sum(outputs + adapter.r for _, outputs in shapes) + adapter.r * sum(widest)
    magnitudes = sum(outputs for _, outputs in shapes) if adapter.kind == "DoRa" else 0
    return adapter.r * sum(inputs + outputs for inputs, outputs in shapes) + magnitudes
