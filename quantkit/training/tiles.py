"""How is the loss taken on many positions without ever holding all their logits?

At 2,250 supervised positions and a vocabulary of 49,152 the logits, their logarithms and their gradient fill 1.3 GB. Here the
head runs on some positions at a time; each tile's gradient is formed with its loss and only the gradient of the hidden states
is kept, so the backward pass has nothing left to do and nothing is computed twice (recomputing tiles costs half as much again).
A plain frozen head works in one piece of memory: 21 MB, and a fifth less time. `torch.nn.functional.linear_cross_entropy` is
nearly as fast when told a good tile size (and ten times slower with its own on a CPU), but knows neither adapters on a head nor
what a model does to its logits.
"""

from collections.abc import Callable
from typing import Any

from quantkit.training.modes import undisturbed

TILE_BYTES = {"cpu": 2**24}
"""Logits of a tile in float32, at most, by device. A CPU took 700 positions of 49,152 in 0.72 of the time that tiles of 64 MiB
take, which its C library maps anew each time, and in 111 MB instead of 164."""
OTHER_TILE_BYTES = 2**26
"""The same on other devices."""
FEWEST = 64
"""Positions of a tile, at least: fewer make poor products."""

Tail = Callable[[Any], Any]
"""What a model does to the output of its head."""


