"""Does a chat template come to an end, in little time and memory? Tried in a process of its own before it is used here.

A template is a program that comes with a model. The sandbox keeps it from files and objects, but not from counting to 10^10 or
writing gigabytes. Searching its text for what looks dangerous, the alternative, misses the next way to write the same loop.
"""

import json
import re
import subprocess
import sys
from functools import cache

SECONDS = 1
"""Processor time for a conversation of four turns; real templates take milliseconds."""
PATIENCE_S = 60
MEMORY_BYTES = 1 << 30
LONGEST = 1_000_000
"""Characters of four short turns; real templates write hundreds."""
LARGEST_TEMPLATE = 1 << 20
REASONS = {MemoryError: f"needs more memory than {MEMORY_BYTES >> 20} MiB", RecursionError: "calls itself without end"}
GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
TURNS = (
    [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
    [("user", "a"), ("assistant", "b")],
    [("user", "a")],
)


@cache
def fault_of_template(template: str) -> str:
    """Say why a template must not be rendered; empty where it may, also where it fails in an ordinary way."""
    if len(template) > LARGEST_TEMPLATE:
        return f"it has {len(template)} characters; at most {LARGEST_TEMPLATE} are read"
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", __file__],  # this file alone: jinja2, and nothing else of quantkit
            input=json.dumps({"path": sys.path, "template": template}),
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
    except subprocess.TimeoutExpired:
        return f"it does not end within {PATIENCE_S} seconds"
    if done.returncode < 0:
        return f"it does not end within {SECONDS} s of computing, or needs more memory than {MEMORY_BYTES >> 20} MiB"
    said = done.stdout.strip().splitlines()
    return said[-1] if said else ""


def render(template: str) -> None:
    """Render a few turns as transformers does, within limits, and print what makes the template unfit."""
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    _limit()
    room = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    room.filters["tojson"] = json.dumps
    room.globals |= {"raise_exception": refuse, "strftime_now": lambda _: "26 Jul 2024"}
    for turns in TURNS:
        for ask in (False, True):
            try:
                written = 0
                messages = [{"role": role, "content": content} for role, content in turns]
                for piece in room.from_string(GENERATION.sub("", template)).generate(
                    messages=messages, add_generation_prompt=ask, bos_token="<s>", eos_token="</s>", tools=None, documents=None
                ):
                    written += len(piece)
                    if written > LONGEST:
                        print(f"it writes more than {LONGEST} characters for {len(turns)} short turns")
                        return
            except (MemoryError, OverflowError, RecursionError) as error:
                print(f"it {REASONS.get(type(error), 'counts too far')}")
                return
            except Exception:  # an ordinary failure, which is told where the template is used
                continue


def _limit() -> None:
    try:
        import resource
    except ImportError:  # Windows: the parent's limit on seconds is left
        return
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


if __name__ == "__main__":
    _given = json.loads(sys.stdin.read())
    sys.path[:] = _given["path"]
    render(_given["template"])
