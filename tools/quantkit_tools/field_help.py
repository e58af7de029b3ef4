"""Which text does a flag's help show? The docstring under the field that it stands for, as one paragraph.

tyro reads these docstrings too, but takes the end of a source line for the end of a line of the help, wherever the next one is
indented, as in every docstring of more than one line.
"""

import ast
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import field, fields, make_dataclass
from itertools import pairwise
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro

Flags = TypeVar("Flags")


def field_docstrings(cls: type[Any]) -> Mapping[str, str]:
    """Return field → the docstring that stands under it in the class's source, inherited ones included."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue  # built-in classes, and classes without a source file
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for item, below in pairwise(body):
            match item, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str() as text)):
                    found[name] = " ".join(text.split())
    return found


def with_help(cls: type[Flags]) -> type[Flags]:
    """Return a subclass of a frozen dataclass that tells tyro each field's help."""
    texts, hints = field_docstrings(cls), get_type_hints(cls, include_extras=True)
    shown: list[Any] = []
    for item in fields(cls):  # type: ignore[arg-type]
        kind = Annotated[hints[item.name], tyro.conf.arg(help=texts[item.name])] if item.name in texts else hints[item.name]
        shown.append((item.name, kind, field(default=item.default, default_factory=item.default_factory)))
    about = {"__doc__": cls.__doc__, "__module__": cls.__module__}
    return make_dataclass(cls.__name__, shown, bases=(cls,), namespace=about, frozen=True)
