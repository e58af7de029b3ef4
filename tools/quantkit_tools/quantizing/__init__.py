"""What `quantkit quantize` and the quantized base of a run are made of: a plan, the texts, the making, the gate's report."""
