"""Rows and a prepared model to trained weights, with nothing silent on the way."""

from quantkit.training.result import TrainingResult
from quantkit.training.run import train

__all__ = ["TrainingResult", "train"]
