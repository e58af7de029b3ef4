"""How is a forecast shown? The moments of the run, what the largest of them is made of, and what follows from it."""

from collections.abc import Iterable, Mapping
from typing import Any, get_args

from quantkit.backends.vllm_rules import check_servable_activations, notes_on_weights
from quantkit.console import Column, format_bytes, format_duration, say, table, warn
from quantkit.forecasting.constants import GIB, MIB, Constants
from quantkit.forecasting.folding import streaming_bytes
from quantkit.forecasting.forecast import Forecast
from quantkit.forecasting.settings import RunSettings
from quantkit.forecasting.timing import Timing
from quantkit.layout import counted
from quantkit.plan import PEFT_KINDS, PeftKind, QuantizationPlan
from quantkit_tools.plan_settings import Asked, Cell

MOMENTS = {
    "quantize": "quantize the base",
    "load": "load the base",
    "start": "ready to train",
    "trial": "layouts of rows, tried",
    "loss": "loss of the fullest batch",
    "backward": "backward pass",
    "step": "optimizer step",
    "end": "weights as they were loaded",
    "observe": "ask the trained model",
    "merge": "fold in",
    "compare": "ask the folded model",
    "save": "save, load again, compare",
}
"""Moment → what happens."""
FASTER = "the faster of bfloat16 and float32"
"""What training on a CPU computes in unless told: `quantkit.training.precision` times both when it begins."""
GUESS = "a guess: not calibrated on any run"
"""What a forecast is whose constants were fitted to nothing."""


def show_run(forecast: Forecast, time: Timing, *, remarks: Iterable[str] = (), timed: bool = False) -> None:
    """Print one run's forecast; `timed`: training will choose its arithmetic by timing both."""
    shape, settings, largest = forecast.shape, forecast.settings, forecast.largest
    rows = [
        [
            MOMENTS[moment.name],
            format_bytes(moment.size_bytes),
            format_bytes(forecast.total(moment)),
            "peak" if moment is largest else "",
        ]
        for moment in forecast.moments
        if moment.items
    ]
    columns = [Column("moment"), Column("counted", "right"), Column(_whole(settings.device), "right"), Column("")]
    title = f"{shape.name} ({parameters_text(shape.parameters)}), {settings.plan.method}, {settings.adapter.label}"
    table(title, columns, rows)
    table(
        f"At the peak: {MOMENTS[largest.name]}",
        [Column("item"), Column("size", "right"), Column("share", "right")],
        [[name, format_bytes(size), f"{size / forecast.peak_bytes:.0%}"] for name, size in _items(forecast)],
    )
    if forecast.devices:
        rows = [
            [f"{'process' if settings.device == 'cpu' else 'GPU'} {item['device']}", format_bytes(item["size_bytes"])]
            for item in forecast.devices
        ]
        table(f"Training on {settings.processes} ({settings.strategy})", ["device", Column("counted", "right")], rows)
    table("In all", ["", ""], _summary(forecast, time, remarks, timed))


def _items(forecast: Forecast) -> Iterable[tuple[str, int]]:
    """Yield what the peak is made of, the largest first, small things together, then what is not counted."""
    largest = forecast.largest
    items = sorted(largest.items.items(), key=lambda item: -item[1])
    yield from (item for item in items if item[1] >= MIB)
    if small := sum(size for _, size in items if size < MIB):
        yield "smaller ones", small
    yield ("libraries" if forecast.settings.device == "cpu" else "CUDA's context"), forecast.beyond
    if computing := forecast.computing(largest):
        yield "compiled products, holes of the heap", computing
    yield "held by the allocator", forecast.held(largest)


