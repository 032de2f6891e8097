"""What can be registered, with which options, and what is refused."""

from dataclasses import dataclass, make_dataclass, replace
from typing import Literal, Optional
from unittest.mock import patch

import numpy as np
import pytest
import torch

from simsfl import RunConfig, extend
from simsfl.aggregations import Aggregation
from simsfl.config.catalogue import DEFENCES, DOORS, OBJECTIVES
from simsfl.config.registry import RegistrationError, code_of
from simsfl.config.values import check_options, option
from simsfl.data.partition import Partitioner
from simsfl.defences import Defence
from simsfl.objectives import Objective
from simsfl.optimisers import Optimiser
from simsfl.rounds.callback import Callback


class Some(Aggregation):
    """Combines models as usual."""

    def combine(self, models_nP, images_n):
        return models_nP.mean(dim=0)


class Passing(Defence):
    """Sends what there is."""

    def protect(self, smashed, draws):
        return smashed


def test_what_cannot_be_registered():
    class Plain:
        """Is no objective."""

    class Loose(Objective):
        """Has an option, but is no dataclass."""

        weight: float = option(1.0, "A weight.", within=(0, 1))

    @dataclass(frozen=True)
    class Lossless(Objective):
        """Computes nothing."""

    class Misspelt(Objective):
        """Has no loss of this name."""

        def los(self, outputs_nD, targets_nD, memory):
            raise NotImplementedError

    @dataclass(frozen=True)
    class Required(Objective):
        """Has an option without a default."""

        weight: float

        def loss(self, outputs_nD, targets_nD, memory):
            raise NotImplementedError

    for thing, name, problem in (
        (Lossless, "lossless", "'lossless' has no loss; allowed: with a method loss"),
        (Required, "required", "'required' has no default for weight; allowed: option.default, help."),
        (Misspelt, "misspelt", "'misspelt' has no loss; allowed: with a method loss"),
        (Plain, "plain", "'plain' is no subclass of Objective; allowed: one"),
        (lambda: None, "function", "'function' is no subclass of Objective; allowed: one"),
        (Loose, "loose", "'loose' has options, but is no dataclass; allowed: with @dataclass.frozen=True. below"),
        (Plain, Plain, "<class .*Plain'> is no name; allowed: letters, digits, hyphens and underscores"),
        (Loose, "loose+plain", "'loose.plain' is no name; allowed: letters, digits, hyphens and underscores"),
    ):
        with pytest.raises(RegistrationError, match=f"^objective: {problem}$"):
            extend.objective(name)(thing)
        assert name not in OBJECTIVES
    with pytest.raises(RegistrationError, match=r"^head: 'wide' is a class; allowed: a function of a backbone and a l"):
        extend.head("wide")(torch.nn.Linear)
    with pytest.raises(
        RegistrationError, match=r"^objective: targets of 'plain' are 'online'; allowed: Targets.MOMENTUM, "
    ):
        extend.objective("plain", targets="online")
    with pytest.raises(RegistrationError, match=r"^objective: rows of 'plain' are '3'; allowed: a whole number from 1"):
        extend.objective("plain", rows="3")
    with pytest.raises(RegistrationError, match=r"^head of objective plain: 'mpl' is not known .did you mean mlp"):
        extend.objective("plain", head="mpl")


class Protekted(Defence):
    """Defends by a method that nobody calls."""

    def protekt(self, smashed, draws):
        return smashed

    def bytes_up(self, numbers, number_bytes):
        return numbers


class Conbined(Aggregation):
    """Combines by a method that nobody calls."""

    def conbine(self, models_nP, images_n):
        return models_nP[0]


class Idle(Callback):
    """Does nothing."""


class Still(Optimiser):
    """Says nothing of what it remembers."""

    def step_(self, model, weights, gradient, memory, lr):
        weights -= lr * gradient


class Stuck(Optimiser):
    """Takes no step."""

    def size(self, parameters):
        return 0


class Even(Partitioner):
    """Deals nothing."""

    needs_labels = False


@dataclass(frozen=True)
class Sized(Defence):
    """Has an option with the name of a method."""

    size: int = option(3, "Size of a block.", within=(1, 9))

    def protect(self, smashed, draws):
        return smashed


class Helped(Defence):
    """Has a method of its own, whose name is nearly that of one that it leaves out."""

    def protect(self, smashed, draws):
        return self._add(smashed)

    def _add(self, smashed):
        return smashed + 1


@pytest.mark.parametrize(
    ("door", "kind", "problem"),
    [
        (
            "defence",
            Protekted,
            r"has a method protekt, which nobody calls .did you mean protect",
        ),
        (
            "aggregation",
            Conbined,
            r"has a method conbine, which nobody calls .did you mean combine",
        ),
        ("optimizer", Still, "has no size; allowed: with a method size"),
        ("optimizer", Stuck, "has no step_; allowed: with a method step_"),
        ("partition", Even, "has no deal; allowed: with a method deal"),
        ("defence", Sized, "has size as a value, which is a method; allowed: another name"),
        ("callback", Idle, r"defines nothing; allowed: at least one of on_start, on_record, on_checkpoint$"),
    ],
)
def test_a_class_has_to_do_something(door, kind, problem):
    with pytest.raises(RegistrationError, match=f"^{door}: 'odd' {problem}"):
        getattr(extend, door)("odd")(kind)
    assert "odd" not in DOORS[door]


def test_methods_of_its_own_may_have_any_name_that_begins_with_an_underscore():
    with patch.dict(DOORS["defence"]):
        assert extend.defence("helped")(Helped) is Helped


