"""hqq: its optimiser with its defaults, as `AutoHQQHFModel` applies it; the dequantized weights are evaluated.

Its own file format cannot be loaded by transformers, so dense weights on its grid stand for it.
"""

import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from hqq.models.hf.base import AutoHQQHFModel

from peers.common import Meter, load_model, read_job, save_dense, write_answer


def main() -> None:
    """Quantize, dequantize, save."""
    job, meter = read_job(), Meter()
    model, _ = load_model(job)
    dtype = next(model.parameters()).dtype
    settings = BaseQuantizeConfig(nbits=job.weights_bits, group_size=job.group_size)
    with meter.quantizing():
        AutoHQQHFModel.quantize_model(model, quant_config=settings, compute_dtype=dtype, device="cpu")
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, HQQLinear)}
    stored = weights = 0
    dense = {}
    for name, layer in layers.items():
        dense[name] = layer.dequantize()
        weights += dense[name].numel()
        stored += layer.W_q.nbytes + sum(layer.meta[key].nbytes for key in ("scale", "zero"))
    with torch.no_grad():
        save_dense(job, dense)
    write_answer(job, meter, bits_per_weight=stored * 8 / weights)


if __name__ == "__main__":
    main()
