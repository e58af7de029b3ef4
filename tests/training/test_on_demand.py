"""Is the Trainer there without libraries that nobody asked for, and do those come when somebody asks?"""

import subprocess
import sys
from importlib.util import find_spec

import pytest

CODE = """
import sys
from quantkit.training import resumable
from transformers import trainer
heavy = {"datasets", "pandas", "pyarrow"}
print(sorted(heavy & sys.modules.keys()), issubclass(resumable.ResumableTrainer, trainer.Trainer))
asked = trainer.datasets.Dataset
import datasets
print(asked is datasets.Dataset, trainer.is_datasets_available())
"""


@pytest.mark.skipif(find_spec("datasets") is None, reason="the library that is not to be imported is not installed")
def test_the_trainer_brings_no_tables_along_and_finds_them_when_it_is_asked_about_one() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.stdout == "[] True\nTrue True\n", done.stderr
