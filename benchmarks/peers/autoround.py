"""auto-round: rounding to nearest with its search of scales (no iterations), and learnt rounding with few.

200 iterations, its default, take hours on two cores; 20 are what fits beside the others. Saved in the GPTQ format.
"""

from pathlib import Path

import torch
from auto_round import AutoRound

from peers.common import Meter, read_job, write_answer

ITERATIONS = {"RTN": 0, "AutoRound, 20 steps": 20}


def main() -> None:
    """Quantize and save."""
    from transformers import AutoTokenizer

    job, meter = read_job(), Meter()
    rounder = AutoRound(
        job.model,
        tokenizer=AutoTokenizer.from_pretrained(job.model),
        scheme="W4A16",
        bits=job.weights_bits,
        group_size=job.group_size,
        iters=ITERATIONS[job.method],
        dataset=[torch.tensor([row]) for row in job.rows],
        seqlen=len(job.rows[0]),
        nsamples=len(job.rows),
        device_map="cpu",
    )
    with meter.quantizing():
        rounder.quantize_and_save(job.out, format="auto_gptq")
    write_answer(job, meter, out=str(next(Path(job.out).rglob("config.json")).parent))  # it may add a folder of its own


if __name__ == "__main__":
    main()
