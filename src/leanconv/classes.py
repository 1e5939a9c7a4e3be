"""Data classes that cost little to define.

`dataclasses.dataclass` writes and compiles five functions for each class, in most of a millisecond. There are some two
hundred specifications of kernels, steps and plans here, of which a process uses a few; defining them was more than half
of what `import leanconv` took. Here their methods are closures over the names of the fields. The objects are data
classes to the standard library too: `fields`, `replace`, `asdict` and pickling work. The `replace` of this module does
without what the standard library would make of each class first.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

__all__ = ["dataclass", "field_names", "replace"]

T = TypeVar("T")

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(*, slots: bool = False, frozen: bool = False, kw_only: bool = False) -> Callable[[type], type]:
        """As `dataclasses.dataclass` with these options."""
        return lambda written: _defined(written, slots, frozen, kw_only)


def replace(of: T, /, **changes: Any) -> T:
    """As `dataclasses.replace`, for objects of classes made by either."""
    kind = type(of)
    defaults = kind.__dict__.get("_defaults")
    if defaults is None:
        return dataclasses.replace(of, **changes)  # type: ignore[type-var]
    for name in defaults:
        if name not in changes:
            changes[name] = getattr(of, name)
    return kind(**changes)


def field_names(kind: type) -> tuple[str, ...]:
    """The names of the fields of objects of a class, whoever made it; none if it is no data class."""
    found = kind.__dict__.get("_defaults")
    if found is not None:
        return tuple(found)
    return tuple([field.name for field in dataclasses.fields(kind)]) if dataclasses.is_dataclass(kind) else ()


SEVERAL = 16  # objects of a class after which it is worth it to write and compile its `__init__`
_FIELDS, _PARAMS = "__dataclass_fields__", "__dataclass_params__"
_MISSING = object()


def _defined(written: type, slotted: bool, frozen: bool, kw_only: bool) -> type:
    """The class with its fields (a slot for each, if `slotted`), and the methods of a data class that it lacks."""
    space = written.__dict__
    own = [name for name, kind in inspect.get_annotations(written).items() if not kind.startswith("ClassVar")]
    defaults: dict[str, Any] = {}  # of each field, in order; _MISSING where there is none
    positional: dict[str, None] = {}
    for base in written.__mro__[-2:0:-1]:
        defaults.update(base.__dict__.get("_defaults") or _inherited(base))
        # Those of a base that may be given by position still may, wherever the class adds some that may not.
        positional.update(dict.fromkeys(getattr(base, "__match_args__", ())))
    slots = tuple([name for name in own if name not in defaults])
    if not kw_only:
        positional.update(dict.fromkeys(own))
    for name in own:
        defaults[name] = space.get(name, _MISSING)
    names = tuple(defaults)
    more = _methods(names, frozen, slotted)
    more |= {"_defaults": defaults, _FIELDS: _Fields(written, frozen, kw_only), "__match_args__": tuple(positional)}
    more["__signature__"] = _SIGNATURE
    if frozen:
        more |= {"__setattr__": _refuse, "__delattr__": _refuse}
    body = {**more, **space, "__qualname__": written.__qualname__}
    if slotted:
        body["__slots__"] = slots
    # Slots cannot have defaults on the class, and what describes a default is none.
    for name in [name for name in own if slotted or isinstance(defaults[name], dataclasses.Field)]:
        body.pop(name, None)
    for name in ("__dict__", "__weakref__"):
        body.pop(name, None)
    made: type = type(written)(written.__name__, written.__bases__, body)
    if "__init__" not in space:
        setattr(made, "__init__", _initializer(made, defaults, tuple(positional), slotted))  # noqa: B010
    return made


def _inherited(base: type) -> dict[str, Any]:
    """Names and defaults of the fields of a class of the standard library's making."""
    found = dataclasses.fields(base) if _FIELDS in base.__dict__ else ()
    return {f.name: _MISSING if f.default is dataclasses.MISSING else f.default for f in found}


def _initializer(
    made: type, defaults: Mapping[str, Any], positional: tuple[str, ...], slotted: bool
) -> Callable[..., None]:
    """An `__init__` that takes the fields of a class, of which some also by position."""
    names = tuple(defaults)
    # Past the __setattr__ of frozen classes, as their own __init__ may.
    setters = [getattr(made, name).__set__ for name in names] if slotted else []
    after = getattr(made, "__post_init__", None)
    count = len(names) if positional == names else -1

    factories = {
        name: found.default_factory
        for name, found in defaults.items()
        if isinstance(found, dataclasses.Field) and found.default_factory is not dataclasses.MISSING
    }
    usual = {
        name: _default(found) for name, found in defaults.items() if found is not _MISSING and name not in factories
    }
    in_order = itemgetter(*names) if len(names) > 1 else lambda values: tuple([values[name] for name in names])

    def bind(args: tuple[Any, ...], given: dict[str, Any]) -> Sequence[Any]:
        """A value for each field."""
        values = dict(zip(positional, args, strict=False))
        values.update(given)
        if len(values) == len(args) + len(given):
            complete = {**usual, **values}
            for name, make in factories.items():
                if name not in values:
                    complete[name] = make()
            if len(complete) == len(names):
                try:
                    found: Sequence[Any] = in_order(complete)
                    return found
                except KeyError:  # one is missing, and one too many
                    pass
        refuse(args, given)

    def refuse(args: tuple[Any, ...], given: dict[str, Any]) -> NoReturn:
        """Say what is wrong."""
        values = dict(zip(positional, args, strict=False))
        wrong = [name for name in given if name in values or name not in defaults]
        if len(args) > len(positional) or wrong:
            raise TypeError(f"{made.__qualname__} takes {', '.join(names)}; not {wrong or f'{len(args)} values'}")
        missing = [name for name in names if name not in {**values, **given} and defaults[name] is _MISSING]
        raise TypeError(f"{made.__qualname__} also needs {', '.join(missing)}")

    uses = 0

    def __init__(self: Any, /, *args: Any, **given: Any) -> None:
        nonlocal uses
        uses += 1
        if uses == SEVERAL and slotted:
            made.__init__ = _written(positional, defaults, factories, usual, setters, after)  # type: ignore[misc]
        complete = args if len(args) == count and not given else bind(args, given)
        if slotted:
            for put, value in zip(setters, complete):  # noqa: B905 (as many as there are; kernels make thousands)
                put(self, value)
        else:
            self.__dict__.update(zip(names, complete, strict=True))
        if after is not None:
            after(self)

    __init__._of_fields = True  # type: ignore[attr-defined]
    return __init__


