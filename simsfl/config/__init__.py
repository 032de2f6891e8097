"""The configuration of a run: one documented field per decision, validated on construction.

Every field is also a flag of ``simsfl run``. The algorithm, the models, the data and the kernels take plain
arguments instead of a `RunConfig`. Nothing here imports torch, so that ``--help`` answers at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import Field, asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simsfl.config.catalogue import (
    AGGREGATIONS,
    ARCHITECTURES,
    CALLBACKS,
    DATASETS,
    DEFENCES,
    DOORS,
    HEADS,
    METHODS,
    OBJECTIVES,
    OPTIMIZERS,
    PARTITIONS,
    PRECISIONS,
    SAMPLERS,
    TRACKERS,
    ObjectiveKind,
    Targets,
)
from simsfl.config.constraints import EVERY_RUN, check
from simsfl.config.fleet import read_fleet
from simsfl.config.notation import Bottleneck, Decoder, Unequal
from simsfl.config.plugins import FROM_PLUGINS, Plugin, plugins_in, plugins_of
from simsfl.config.plugins import check as check_plugins
from simsfl.config.registry import Code, code_of
from simsfl.config.settings import ENGINES, NORMS, RECIPES, Settings
from simsfl.config.values import check_value, from_text, options_in, plain
from simsfl.system.decoding import read_json
from simsfl.system.files import SEAL, seal_of
from simsfl.system.messages import unknown
from simsfl.system.paths import expanded

__all__ = ["ENGINES", "NORMS", "PRECISIONS", "RECIPES", "Resolved", "RunConfig"]


@dataclass(frozen=True, kw_only=True)
class RunConfig(Settings):
    """Everything that determines a run; its fields are those of `Settings`.

    Raises:
        ValueError: a value is not allowed; the message names the field, the value, and what is allowed.
    """

    def __repr__(self) -> str:
        """Return the fields that are not as usual."""
        own = ", ".join(f"{name}={value!r}" for name, value in self.changed_from(RunConfig()).items())
        return f"RunConfig({own})"

    def __post_init__(self) -> None:
        for spec in fields(self):
            if spec.name != "options":
                object.__setattr__(self, spec.name, plain(getattr(self, spec.name)))
                check_value(spec.name, spec, getattr(self, spec.name), also=FROM_PLUGINS if spec.name in DOORS else "")
            if spec.metadata["path"]:
                self._expand(spec.name)
        self._check_names()
        self._check_options()
        if self.bottleneck is not None:
            Bottleneck.parse(self.bottleneck)
        if self.unequal is not None:
            Unequal.parse(self.unequal)
        Decoder.parse(self.ressfl_decoder, "ressfl_decoder")
        check(self, EVERY_RUN)

    def _check_names(self) -> None:
        """Raise a ValueError if one of the names in a field that takes several is not known, or is there twice."""
        several = "several of them, such as"
        for field, names, known, also in (
            ("defence", self.defences, DEFENCES, f"{several} clip+gaussian, or {FROM_PLUGINS}"),
            ("callback", self.callbacks, CALLBACKS, FROM_PLUGINS),
            ("track", self.trackers, TRACKERS, f"{several} tensorboard,csv"),
        ):
            for name in names:
                if name not in known:
                    raise unknown(field, name, known, also=also)
            if len(set(names)) < len(names):
                raise ValueError(
                    f"{field}: {getattr(self, field)} has one of them twice, with the same options; allowed: each once"
                )

    def _check_options(self) -> None:
        """Raise a ValueError if an option does not exist, or cannot have its value; make NumPy's numbers Python's."""
        if not isinstance(self.options, dict):
            raise ValueError(f"options: {self.options!r} is no dictionary; allowed: {{'objective.temperature': 0.2}}")
        object.__setattr__(self, "options", {name: plain(value) for name, value in self.options.items()})
        for name, value in self.options.items():
            if not isinstance(name, str):
                raise ValueError(
                    f"options: {name!r} of type {type(name).__name__} is no name; allowed: "
                    "{'objective.temperature': 0.2}"
                )
            for spec in self.option(name):
                check_value(name, spec, value)

    def _expand(self, name: str) -> None:
        """Replace ``~`` in the value of a field by the home directory; raise a ValueError if there is none."""
        try:
            value = getattr(self, name)
            object.__setattr__(self, name, value and expanded(value))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    def check_effect(self, names: Collection[str]) -> None:
        """Raise a ValueError if one of the fields `names` has no effect in this config, whatever its value."""
        for problem in self.without_effect(names).values():
            raise ValueError(problem)

    def without_effect(self, names: Collection[str]) -> dict[str, str]:
        """Return why those of some fields and options that have no effect in this config have none, by name.

        Args:
            names: names of fields, and of options such as "objective.temperature", which what is chosen may not have.
        """
        found = {}
        for spec in fields(self):
            conditions = spec.metadata["only"] if spec.name in names else ()
            failed = next((condition for condition in conditions if not condition.holds(self)), None)
            if failed:
                reason = failed.reason.format(**self.to_dict())
                found[spec.name] = f"{spec.name}: has no effect where {reason}; allowed with {failed.remedy}"
        for name in names:
            try:
                if "." in name:
                    self.option(name)
            except ValueError as error:
                found[name] = str(error)
        return found

    def changed_from(self, other: RunConfig) -> dict[str, Any]:
        """Return the fields that have another value than in the config `other`, with their values here."""
        usual = other.to_dict()
        return {name: value for name, value in self.to_dict().items() if value != usual[name]}

    @property
    def is_split(self) -> bool:
        """Return whether the network is cut between clients and server, as opposed to federated learning."""
        return METHODS[self.method].split

    def option(self, name: str) -> list[Field]:
        """Return the dataclass fields that an option is, such as "objective.temperature".

        Where several are chosen at a door, as of defences, it is one of each that has an option of this name.

        Raises:
            ValueError: what is chosen has no such option.
        """
        door, _, field_name = name.partition(".")
        if door not in self.chosen:
            raise unknown("options", name, [f"{door}." for door in self.chosen])
        known = _options_of(self.chosen[door])
        if field_name not in known:
            others = [other for other in DOORS[door] if field_name in _options_of([code_of(DOORS[door][other])])]
            if others:
                remedy = f"{door} {' or '.join(others)}"
                raise ValueError(f"options: {name!r} is no option of what is chosen; allowed with {remedy}")
            allowed = "" if known else f"none, as the {door} that is chosen has no options"
            raise unknown("options", name, [f"{door}.{own}" for own in known], allowed=allowed)
        return known[field_name]

    def options_of(self, door: str, kind: type | None = None) -> dict[str, Any]:
        """Return the options of what is chosen at a door, by their names there.

        Args:
            door: such as "objective".
            kind: the dataclass that is chosen, where there may be several, of which each gets the options that it has.
        """
        own = None if kind is None else {spec.name for spec in (fields(kind) if is_dataclass(kind) else ())}
        given = (name.partition(".")[2] for name in self.options if name.startswith(f"{door}."))
        return {name: self.options[f"{door}.{name}"] for name in given if own is None or name in own}

    def with_values(self, values: Mapping[str, Any]) -> RunConfig:
        """Return a preset's config with other values of fields, such as those of flags.

        The head that a preset has suits its objective. With another objective, it is that objective's own, unless
        `values` has one.
        """
        changed = replace(self, **values)
        return changed if "head" in values or changed.goal is self.goal else replace(changed, head=None)

    def with_options(self, texts: Mapping[str, str]) -> RunConfig:
        """Return the config with these options, as flags give them, beside those that it has.

        Args:
            texts: values as texts, by names such as "objective.temperature".

        Raises:
            ValueError: there is no such option, or it cannot have the value.
        """
        return replace(self, options=self.options | {name: self.meant(name, text) for name, text in texts.items()})

    def meant(self, name: str, text: str) -> bool | int | float | str | None:
        """Return the value that a text means for an option, such as "objective.temperature".

        Raises:
            ValueError: there is no such option, or the text has no such meaning.
        """
        values = [from_text(name, spec, text) for spec in self.option(name)]
        return next((value for value in values if isinstance(value, int)), values[0])  # which is a float, too

    @property
    def defaults(self) -> dict[str, Any]:
        """Return the defaults of the options that are not given, by names such as "objective.temperature".

        An option of several defences is left out where their defaults differ.
        """
        found = {name: [plain(spec.default) for spec in specs] for name, specs in self._known_options.items()}
        return {
            name: values[0]
            for name, values in found.items()
            if name not in self.options and values.count(values[0]) == len(values)
        }

    @property
    def _known_options(self) -> dict[str, list[Field]]:
        """Return what `option` does of each option that there is, by its name."""
        found = {door: _options_of(codes) for door, codes in self.chosen.items()}
        return {f"{door}.{name}": specs for door, own in found.items() for name, specs in own.items()}

    def keeping(self, defaults: Mapping[str, Any]) -> RunConfig:
        """Return the config with options for those of these earlier `defaults` that are no defaults today.

        Raises:
            ValueError: what is chosen has no such option any more, or it cannot have the value.
        """
        today = (self.defaults if defaults else {}).items()
        others = {name: value for name, value in defaults.items() if (name, value) not in today}
        return replace(self, options=others | self.options) if others else self

    @property
    def option_files(self) -> dict[str, str]:
        """Return the paths of the files that options name, by the names of these options."""
        given = {name: value for name, value in self.options.items() if isinstance(value, str)}
        return {name: value for name, value in given.items() if any(s.metadata.get("file") for s in self.option(name))}

    @property
    def files(self) -> dict[str, str]:
        """Return the paths of the files that options and the fleet name, by what they are called.

        Raises:
            ValueError: the fleet's file cannot be read.
        """
        fleet = read_fleet(Path(self.fleet)).files if self.fleet else {}
        return self.option_files | {name: str(file) for name, file in fleet.items()}

    @property
    def defences(self) -> list[str]:
        """Return the names of the defences, in the order in which they are applied to smashed data.

        TAResSFL, which has its weight in `ressfl_lambda`, is the last one unless it is named in `defence`.
        """
        named = self.defence.split("+") if self.defence else []
        return named if "taressfl" in named or not self.ressfl_lambda else [*named, "taressfl"]

    @property
    def images_for_defences(self) -> int:
        """Return the fewest images of a client's batch that all defences work with."""
        return max((DEFENCES[name].images for name in self.defences), default=1)

    @property
    def callbacks(self) -> list[str]:
        """Return the names of the callbacks, in the order in which they get records."""
        return self.callback.split("+") if self.callback else []

    @property
    def trackers(self) -> list[str]:
        """Return the names of the trackers, each once."""
        return list(dict.fromkeys(self.track.split(","))) if self.track else []

    @property
    def chosen(self) -> dict[str, list[Code]]:
        """Return the code of what is chosen, by the name of its door."""
        return {
            "partition": [PARTITIONS[self.partition].code],
            "objective": [self.goal.code],
            "aggregation": [AGGREGATIONS[self.aggregation]],
            "sampler": [SAMPLERS[self.sampler].code],
            "optimizer": [OPTIMIZERS[self.optimizer].code],
            "defence": [DEFENCES[name].code for name in self.defences],
            "callback": [CALLBACKS[name] for name in self.callbacks],
            "arch": [ARCHITECTURES[self.arch].code],
            "head": [HEADS[self.head_name]],
            "dataset": [DATASETS[self.dataset].code] if self.dataset in DATASETS else [],
        }

    @property
    def plugins(self) -> list[Plugin]:
        """Return the plugins that what is chosen comes from."""
        return plugins_of(code for own in self.chosen.values() for code in own)

    @property
    def goal(self) -> ObjectiveKind:
        """Return what is known of the objective: the one that is set, or that of the rule."""
        return OBJECTIVES[self.objective or ("supervised" if self.supervised else METHODS[self.method].objective)]

    @property
    def cohort_size(self) -> int:
        """Return the number of clients that train in a round: the one that is set, or that of the rule."""
        return self.cohort or (100 if self.clients >= 200 else self.clients)

    @property
    def own_queues(self) -> bool:
        """Return whether each client has a key queue of its own, where the objective has one."""
        return not (self.is_split and self.feature_sharing)

    @property
    def keys_in_a_queue(self) -> int:
        """Return the length of a key queue; without feature sharing, clients have equal parts of `queue_length`."""
        return self.queue_length // (self.clients if self.is_split and not self.feature_sharing else 1)

    @property
    def head_name(self) -> str:
        """Return the name of the projection head: the one that is set, or that of the objective."""
        return self.head or self.goal.head

    @property
    def inequality(self) -> Unequal | None:
        """Return `unequal` as an object; None where all clients are equal."""
        return Unequal.parse(self.unequal) if self.unequal else None

    @property
    def views_sent(self) -> int:
        """Return how many views of an image are used in a step: query and key, or with labels the query alone."""
        return 1 if self.goal.targets is Targets.LABELS else 2

    @property
    def views_graded(self) -> int:
        """Return how many views of an image a client learns from, and gets gradients for."""
        return 2 if self.goal.targets is Targets.ONLINE else 1

    @property
    def images_at_a_time(self) -> int | None:
        """Return how many images an objective has at a time: those of a step, or in federated learning of a client.

        None means that a rule has yet to say. With unequal clients they are more. A replica of the server has its part
        of a step.
        """
        clients = (self.cohort and self.cohort // self.server_replicas) if self.is_split else 1
        sources = (self.data_proportion > 0) + (self.aux_dataset is not None)
        return None if clients is None or self.batch_size is None else clients * sources * self.batch_size

    @property
    def passes_per_image(self) -> int:
        """Return how often a client runs each of its models for an image in a step.

        In symmetric federated learning with momentum models either view goes through both; on the clients of split
        learning, each view goes through one.
        """
        both = self.symmetric and not self.is_split and self.goal.targets is Targets.MOMENTUM
        return 2 if both else 1

    @property
    def views_at_server(self) -> int:
        """Return how many views of an image go through the server's online model in a step, forward and backward."""
        if self.goal.targets is Targets.MOMENTUM:
            return 2 if self.symmetric else 1
        return self.views_graded

    @property
    def server_passes(self) -> dict[str, int]:
        """Return how often an image goes forward through the server's models ("views") and backward ("graded")."""
        both = 2 if self.goal.targets is Targets.MOMENTUM else 1  # the momentum model gets as many views
        return {"views": both * self.views_at_server, "graded": self.views_at_server}

    def network(self) -> dict[str, Any]:
        """Return the fields that determine the network, apart from what the method adds to it, with their values.

        Of `options`, they have those of the architecture, if there are any.
        """
        own = {name: value for name, value in self.options.items() if name.startswith("arch.")}
        return {
            spec.name: getattr(self, spec.name)
            for spec in fields(self)
            if spec.metadata["group"] == "model" or spec.name == "image_size"
        } | ({"options": own} if own else {})

    def to_dict(self) -> dict[str, Any]:
        """Return the values of all fields by name, as JSON takes them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """Return the config with these values of its fields, as `to_dict` returns them, and defaults for the others.

        Raises:
            ValueError: a name is not a field, or a value is not allowed.
        """
        names = [spec.name for spec in fields(cls)]
        for name in values:
            if name not in names:
                raise unknown("config", name, names)
        return cls(**values)

    @staticmethod
    def before(values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what fields were to earlier versions, which did not have them, where that is not their default.

        Args:
            values: fields that a run of an earlier version may have recorded.
        """
        return {"ssim_borders": "mirror"} if values.get("ressfl_lambda") else {}

    @classmethod
    def load(cls, path: Path) -> RunConfig:
        """Read a config from the ``config.json`` of a run, or from a JSON object of fields.

        Fields that rules had filled in get their defaults back, so that the rules set them anew. What an earlier
        version's run lacks is as it was then, and so are options whose defaults have changed since. In a file that was
        edited, something may be chosen that does not have the options of what the run had chosen.

        Raises:
            ValueError: the file cannot be read, or does not hold a config.
        """
        try:
            content = read_json(path)
        except ValueError as error:
            raise ValueError(f"config: {error}") from error
        values = content.get("config", content) if isinstance(content, dict) else None
        by_rule = content.get("by_rule", []) if isinstance(content, dict) else None
        defaults = content.get("defaults", {}) if values is not content else {}
        if not (isinstance(values, dict) and isinstance(by_rule, list) and isinstance(defaults, dict)):
            raise ValueError(f"config: {path} holds no JSON object of fields; allowed: a config.json of a run")
        lacking = cls.before(values) if values is not content else {}
        try:
            config = cls.from_dict(lacking | {name: value for name, value in values.items() if name not in by_rule})
            known = defaults if content.get(SEAL) == seal_of(content) else config._known_options
            return config.keeping({name: value for name, value in defaults.items() if name in known})
        except ValueError:
            check_plugins(plugins_in(content))  # which would be the reason
            raise


if TYPE_CHECKING:

    class Resolved(RunConfig):
        """A config of which every rule has been applied, so that the fields that are set by rule have values."""

        cohort: int
        batch_size: int
        rounds: int
        syncs_per_round: int
        image_size: int
        classes_per_client: int
        width: int
        weight_standardisation: bool
        client_lr: float
else:
    Resolved = RunConfig


def _options_of(codes: Iterable[Code]) -> dict[str, list[Field]]:
    """Return the fields that are options of some code, by the name that they have in common."""
    found: dict[str, list[Field]] = {}
    for spec in (spec for code in codes for spec in options_in(code.load())):
        found.setdefault(spec.name, []).append(spec)
    return found