def tile_rows(vocabulary: int, device: str) -> int:
    """Return how many positions make a tile on a device, `cpu` or `cuda`.

    >>> tile_rows(49_152, "cpu"), tile_rows(49_152, "cuda"), tile_rows(262_144, "cpu")
    (85, 341, 64)
    """
    return max(TILE_BYTES.get(device, OTHER_TILE_BYTES) // (4 * vocabulary), FEWEST)


def unchanged(logits: Any) -> Any:
    """Return logits as they are: what most models do to them."""
    return logits


def known_tails(config: Any) -> list[Tail]:
    """Return what models do to the logits of their heads by the names in their configurations, nothing first."""
    import torch

    text = config.get_text_config()
    tails: list[Tail] = [unchanged]
    if cap := getattr(text, "final_logit_softcapping", None) or getattr(text, "logits_soft_cap", None):
        tails.append(lambda logits: torch.tanh(logits / cap) * cap)
    if scale := getattr(text, "logit_scale", None):
        tails.append(lambda logits: logits * scale)
    if divisor := getattr(text, "logits_scaling", None):
        tails.append(lambda logits: logits / divisor)
    return tails


def logits_tail(model: Any, head: Any, *, token_id: int, device: str) -> Tail | None:
    """Return what this model does to the output of its head, found by running one token; None where it is none of these."""
    import torch

    seen: list[Any] = []
    handle = head.register_forward_hook(lambda _module, _arguments, output: seen.append(output))
    try:
        with undisturbed(model), torch.no_grad():
            logits = model(input_ids=torch.tensor([[token_id]], device=device), use_cache=False).logits
    except Exception:  # training itself will say what is wrong with this model
        return None
    finally:
        handle.remove()
    tails = known_tails(model.config) if len(seen) == 1 else []
    return next((tail for tail in tails if torch.equal(tail(seen[0]).to(logits.device), logits)), None)


def full_precision(logits: Any) -> Any:
    """Return logits in float32, or as they are in float64."""
    import torch

    return logits if logits.dtype is torch.float64 else logits.float()


def summed_cross_entropy(logits: Any, targets: Any) -> Any:
    """Return the sum of the cross entropy of logits [positions, vocabulary], float32 or float64, against targets [positions].

    On a CPU `torch.nn.functional.cross_entropy` adds up the exponentials of a vocabulary one after another: at 49,152 every
    loss is 1e-6 nats too low and the gradients of a model are 2e-5 off. A plain sum halves its terms: 1e-8 and 3e-6.
    """
    import torch

    class Summed(torch.autograd.Function):
        """Keeps the logits and the logarithm of each sum."""

        @staticmethod
        def forward(context: Any, scored: Any) -> Any:
            logarithms = torch.logsumexp(scored, 1, keepdim=True)
            context.save_for_backward(scored, logarithms)
            return (logarithms - scored.gather(1, targets[:, None])).sum()

        @staticmethod
        def backward(context: Any, *outer: Any) -> Any:
            scored, logarithms = context.saved_tensors
            gradient = (scored - logarithms).exp_()
            gradient.scatter_add_(1, targets[:, None], torch.full_like(logarithms, -1.0))
            return gradient.mul_(outer[0])

    apply: Any = Summed.apply
    return apply(logits)


def tiled_cross_entropy(head: Any, tail: Tail, hidden: Any, targets: Any) -> Any:
    """Return the summed cross entropy of hidden states [positions, width] against targets [positions]."""
    import torch

    learning = torch.is_grad_enabled()
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    size = vocabulary(head)
    rows = tile_rows(size, hidden.device.type)
    plain = tail is unchanged and type(head) is torch.nn.Linear and not trained
    in_place = (
        plain
        and hidden.dtype is head.weight.dtype
        and hidden.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled(hidden.device.type)
    )

    class TiledLoss(torch.autograd.Function):
        """The loss, with its gradients formed in the forward pass."""

        @staticmethod
        def forward(context: Any, states: Any, *weights: Any) -> Any:
            wanted = [learning and each for each in context.needs_input_grad]
            total = torch.zeros((), dtype=torch.float64, device=states.device)
            gradient = torch.empty_like(states) if wanted[0] else None
            logits = states.new_empty(min(rows, len(states)), size) if in_place and wanted[0] else None
            sums = [torch.zeros_like(weight) for weight in weights]
            for start in range(0, len(states), rows):
                part = slice(start, start + rows)
                if logits is not None and gradient is not None:
                    total += _loss_in_place(head, states[part], targets[part], logits[: len(states) - start], gradient[part])
                    continue
                with torch.set_grad_enabled(any(wanted)):
                    tile = states[part].detach().requires_grad_(wanted[0])
                    scored = full_precision(tail(head(tile.unsqueeze(0)))[0])
                    loss = summed_cross_entropy(scored, targets[part])
                    del scored
                total += loss.detach()
                inputs = [tile, *weights] if wanted[0] else [*weights]
                if not any(wanted):
                    continue
                formed = list(torch.autograd.grad(loss, inputs))
                if gradient is not None:
                    gradient[part] = formed.pop(0)
                for weight_sum in reversed(sums):  # a tile's gradient of the head is gone before the next one's is made
                    weight_sum.add_(formed.pop())
            context.gradients = gradient, sums
            return total if states.dtype is torch.float64 else total.float()

        @staticmethod
        def backward(context: Any, *outer: Any) -> Any:
            gradient, sums = context.gradients
            scale = outer[0]
            context.gradients = None
            return (None if gradient is None else gradient * scale, *(each * scale for each in sums))

    apply: Any = TiledLoss.apply
    return apply(hidden, *trained)


def _loss_in_place(head: Any, states: Any, targets: Any, logits: Any, gradient: Any) -> Any:
    """Return the summed cross entropy of a frozen linear head; write the gradient of `states` [positions, width].

    `logits` [positions, vocabulary] is memory to work in: a fifth of the time goes where each tile asks for new memory.
    """
    import torch

    torch.mm(states, head.weight.t(), out=logits)
    if head.bias is not None:
        logits += head.bias
    places = targets[:, None]
    largest, aimed_at = logits.amax(1, keepdim=True), logits.gather(1, places)
    sums = logits.sub_(largest).exp_().sum(1, keepdim=True)
    logits.div_(sums).scatter_add_(1, places, torch.full_like(aimed_at, -1.0))  # softmax - one at the target
    torch.mm(logits, head.weight, out=gradient)
    return (sums.log() + largest - aimed_at).sum()


def vocabulary(head: Any) -> int:
    """Return how many logits a head gives a position."""
    from quantkit.layers import features, unwrapped

    return features(unwrapped(head))[1]
