"""The table of `python -m leanconv.bench.torch_models`, made of figures, and what the command refuses."""

from __future__ import annotations

import pytest

from leanconv.bench import torch_models
from leanconv.bench.torch_models import Row


def rows() -> list[Row]:
    slow, less = {"pytorch": [0.04] * 6, "leanconv": [0.01] * 6}, {"pytorch": 3 << 20, "leanconv": 1 << 20}
    even, more = {"pytorch": [1.0], "leanconv": [1.0]}, {"pytorch": None, "leanconv": None}
    return [Row("resnet18", 1, 2, 1e-6, slow, less), Row("unet", 8, 2, 2e-6, even, more)]


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Ratios, intervals where there are samples enough, and who takes less memory."""
    first, second = rows()
    assert " ".join(str(first).split()) == "resnet18 1 2 40.00 10.00 4.00 [4.00, 4.00] 1e-06 3.0 MiB 1.0 MiB"
    assert " ".join(str(second).split()) == "unet 8 2 1000.00 1000.00 1.00 - 2e-06 - -"
    assert first.less and second.less is None
    torch_models.summarise([first, second])
    text = capsys.readouterr().out
    assert "geometric mean of the ratios: 2.00, least 1.00" in text and "batch 8, threads 2: 1.00" in text
    assert "in 1 of 1 rows" in text and "largest difference of the outputs: 2e-06" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lenet"], "no network is called lenet"),
        (["--threads", "0"], "must be at least 1"),
        (["--batch", "one"], "--batch"),
    ],
)
def test_mistakes(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        torch_models.main(words)
    assert message in capsys.readouterr().err
