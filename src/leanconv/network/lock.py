"""How a network is computed, written down: for production and CI, so that it runs so and not otherwise.

A decision says for each convolution its algorithm, its settings and its threads, and which layers are one block.  It
names no machine, and holds wherever it can be carried out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leanconv.errors import CacheError, LeanconvError
from leanconv.network.arrangement import Arrangement, Step
from leanconv.network.fusion import INVERTED, SEPARABLE, FoundBlock
from leanconv.network.steps.base import Option
from leanconv.plan import Plan
from leanconv.planning.candidates import algorithm_named

FORMAT = "leanconv network lock 1"
BLOCKS = (SEPARABLE, INVERTED)


def decisions(found: Arrangement, options: Sequence[Option | None]) -> dict[str, Any]:
    """What was decided for a network, as JSON's types."""
    steps = {
        step.name: _decision(option)
        for step, option in zip(found.steps, options, strict=True)
        if option is not None and (option.plan is not None or step.op in BLOCKS)
    }
    return {"blocks": [step.name for step in found.steps if step.op in BLOCKS], "steps": steps}


def checked(pinned: Any, name: str) -> dict[str, Any]:
    """What a lock file says of a network, if it is something that `decisions` makes.

    Raises:
        CacheError: it is something else.
    """
    good = isinstance(pinned, dict) and isinstance(pinned.get("blocks"), list) and isinstance(pinned.get("steps"), dict)
    if not good or not all(_is_decision(each) for each in pinned["steps"].values()):
        raise CacheError(f"{name} holds something that is no plan of a network")
    return dict(pinned)


def pinned_blocks(blocks: Sequence[FoundBlock], pinned: Mapping[str, Any]) -> list[FoundBlock]:
    """The blocks that are one step each.

    Raises:
        CacheError: there is none of that name.
    """
    by_name = {block.node.name: block for block in blocks}
    for name in pinned["blocks"]:
        if name not in by_name:
            raise CacheError(f"the lock file pins a block {name!r}, which the network has not got")
    return [by_name[name] for name in pinned["blocks"]]


def pinned_options(
    found: Arrangement, rows: Sequence[Sequence[Option]], pinned: Mapping[str, Any]
) -> list[list[Option]]:
    """The one option of each step that a decision leaves.

    Raises:
        CacheError: a step is not in the decision, or what it says cannot be carried out here.
    """
    return [_only(step, row, pinned["steps"].get(step.name)) for step, row in zip(found.steps, rows, strict=True)]


def _only(step: Step, row: Sequence[Option], decision: Mapping[str, Any] | None) -> list[Option]:
    if decision is None:
        if row and (row[0].plan is not None or step.op in BLOCKS):
            raise CacheError(f"the lock file pins no plan for the step {step.name!r} ({step.op})")
        return list(row[:1])
    # Weights without gaps may take less than those of another option that is alike in all else.
    alike = [option for option in row if _agrees(option, decision)]
    if alike:
        return [next((each for each in alike if each.extra_bytes == decision.get("extra_bytes")), alike[0])]
    made = next((option for option in row if option.plan is not None and option.remake is not None), None)
    if made is not None and made.remake is not None and made.plan is not None:
        try:
            algorithm = algorithm_named(decision["algorithm"])
            plan = Plan(made.plan.problem, algorithm, decision["threads"], None, decision["settings"])
        except LeanconvError as error:
            raise CacheError(f"the plan that is pinned for the step {step.name!r} does not apply: {error}") from error
        option = made.remake(plan)
        if _agrees(option, decision):
            return [option]
    known = ", ".join(sorted({option.name for option in row})) or "NumPy"
    raise CacheError(
        f"the plan that is pinned for the step {step.name!r} is not possible here: {decision}; {known} are"
    )


def _decision(option: Option) -> dict[str, Any]:
    plan = option.plan
    return {
        "algorithm": option.name,
        "threads": 0 if plan is None else plan.threads,
        "settings": {} if plan is None else dict(plan.tunables),
        "workspace_bytes": sum(buffer.nbytes for buffer in option.workspace),
        "extra_bytes": option.extra_bytes,
    }


def _agrees(option: Option, decision: Mapping[str, Any]) -> bool:
    """Whether an option is what was decided, but for how its weights are packed."""
    made = _decision(option)
    return all(decision.get(key) == value for key, value in made.items() if key != "extra_bytes")


def _is_decision(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    settings = value.get("settings")
    numbers = [value.get("threads"), value.get("workspace_bytes"), value.get("extra_bytes", 0)]
    return (
        isinstance(value.get("algorithm"), str)
        and all(type(number) is int and number >= 0 for number in numbers)
        and isinstance(settings, dict)
        and all(isinstance(k, str) and type(v) is int and v > 0 for k, v in settings.items())
    )
