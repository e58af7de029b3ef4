"""At which rate will a run go? As its flags say, as a product here is measured, or as the newest run on this machine went."""

from quantkit.errors import QuantkitError
from quantkit.forecasting.settings import RunSettings
from quantkit.forecasting.timing import Rate, Timing, measured_rate, rate_of_tokens, timing
from quantkit_registry.store import Registry
from quantkit_tools.plan_settings import Asked


def rate_for(question: Asked, settings: RunSettings, *, given: float | None, measure: bool) -> Timing:
    """Return the time of a run, its rate None where none is known."""
    if given is not None:
        rate: Rate | None = rate_of_tokens(given, question.shape, settings)
    elif measure:
        rate = measured_rate(settings.device, settings.arithmetic)
    else:
        rate = earlier_rate(question.device)
    return timing(question.shape, settings, rate)


def earlier_rate(device: str) -> Rate | None:
    """Return the rate of the newest run in the registry that trained on this kind of device and kept a forecast."""
    try:
        known = [item for item in Registry().artifacts() if item.record is not None]
    except QuantkitError:
        return None
    for artifact in sorted(known, key=lambda item: item.record.created_at if item.record else "", reverse=True):
        record = artifact.record
        if record is None:
            continue
        forecast, tokens = record.memory.get("forecast"), record.training.get("tokens_per_s")
        if not isinstance(forecast, dict) or not isinstance(tokens, int | float):
            continue
        flops = forecast.get("flops_per_token")
        if isinstance(flops, int | float) and forecast.get("settings", {}).get("device") == device:
            return Rate(tokens * flops, f"the rate of {artifact.name}: {tokens:,.0f} tokens/s")
    return None
