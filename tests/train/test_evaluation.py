import json
from pathlib import Path

import pytest

from meedge_ray.api.time_distribution import TimeDistribution
from meedge_ray.domain.elastic import Bundle, bytes_of
from meedge_ray.domain.errors import BudgetError
from meedge_ray.train.evaluation import Evaluation, evaluate
from meedge_ray.train.report import LOOKS, MemoryChange, _over_memory, write_report


@pytest.fixture(scope="module")
def measured(tiny: tuple[Path, Bundle]) -> Evaluation:
    return evaluate(tiny[0], memory_bytes=2**20, kills=400)


def test_an_evaluation_measures_every_method_on_the_engine(tiny: tuple[Path, Bundle], measured: Evaluation) -> None:
    _, bundle = tiny
    assert set(measured.methods) == {"single_exit", *bundle.baselines, "meedge"}
    assert "branchynet" in measured.methods
    for method in measured.methods.values():
        assert bundle.backbone_bytes <= method.resident_bytes <= 2**20
        # Loose, for 400 kills on a busy machine; the benchmark holds 1 point.
        assert method.killed == pytest.approx(method.mae, abs=0.15)
    assert measured.methods["meedge"].mae > measured.methods["single_exit"].mae
    memory = [point.memory_bytes for point in measured.over_memory]
    assert memory == sorted(memory)
    assert memory[0] == bundle.backbone_bytes


def test_ours_is_compared_at_the_memory_of_each_other_method(tiny: tuple[Path, Bundle], measured: Evaluation) -> None:
    _, bundle = tiny
    assert set(measured.comparisons) == {"single_exit", *bundle.baselines}
    assert measured.comparisons["single_exit"].ours == measured.methods["meedge"]
    for name, comparison in measured.comparisons.items():
        theirs = measured.methods[name]
        assert comparison.ours.resident_bytes <= comparison.memory_bytes
        assert comparison.mae_gain == pytest.approx(comparison.ours.mae / theirs.mae - 1)
        assert comparison.killed_gain == pytest.approx(comparison.ours.killed / theirs.killed - 1)
        assert comparison.killed_gain_error is not None
        assert 0 <= comparison.killed_gain_error < 1
    for name, branches in bundle.baselines.items():
        memory_bytes = bundle.backbone_bytes + bytes_of(branches)
        assert measured.comparisons[name].memory_bytes == measured.methods[name].resident_bytes == memory_bytes


def test_kills_that_come_late_find_more(tiny: tuple[Path, Bundle], measured: Evaluation) -> None:
    horizon_ms = measured.horizon_ms
    late = TimeDistribution.model_validate(
        {"histogram": {"edges_ms": [0, 0.8 * horizon_ms, horizon_ms], "probabilities": [0, 1]}}
    )
    found = evaluate(tiny[0], memory_bytes=2**20, horizon_ms=horizon_ms, distribution=late, kills=400)
    assert found.methods["single_exit"].mae > measured.methods["single_exit"].mae + 0.3
    assert found.distribution["histogram"]["probabilities"] == [0, 1]
    assert measured.distribution == {}
    assert found.methods["single_exit"].killed > measured.methods["single_exit"].killed + 0.2


def test_the_report_holds_every_figure_and_picture(measured: Evaluation, tmp_path: Path) -> None:
    change = MemoryChange(2**20, measured.methods["single_exit"].resident_bytes, 0.8, 1.0, 10, 1.5, 2)
    write_report(tmp_path / "report", measured, [change, change])
    content = json.loads((tmp_path / "report" / "report.json").read_text())
    assert content["kills"] == {
        "predicted": measured.methods["meedge"].mae,
        "measured": measured.methods["meedge"].killed,
    }
    assert set(content["methods"]["spinn"]) >= {"mae", "resident_bytes", "curve", "finite_time"}
    assert set(content["comparisons"]["spinn"]) >= {"ours", "mae_gain", "killed_gain"}
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 6


def test_the_picture_over_memory_shows_every_baseline(measured: Evaluation) -> None:
    assert len(measured.baselines_over_memory) >= 5
    legend = _over_memory(measured).axes[0].get_legend()
    assert legend is not None
    shown = {text.get_text() for text in legend.get_texts()}
    assert shown == {LOOKS[name][0] for name in ("meedge", *measured.baselines_over_memory)}


def test_progress_is_told(tiny: tuple[Path, Bundle]) -> None:
    told: list[float] = []
    evaluate(tiny[0], memory_bytes=2**20, kills=25, report=lambda stage, done, total, detail="": told.append(done))
    assert told == sorted(told)
    assert told


def test_a_budget_below_the_backbone_is_refused(tiny: tuple[Path, Bundle]) -> None:
    with pytest.raises(BudgetError, match="backbone"):
        evaluate(tiny[0], memory_bytes=1000)
