"""Reads the assembly that LLVM writes: loops, multiply-adds and stack traffic, for x86-64 and AArch64."""

from __future__ import annotations

import re
from typing import NamedTuple

_COMMENT = re.compile(r"(?:^|\s)(?:##?(?=\s)|//|;)")
_LABEL = re.compile(r"^([.\w$]+):")
_JUMP = re.compile(r"^(?:j\w+|b(?:\.\w+)?|cbn?z|tbn?z)$")
_FUSED = re.compile(r"^(?:vfn?m(?:add|sub)\d+p[sd]|fml[as])$")
_VECTOR = re.compile(r"%[xyz]mm\d+|\b[qv]\d+\b")
_STACK = re.compile(r"\(%rsp[,)]|\[sp\b")


class Instruction(NamedTuple):
    """One line: the operation and the text of its operands."""

    operation: str
    operands: str

    @property
    def jump(self) -> str | None:
        """The label jumped to, if any."""
        return self.operands.split(",")[-1].strip() if _JUMP.match(self.operation) else None

    @property
    def fused(self) -> bool:
        """Whether it is a multiply-add on vectors (not on the first element of one)."""
        return bool(_FUSED.match(self.operation))

    @property
    def vector_stack(self) -> bool:
        """Whether a vector register is stored on the stack or loaded from there."""
        return bool(_STACK.search(self.operands) and _VECTOR.search(self.operands))


Loop = tuple[Instruction, ...]


def parse(text: str) -> tuple[list[Instruction], dict[str, int]]:
    """All instructions in order, and at which one each label stands."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if "#" in line or "/" in line or ";" in line:
            line = _COMMENT.split(line, 1)[0]
        line = line.rstrip()
        label = _LABEL.match(line)
        if label:
            labels[label[1]] = len(instructions)
            continue
        words = line.split(None, 1)
        if line[:1] in "\t " and words and not words[0].startswith("."):
            instructions.append(Instruction(words[0], words[1].strip() if len(words) > 1 else ""))
    return instructions, labels


def innermost_loops(text: str) -> list[Loop]:
    """The loops that hold no other: from a label to the last jump back to it."""
    instructions, labels = parse(text)
    ends: dict[int, int] = {}
    for at, instruction in enumerate(instructions):
        target = labels.get(instruction.jump or "", at + 1)
        if target <= at:
            ends[target] = at
    inner = [
        (start, end)
        for start, end in ends.items()
        if not any(start <= s and e <= end and (s, e) != (start, end) for s, e in ends.items())
    ]
    return [tuple(instructions[start : end + 1]) for start, end in sorted(inner)]


def count_fused(loop: Loop) -> int:
    """How many vector multiply-adds one turn of a loop does."""
    return sum(instruction.fused for instruction in loop)


def spills(loop: Loop) -> list[str]:
    """The instructions of a loop that move vector registers to or from the stack."""
    return [f"{i.operation} {i.operands}" for i in loop if i.vector_stack]
