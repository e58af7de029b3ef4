"""Fine-tune a language model: edit the constants, then `python Fine-tuning/01_Train.py`.

The same run from the command line: `quantkit train --quant-method QLORA --peft-config LoRa …` (`quantkit train --help`).
"""

MODEL = "demo/model/SmolLM2-135M-Instruct"  # hub id or folder
QUANT_METHOD = "QLORA"  # NoQuant, INT8, BNB4BIT, QLORA, or a plugin's own: `quantkit methods` lists them
PEFT_CONFIG = "LoRa"  # NoPeft, LoRa, DoRa, VeRa
FINETUNING = "SFT"
DATASET_CHOICE = "openmath:demo/data/train.jsonl"  # openmath, squad, arc, boolq, a file, NAME:FILE; None = base snapshot
TRUNC_TRAIN = None  # use only so many rows

lora_r = 16  # None: recommended by model size
merge_after_train = True  # False: keep the adapter and the recipe of its base
merge = "dequantized"  # into the base as trained on; "base": the original 16-bit one; "requantized": stays 4 or 8 bit
keep_lm_head_fp16 = False

learning_rate = 2e-4
num_train_epochs = 1
per_device_train_batch_size = 8
max_length = 512
output_dir = "artifacts"

if __name__ == "__main__":
    import sys

    from quantkit_tools.script import run_script

    sys.exit(run_script(globals(), sys.argv[1:]))
