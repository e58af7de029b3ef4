"""R5: a name or a spec that is written reads back as the same one, and no two of them are written alike."""

import json
from collections.abc import Callable
from dataclasses import fields
from itertools import product
from typing import Any, Literal, get_args, get_origin, get_type_hints

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantkit.errors import UsageError
from quantkit.methods import installed_methods
from quantkit.plan import PlanContext, Stage
from quantkit.spec import QuantizationSpec
from quantkit_registry.names import ArtifactName, format_name, parse_name
from tests.registry.test_names import WORDS, names
from tests.reliability.promises import FULL, amount
from tests.test_spec import specs


def tried(strategy: st.SearchStrategy[Any], holds: Callable[[Any], None], examples: int) -> int:
    """Try a property on this many examples, or more; return how many it held for."""
    held = 0

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=not FULL,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(strategy)
    def each(example: Any) -> None:
        nonlocal held
        holds(example)
        held += 1

    each()
    assert held >= examples
    return held


def test_a_name_reads_back_and_belongs_to_one_spec(figure: Any) -> None:
    seen: dict[str, ArtifactName] = {}

    def holds(name: ArtifactName) -> None:
        text = format_name(name)
        assert parse_name(text) == name
        assert seen.setdefault(text, name) == name

    held = tried(names(), holds, amount(1000, 20_000))
    assert len(seen) > held / 4
    figure("R5", held, held)


def test_a_spec_reads_back_from_json(figure: Any) -> None:
    seen: dict[str, QuantizationSpec] = {}

    def holds(spec: QuantizationSpec) -> None:
        text = json.dumps(spec.to_dict())
        assert QuantizationSpec.from_dict(json.loads(text)) == spec
        assert seen.setdefault(text, spec) == spec

    held = tried(specs, holds, amount(500, 20_000))
    figure("R5", held, held)


def test_what_looks_like_a_name_is_one_or_is_refused(figure: Any) -> None:
    """Words of names in any order, with any glue: read to the same text, or a usage error of one line."""

    def holds(text: str) -> None:
        try:
            read = format_name(parse_name(text))
        except UsageError as error:
            refused = str(error)
        else:
            assert read == text
            return
        assert len(refused.splitlines()) == 1, refused

    lookalikes = st.lists(st.sampled_from(WORDS), max_size=12).map(lambda words: f"M-{'_'.join(words)}")
    glued = st.lists(st.sampled_from((*WORDS, "-", "_", ".")), max_size=14).map("".join)
    held = tried(lookalikes | glued | st.text(max_size=300), holds, amount(1200, 60_000))
    figure("R5", held, held)


def test_two_plans_of_a_method_have_one_name_only_if_their_weights_are_alike(figure: Any) -> None:
    """Every choice that the options of every shipped method offer, at every stage."""
    methods, pairs = installed_methods(), 0
    for method in methods.names:
        info = methods.info(method)
        choices = {option.name: values for option in fields(info.options) if (values := _values(info.options, option))}
        for stage in info.stages:
            seen: dict[str, QuantizationSpec] = {}
            for chosen in product(*choices.values()):
                try:
                    plan = methods.plan(method, dict(zip(choices, chosen, strict=True)), PlanContext(stage=stage))
                except UsageError:
                    continue
                adapter = plan.adapter if stage is Stage.BASE else PlanContext().adapter
                name = format_name(ArtifactName.of(base="M", dataset="d", adapter=adapter, recipe=plan.spec))
                assert seen.setdefault(name, plan.spec) == plan.spec, (method, name)
                pairs += 1
    figure("R5", pairs, pairs)


def _values(cls: type[Any], option: Any) -> tuple[Any, ...]:
    """Return the values of an option to try: the choices of a literal, both of a switch, three group sizes."""
    hint = get_type_hints(cls)[option.name]
    if get_origin(hint) is Literal:
        return get_args(hint)
    if hint is bool:
        return (True, False)
    return (32, 64, -1) if option.name == "group_size" else ()
