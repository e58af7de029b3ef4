"""Will there be room for what a run writes? Asked before the model is loaded: after training the answer costs the training.

The least that must fit is counted: the artifact, and one checkpoint where `save_steps` asks for some or adapters are folded in
from the last one. What the forecast of memory calls `disk_bytes` is not used: it holds a checkpoint of every run, and a
quantized base that lies there already when this is asked.
"""

from quantkit.console import warn
from quantkit.errors import UsageError
from quantkit.forecasting.forecast import Forecast
from quantkit.forecasting.optimizers import optimizer_states
from quantkit.saving import SPARE_BYTES, require_space
from quantkit_tools.planning import RunPlan

BYTES_OF_A_TRAINED_WEIGHT = 4


def require_disk(run: RunPlan, forecast: Forecast) -> None:
    """Stop a run whose result will not fit on the disk, unless it is forced; then it is a warning.

    Raises:
        UsageError: names what is needed and what is free.
    """
    try:
        require_space(run.target.parent, least_bytes(run, forecast) + SPARE_BYTES)
    except UsageError as error:
        if not run.config.force:
            raise UsageError(f"{error}, or start all the same with --force") from None
        warn(f"{error}; started all the same, as force is set")


def least_bytes(run: RunPlan, forecast: Forecast) -> int:
    """Return the bytes of the weights that are stored, and of one checkpoint where the run writes any."""
    trained = forecast.trained_parameters
    kept = BYTES_OF_A_TRAINED_WEIGHT * trained
    stored = forecast.shape.parameters * run.stored.weights_bits // 8 if run.kind == "model" else kept
    if not run.config.save_steps and not run.merges:
        return stored
    settings = forecast.settings
    return stored + kept + optimizer_states(settings.optim).size(trained, settings.trained_bytes)
