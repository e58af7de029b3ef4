"""What will a run take, in memory and time, before a weight is read?

    shape = read_shape("Qwen/Qwen3-8B")
    forecast = forecast_run(shape, RunSettings(plan=plan, device="cuda"), CONSTANTS)

Bytes are counted item by item from what this project's training step keeps (`quantkit.training`), not taken from a rule of
thumb per parameter: those are off by two to six times as soon as vocabulary, length or checkpointing change. What cannot be
counted (libraries, allocators, CUDA's context) stands in `constants`, each with its source. Importing this imports no torch.
"""

from quantkit.forecasting.constants import CONSTANTS, Constants
from quantkit.forecasting.forecast import Forecast, forecast_run
from quantkit.forecasting.moments import Moment
from quantkit.forecasting.reading import read_shape
from quantkit.forecasting.settings import RunSettings
from quantkit.forecasting.shape import LinearShape, ModelShape

__all__ = [
    "CONSTANTS",
    "Constants",
    "Forecast",
    "LinearShape",
    "ModelShape",
    "Moment",
    "RunSettings",
    "forecast_run",
    "read_shape",
]