def _summary(forecast: Forecast, time: Timing, remarks: Iterable[str], timed: bool) -> list[list[object]]:
    settings = forecast.settings
    step_s, run_s = time.seconds_of(settings.processes if settings.strategy in ("ddp", "fsdp") else 1)
    arithmetic = f"{FASTER} (counted: {settings.arithmetic})" if timed else settings.arithmetic
    rows: list[list[object]] = [
        ["peak", peak_text(forecast)],
        ["settings", settings_text(settings)],
        ["trains", f"{forecast.trained_parameters:,} parameters, computing in {arithmetic} on {settings.device}"],
        ["writes", f"{format_bytes(forecast.disk_bytes)} to disk, one checkpoint counted"],
    ]
    if settings.folds_in_memory:
        rows.append(
            ["merge", f"in memory, all of it in float32: {format_bytes(forecast.moment('merge').size_bytes)} beside libraries"]
        )
    elif settings.merges:
        rows.append(["merge", f"tensor by tensor: {format_bytes(streaming_bytes(forecast.shape))} beside libraries and logits"])
    rows += [["on the CPU", f"{format_bytes(forecast.host_bytes)}: {_beside(settings)}"]] if forecast.host_bytes else []
    rows += [["arithmetic", f"{time.flops_per_token / 1e9:,.2f} GFLOP a token"]]
    if time.rate is None or step_s is None:
        rows.append(["time", "not known: no run here kept a forecast; --measure, or --tokens-per-s N"])
    else:
        run = f", {format_duration(run_s)} for {counted(time.steps, 'step')}" if run_s is not None and time.steps else ""
        rows.append(["time", f"{format_duration(step_s)} a step{run} ({time.rate.source})"])
    rows += [["note", note] for note in (*forecast.notes, *remarks)]
    return rows


def _beside(settings: RunSettings) -> str:
    """Return what lies on the CPU beside GPUs, in words."""
    if settings.strategy == "fsdp":
        return f"the base, loaded by each of the {settings.processes} processes before it is split"
    return " and ".join(
        [
            *(["activations"] if settings.offload else []),
            *(["paged optimizer states"] if settings.optim.startswith("paged") else []),
        ]
    )


def parameters_text(parameters: int) -> str:
    """Return a number of parameters as people say it.

    >>> parameters_text(8_190_735_360), parameters_text(134_515_008)
    ('8.19 B', '134.5 M')
    """
    return f"{parameters / 1e9:,.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:,.1f} M"


def settings_text(settings: RunSettings) -> str:
    """Return what of the settings decides memory, in words."""
    parts = [f"{counted(settings.rows, 'row')} of up to {counted(settings.length, 'token')}"]
    parts += [f"{settings.accumulation} batches a step"] if settings.accumulation > 1 else []
    parts += [f"recompute {settings.recompute}", settings.optim]
    parts += ["activations offloaded"] if settings.offload else []
    parts += [f"{settings.processes} processes ({settings.strategy})"] if settings.processes > 1 else []
    return ", ".join(parts)


def tell_notes(plan: QuantizationPlan, model_config: Mapping[str, Any], *, dense: bool) -> None:
    """Print a plan's notes; those on who serves its weights are no warning where the model that is saved is `dense`."""
    of_the_base = (*notes_on_weights(plan.spec, model_config), *check_servable_activations(plan.spec)) if dense else ()
    for note in plan.notes:
        if note in of_the_base:
            say(f"note: of the base while it is trained on, not of what is saved: {note}")
        else:
            warn(note)


def peak_text(forecast: Forecast) -> str:
    """Return the peak with its interval, and how often that holds."""
    return f"{format_bytes(forecast.peak_bytes)}, {interval_text(forecast)}"


def interval_text(forecast: Forecast) -> str:
    """Return between what the peak is expected, and how often that holds."""
    low, high = map(format_bytes, forecast.interval)
    return f"between {low} and {high} ({coverage(forecast.constants)})"


def coverage(constants: Constants) -> str:
    """Return how often the interval holds, as far as that was measured."""
    if constants.coverage is None:
        return GUESS
    if constants.runs_before:
        told = f"{constants.runs} measured here and {constants.runs_before} before"
        return f"which should hold for {constants.coverage:.0%} of runs, by {told}"
    return f"which held for {constants.coverage:.0%} of {constants.runs} measured runs"


