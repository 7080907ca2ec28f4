import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.domain.elastic import Bundle
from meedge_ray.domain.errors import BudgetError
from meedge_ray.train.evaluation import accuracy_curve, evaluate, mean_accuracy
from meedge_ray.train.report import MemoryChange, write_report

fractions = st.floats(0, 1)
results = st.lists(st.tuples(st.floats(0.01, 5), fractions, fractions), min_size=1, max_size=6)


@given(results, st.floats(0.5, 10))
def test_the_mean_accuracy_is_the_integral_of_what_is_at_hand(
    steps: list[tuple[float, float, float]], horizon_ms: float
) -> None:
    at_ms = np.cumsum([step[0] for step in steps])
    known, truth = [step[1] for step in steps], [step[2] for step in steps]
    curve = accuracy_curve(at_ms.tolist(), known, truth)
    moments = (np.arange(4000) + 0.5) / 4000 * horizon_ms
    at_hand = []
    for moment in moments:
        came = [index for index in range(len(steps)) if at_ms[index] <= moment]
        at_hand.append(truth[max(came, key=lambda index: (known[index], -index))] if came else 0.0)
    assert mean_accuracy(curve, horizon_ms) == pytest.approx(np.mean(at_hand), abs=0.005)


def test_an_evaluation_measures_every_method_on_the_engine(tiny: tuple[Path, Bundle], tmp_path: Path) -> None:
    directory, bundle = tiny
    told: list[str] = []
    measured = evaluate(
        directory,
        memory_bytes=2**20,
        kills=400,
        report=lambda stage, done, total, detail="": told.append(stage),
    )
    assert list(measured.methods) == ["single_exit", "multi_exit_fc", "spinn", "meedge"]
    assert "evaluate" in told
    for method in measured.methods.values():
        assert bundle.backbone_bytes <= method.resident_bytes <= 2**20
        # Loose, for 400 kills on a busy machine; the benchmark holds 1 point.
        assert method.killed == pytest.approx(method.mae, abs=0.15)
    assert measured.methods["meedge"].mae > measured.methods["single_exit"].mae
    memory = [point.memory_bytes for point in measured.over_memory]
    assert memory == sorted(memory)
    assert memory[0] == bundle.backbone_bytes

    change = MemoryChange(2**20, bundle.backbone_bytes, 0.8, 1.0, 10, 1.5, 2)
    write_report(tmp_path / "report", measured, [change, change])
    content = json.loads((tmp_path / "report" / "report.json").read_text())
    assert content["kills"] == {
        "predicted": measured.methods["meedge"].mae,
        "measured": measured.methods["meedge"].killed,
    }
    assert set(content["methods"]["spinn"]) >= {"mae", "resident_bytes", "curve"}
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 4


def test_a_budget_below_the_backbone_is_refused(tiny: tuple[Path, Bundle]) -> None:
    with pytest.raises(BudgetError, match="backbone"):
        evaluate(tiny[0], memory_bytes=1000)