def test_a_default_that_is_no_value_is_refused_where_it_is_written():
    with pytest.raises(ValueError, match=r"^option: a list is no default; allowed: a number, a text, T"):
        option([5], "A list.")


WRONG_OPTIONS = {
    "typing.Literal['a', 'b'] is no type of options; allowed: int, float, str, bool, or one of these | None": (
        Literal["a", "b"],
        option("a", ""),
    ),
    "int | float is no type of options; allowed: int, float, str, bool, or one of these | None": (
        "int | float",
        option(1, ""),
    ),
    "default: 'abc' is not of type float; allowed: float": (float, option("abc", "")),
    "default: 3 is out of range; allowed: 0 to 1": (Optional[int], option(3, "", within=(0, 1))),  # noqa: UP045
    "default: nan is not finite; allowed: a finite number": ("float", option(float("nan"), "")),
    "default: 'c' is not known; allowed: a, b": (str, option("c", "", choices=("a", "b"))),
    "default: 'abc' is not of type int; allowed: int": (int, "abc"),
    "choices is not for type int; allowed: for str": (int, option(1, "", choices=("1", "2"))),
    "within is not for type str; allowed: for int or float": (str, option("a", "", within=(0, 1))),
}
"""What is wrong with a field of a class, its type and its default."""


@pytest.mark.parametrize(("problem", "kind", "default"), [(text, *own) for text, own in WRONG_OPTIONS.items()])
def test_options_that_cannot_be_set_are_refused_when_they_are_registered(problem, kind, default):
    odd = make_dataclass("Odd", [("field", kind, default)], bases=(Some,), frozen=True)
    with pytest.raises(RegistrationError) as caught:
        extend.aggregation("odd")(odd)
    assert str(caught.value) == f"aggregation: 'odd' has an option that cannot be one: Odd.field: {problem}"
    assert "odd" not in DOORS["aggregation"]


def test_the_options_of_simsfl_itself_are_as_those_of_plugins_have_to_be():
    for door in RunConfig().chosen:
        for known in DOORS[door].values():
            check_options(code_of(known).load())


def test_optional_and_numpy_numbers_are_taken():
    kinds = (Optional[float], "Optional[float]", "typing.Optional[float]", "float | None", float | None, "None|float")  # noqa: UP045
    named = [(f"o{n}", kind, option(None, "An option.", within=(0, 9))) for n, kind in enumerate(kinds)]
    named += [("count", int, option(1, "A count.")), ("inner", tuple, (1, 2)), ("free", "float", option(1.0, "Free."))]
    with patch.dict(DOORS["aggregation"]):
        extend.aggregation("free")(make_dataclass("Free", named, bases=(Some,), frozen=True))
        given = {f"aggregation.o{n}": np.float64(0.5) for n in range(len(kinds))}
        config = RunConfig(
            aggregation="free",
            options=given | {"aggregation.count": np.int64(6)},
            clients=np.int64(20),
            lr=np.float32(1),
        )
        assert {type(value) for name, value in config.options.items() if "count" not in name} == {float}
        assert type(config.options["aggregation.count"]) is type(config.clients) is int
        assert type(config.lr) is float
        assert config.with_options({"aggregation.o1": "none"}).options["aggregation.o1"] is None
        for text in ("nan", "inf", "-inf"):
            message = rf"^aggregation.free: {text} is not finite; allowed: a finite number$"
            with pytest.raises(ValueError, match=message):
                config.with_options({"aggregation.free": text})
            with pytest.raises(ValueError, match=message):
                replace(config, options={"aggregation.free": float(text)})
        with pytest.raises(ValueError, match=r"^options: 'aggregation.inner' is not known"):
            config.with_options({"aggregation.inner": "1"})


def test_an_option_of_several_defences_has_to_suit_each():
    fields = {"wide": (float, option(1.0, "", within=(0, 10))), "narrow": (int, option(1, "", within=(0, 2)))}
    with patch.dict(DOORS["defence"]):
        for name, (kind, default) in fields.items():
            made = make_dataclass(
                name.title(), [("share", kind, default), (name, int, 1)], bases=(Passing,), frozen=True
            )
            extend.defence(name)(made)
        for chain in ("wide+narrow", "narrow+wide"):
            config = RunConfig(defence=chain).with_options({"defence.share": "2"})
            assert [config.options_of("defence", DEFENCES[name].code.load()) for name in fields] == [{"share": 2}] * 2
            for text, problem in (("3", "3 is out of range; allowed: 0 to 2"), ("1.5", "'1.5' is not of type int; ")):
                with pytest.raises(ValueError, match=f"^defence.share: {problem}"):
                    config.with_options({"defence.share": text})
            with pytest.raises(ValueError, match=r"^options: 'defence.shar' .* allowed: defence.share, defence"):
                config.with_options({"defence.shar": "1"})


def test_a_name_belongs_to_one_thing_which_may_be_defined_anew():
    class Other(Some):
        """Does what the first does."""

    def first():
        class First(Some):
            """The mean."""

        return extend.aggregation("mine")(First)

    with patch.dict(DOORS["aggregation"]):
        assert first() is not first()  # as when a module is reloaded
        known = DOORS["aggregation"]["mine"]
        with pytest.raises(RegistrationError, match=r"^aggregation: 'mine' is there already, as .*First of the same "):
            extend.aggregation("mine")(Other)
        assert DOORS["aggregation"]["mine"] is known
