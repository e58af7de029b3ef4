"""GPTQModel: GPTQ and AWQ with its defaults, saved in the GPTQ and AWQ formats."""

from gptqmodel import GPTQModel, QuantizeConfig
from gptqmodel.quantization import METHOD

from peers.common import Job, Meter, read_job, write_answer


def settings(job: Job) -> QuantizeConfig:
    """Return its configuration; only bits, group size and method are set."""
    method = METHOD.AWQ if job.method == "AWQ" else METHOD.GPTQ
    return QuantizeConfig(bits=job.weights_bits, group_size=job.group_size, quant_method=method)


def main() -> None:
    """Quantize and save."""
    job, meter = read_job(), Meter()
    model = GPTQModel.load(job.model, settings(job), device="cpu")
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in job.rows]
    with meter.quantizing():
        model.quantize(rows, batch_size=1)
    model.save(job.out)
    write_answer(job, meter)


if __name__ == "__main__":
    main()
