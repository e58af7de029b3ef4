"""What does a model that is evaluated compute in, and by which kernels? One rule for all, so that results compare.

The rule for data types is `quantkit.computing`'s. Integer kernels are asked for, never chosen: their sums are exact where the
loader's arithmetic rounds, so results with and without them are told apart.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quantkit.errors import UsageError
from quantkit_tools.evaluation.flags import Flags

if TYPE_CHECKING:
    from quantkit.spec import QuantizationSpec
    from quantkit_tools.opening import Opened

INTEGER = {"weights_dtype": "int8", "activations_bits": 8, "group_size": -1, "symmetric": True, "format": "compressed-tensors"}
"""What a spec says of weights that the integer kernels multiply."""
REASON, KERNELS = "dtype_reason", "integer_kernels"
"""Settings of a result: why it was computed in its data type; there, and true, where integer kernels were used."""


def load_opened(flags: Flags, opened: "Opened") -> Any:
    """Load a model or adapter that is to be evaluated, or that one is compared with."""
    from quantkit.methods import installed_methods
    from quantkit.modeling import load_source, resolve_device

    return load_source(
        opened.source,
        installed_methods(),
        device=resolve_device(flags.device),
        trust_remote_code=flags.trust_remote_code,
        compute_dtype=flags.dtype,
    )


def check_computing(flags: Flags, opened: "Opened") -> None:
    """Refuse, before weights are read, a data type that is none and kernels that do not fit.

    Raises:
        UsageError: says what was asked for and what is there.
    """
    from quantkit.computing import check_dtype

    check_dtype(flags.dtype)
    if not flags.integer_kernels:
        return
    from quantkit.modeling import resolve_device

    if (device := resolve_device(flags.device)) != "cpu":
        raise UsageError(f"--integer-kernels run on the CPU, and this is to be evaluated on {device}; add --device cpu")
    if opened.detection.kind == "adapter" or not _fits(opened.source.spec):
        what = "an adapter" if opened.detection.kind == "adapter" else opened.source.spec.method
        raise UsageError(
            f"{opened.name}: --integer-kernels are for whole models with int8 weights, one scale per row, and int8 activations"
            f" (DynamicINT8, SmoothQuant); this is {what}; leave the flag out"
        )


def settle(flags: Flags, model: Any) -> dict[str, Any]:
    """Exchange layers for integer kernels where they were asked for; return what a result says about its arithmetic."""
    from quantkit.computing import why

    said: dict[str, Any] = {REASON: why(model, flags.dtype, str(model.device))}
    if flags.integer_kernels:
        from quantkit.backends.integer_kernels import use_integer_kernels

        use_integer_kernels(model)
        said[KERNELS] = True
    return said


def computed_otherwise(flags: Flags, settings: Mapping[str, Any]) -> str:
    """Return why a filed result is not what these flags ask for; empty where it is. A data type must be asked for to count."""
    if flags.dtype != "auto" and settings.get("dtype") != flags.dtype:
        return f"its result has dtype {settings.get('dtype')!r}, not {flags.dtype!r}"
    if settings.get(KERNELS, False) != flags.integer_kernels:
        return f"its result was computed with{'out' if flags.integer_kernels else ''} integer kernels"
    return ""


def _fits(spec: "QuantizationSpec") -> bool:
    return all(getattr(spec, name) == value for name, value in INTEGER.items())
