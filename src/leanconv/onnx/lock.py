"""Lock files of models: how each set of shapes is computed, for production and CI."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from leanconv.errors import ArgumentTypeError, CacheError
from leanconv.network.lock import FORMAT, checked
from leanconv.planning.records import read_json, write_json

# Shapes of all inputs, and the bytes of those whose values decide about shapes.
Key: TypeAlias = tuple[tuple[tuple[str, tuple[int, ...]], ...], tuple[tuple[str, bytes], ...]]


def question(
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    values: tuple[tuple[str, bytes], ...],
    *,
    threads: int,
    memory_limit: int | None,
    accuracy: str,
) -> str:
    """The text under which a network is kept."""
    parts = [f"{name}={'x'.join(map(str, shape))}" for name, shape in shapes]
    parts += [f"{name} is {hashlib.sha256(data).hexdigest()[:16]}" for name, data in values]
    return "; ".join([*parts, f"threads={threads}", f"memory_limit={memory_limit}", f"accuracy={accuracy}"])


def save_lock(path: str | os.PathLike[str], networks: Mapping[str, Mapping[str, Any]]) -> int:
    """Write a lock file in one step; returns how many networks it holds.

    Raises:
        CacheError: it cannot be written.
    """
    write_json(path, {"format": FORMAT, "networks": dict(networks)})
    return len(networks)


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock file that was read.

    Attributes:
        path: of the file.
        networks: decisions by question.
    """

    path: str
    networks: Mapping[str, dict[str, Any]]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Lock:
        """Read and check a file.

        Raises:
            ArgumentTypeError: not a path.
            CacheError: it cannot be read, or is no lock file.
        """
        if not isinstance(path, str | os.PathLike):
            raise ArgumentTypeError("lock", path, "must be a path")
        name = os.fspath(path)
        networks = read_json(name, FORMAT).get("networks")
        if not isinstance(networks, dict):
            raise CacheError(f"{name} holds something that is no plan of a network")
        return cls(name, {key: checked(each, name) for key, each in networks.items()})

    def network(self, asked: str) -> dict[str, Any]:
        """The decisions for a network.

        Raises:
            CacheError: the file does not hold it.
        """
        found = self.networks.get(asked)
        if found is None:
            known = " | ".join(self.networks) or "nothing"
            raise CacheError(f"{self.path} pins nothing for {asked}; it holds {known}")
        return found