def _written(
    positional: tuple[str, ...],
    defaults: Mapping[str, Any],
    factories: Mapping[str, Callable[[], Any]],
    usual: Mapping[str, Any],
    setters: Sequence[Callable[[Any, Any], None]],
    after: Callable[[Any], None] | None,
) -> Callable[..., None]:
    """The same `__init__` as the standard library would write it: three times as fast, and slow to make."""
    space: dict[str, Any] = {f"_put{i}": put for i, put in enumerate(setters)}
    space |= {f"_usual_{name}": value for name, value in usual.items()}
    space |= {f"_make_{name}": make for name, make in factories.items()} | {"_missing": _MISSING, "_after": after}
    taken = {name: name if defaults[name] is _MISSING else f"{name}=_usual_{name}" for name in defaults}
    taken |= {name: f"{name}=_missing" for name in factories}
    named = [taken[name] for name in defaults if name not in positional]
    takes = [*(taken[name] for name in positional), *(["*", *named] if named else [])]
    lines = [f"    if {name} is _missing: {name} = _make_{name}()" for name in factories]
    lines += [f"    _put{i}(_self, {name})" for i, name in enumerate(defaults)]
    lines += ["    _after(_self)"] if after is not None else []
    exec(f"def __init__(_self, /, {', '.join(takes)}):\n" + "\n".join(lines or ["    pass"]), space)
    space["__init__"]._of_fields = True
    written: Callable[..., None] = space["__init__"]
    return written


def _default(found: Any) -> Any:
    return found.default if isinstance(found, dataclasses.Field) else found


def _methods(names: tuple[str, ...], frozen: bool, slotted: bool) -> dict[str, Any]:
    """Comparison, hash and text of objects with these fields, and their state if it is in slots."""
    values: Callable[[Any], Any] = attrgetter(*names) if names else lambda self: ()
    form = ", ".join(f"{name}={{!r}}" for name in names)

    def __eq__(self: Any, other: object) -> Any:
        return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

    def __hash__(self: Any) -> int:
        return hash(values(self))

    def state(self: Any) -> list[Any]:
        return [getattr(self, name) for name in names]

    def set_state(self: Any, found: list[Any]) -> None:
        for name, value in zip(names, found, strict=True):
            object.__setattr__(self, name, value)

    def __repr__(self: Any) -> str:
        return f"{self.__class__.__qualname__}({form.format(*state(self))})"

    methods = {"__eq__": __eq__, "__hash__": __hash__ if frozen else None, "__repr__": __repr__}
    return {**methods, "__getstate__": state, "__setstate__": set_state} if slotted else methods


def _refuse(self: Any, name: str, value: Any = None) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to or delete field {name!r}")


class _Fields:
    """Stands for what the standard library keeps of a data class, until it is asked for."""

    def __init__(self, written: type, frozen: bool, kw_only: bool) -> None:
        self.written = written
        self.options = {"frozen": frozen, "kw_only": kw_only}

    def __get__(self, instance: object, owner: type) -> Any:
        made = next(kind for kind in owner.__mro__ if kind.__dict__.get(_FIELDS) is self)
        found: Any = dataclasses.dataclass(init=False, repr=False, eq=False, match_args=False, **self.options)(
            self.written
        )
        setattr(made, _PARAMS, found.__dict__[_PARAMS])
        setattr(made, _FIELDS, found.__dict__[_FIELDS])
        return found.__dict__[_FIELDS]


class _Signature:
    """Makes the signature of a class when it is asked for."""

    def __get__(self, instance: object, owner: type) -> inspect.Signature | None:
        if instance is not None or not hasattr(inspect.getattr_static(owner, "__init__"), "_of_fields"):
            return None  # the object is no function of the fields, or the class has an __init__ of its own
        positional = inspect.getattr_static(owner, "__match_args__")
        found = dataclasses.fields(owner)
        parameters = [_parameter(each, named=each.name not in positional) for each in found]
        parameters.sort(key=lambda parameter: parameter.kind)
        return inspect.Signature(parameters, return_annotation=None)


def _parameter(of: dataclasses.Field[Any], *, named: bool) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY if named else inspect.Parameter.POSITIONAL_OR_KEYWORD
    default = inspect.Parameter.empty if of.default is dataclasses.MISSING else of.default
    if of.default_factory is not dataclasses.MISSING:
        default = _FACTORY
    return inspect.Parameter(of.name, kind, default=default, annotation=of.type)


class _Factory:
    """Stands for a default that is made for each object."""

    def __repr__(self) -> str:
        return "<factory>"


_SIGNATURE, _FACTORY = _Signature(), _Factory()