def show_cells(question: Asked, found: list[Cell]) -> None:
    """Print all methods and adapters, and why some cells are empty."""
    by_method: dict[str, dict[str, Cell]] = {}
    reasons: dict[str, dict[str, list[str]]] = {}
    for cell in found:
        by_method.setdefault(cell.method, {})[cell.kind] = cell
        if cell.reason:
            reason = cell.reason.replace(f"but {cell.method} quantizes", "but the method quantizes")
            reasons.setdefault(reason, {}).setdefault(cell.method, []).append(cell.kind)
    rows = [[method, *(_cell_text(kinds[kind]) for kind in PEFT_KINDS), _base(kinds)] for method, kinds in by_method.items()]
    kinds = [Column(question.adapter(kind).label, "right") for kind in get_args(PeftKind)]
    shape, device = question.shape, question.device
    table(
        f"{shape.name}: {parameters_text(shape.parameters)} parameters, {device}",
        [Column("GiB"), *kinds, Column("the base while training", priority=1)],
        rows,
    )
    for line in _caption(question, found):
        say(line, style="dim")
    for text in (*(option.text for option in question.shared), *dict.fromkeys(cell.note for cell in found if cell.note)):
        say(text)
    if reasons:
        table("Not possible", ["what", "why"], [[_which(cells), reason] for reason, cells in reasons.items()])


def _caption(question: Asked, found: list[Cell]) -> Iterable[str]:
    some = next((cell.forecast for cell in found if cell.forecast is not None and cell.kind != "NoPeft"), None)
    if some is None:
        return
    yield f"peak of training, {_whole(question.device)}: {settings_text(some.settings)}"
    if some.settings.merges:
        yield (
            f"adapters are folded in at a run's end, a tensor at a time, in {format_bytes(streaming_bytes(some.shape))} beside"
            " libraries"
        )
    known = question.constants.coverage is not None
    said = f"forecasts come with an interval, {coverage(question.constants)}" if known else f"forecasts are {GUESS}"
    yield f"{said}; one run in detail: --quant-method NAME"
    yield from question.remarks


def _which(cells: dict[str, list[str]]) -> str:
    """Return the cells of one reason.

    >>> _which({"GPTQ": ["LoRa", "DoRa"], "AWQ": ["LoRa", "DoRa"], "QLORA": ["NoPeft"]})
    'GPTQ, AWQ: LoRa, DoRa; QLORA: NoPeft'
    """
    methods: dict[tuple[str, ...], list[str]] = {}
    for method, kinds in cells.items():
        methods.setdefault(tuple(kinds), []).append(method)
    parts = [(names, "all" if len(kinds) == len(PEFT_KINDS) else ", ".join(kinds)) for kinds, names in methods.items()]
    return "; ".join(f"{', '.join(names)}: {kinds}" for names, kinds in parts)


def _cell_text(cell: Cell) -> str | None:
    if cell.forecast is None:
        return None
    return f"{cell.forecast.total(cell.forecast.training) / GIB:,.2f}" if cell.trained == cell.kind else f"as {cell.trained}"


def _base(kinds: dict[str, Cell]) -> str | None:
    """Return how a method's base is held while adapters are trained on it."""
    found: Any = next((cell.forecast for cell in kinds.values() if cell.forecast is not None), None)
    adapted = next((cell.forecast for kind, cell in kinds.items() if cell.forecast is not None and kind != "NoPeft"), found)
    if adapted is None:
        return None
    settings = adapted.settings
    name = str(next(iter(adapted.moment("step").items)))
    return name if settings.plan.spec.is_quantized else f"{name} in {settings.held_dtype(adapted.shape.dtype)}"


def _whole(device: str) -> str:
    return "resident" if device == "cpu" else "of the GPU"
