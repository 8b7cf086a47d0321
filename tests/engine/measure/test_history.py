"""Speed over time: what is compared with what, and when a machine has become slower; energy where counters tell."""

from __future__ import annotations

from pathlib import Path

import pytest
from lathe.engine.evals.book import EvalBook
from lathe.engine.measure.bench_rows import BenchRow
from lathe.engine.measure.energy import Energy, EnergyMeter
from lathe.engine.measure.history import points, records_of
from lathe.store.benches import BenchRecord


def _record(number: int, rate: float, *, deviation: float = 0.5, test: str = "tg128", **fields: object) -> BenchRecord:
    known = {"machine": "cpu", "model": "m", "model_key": "k", "setting": "CPU"} | fields
    return BenchRecord(
        number=number,
        at=float(number),
        job=f"j-{number}",
        test=test,
        rate=rate,
        deviation=deviation,
        samples=5,
        **known,
    )  # type: ignore[arg-type]


def _trends(*rates: float, **fields: object) -> list[str]:
    records = [_record(number, rate, **fields) for number, rate in enumerate(rates, 1)]  # type: ignore[arg-type]
    return [point.trend for point in points(records[::-1])][::-1]


def test_a_regression_is_told_and_noise_is_not() -> None:
    assert _trends(100, 101, 99, 100, 80) == ["first", "steady", "steady", "steady", "slower"]
    assert _trends(100, 100, 100, 130) == ["first", "steady", "steady", "faster"]
    assert _trends(100, 97) == ["first", "steady"], "within 5 % nothing is said"
    assert _trends(100, 80, deviation=20) == ["first", "steady"], "repetitions differ as much"
    assert _trends(100, 60, 100, 100, 60)[3:] == ["steady", "steady"], "runs differ as much among themselves"


def test_one_disturbed_run_does_not_move_the_median() -> None:
    found = points([_record(n, rate) for n, rate in enumerate((100, 100, 30, 100, 101), 1)][::-1])
    assert found[0].before == 100
    assert found[0].change == pytest.approx(0.01)


def test_only_what_is_alike_is_compared() -> None:
    for field in ("machine", "model", "model_key", "setting", "test"):
        records = [_record(1, 100), _record(2, 50, **{field: "other"})]  # type: ignore[arg-type]
        assert [point.trend for point in points(records[::-1])] == ["first", "first"], field


async def test_the_book_keeps_the_history(tmp_path: Path) -> None:
    row = BenchRow(
        build_commit="c", cpu_info="A processor", model_filename="m.gguf", model_type="llama", model_size=1,
        model_n_params=1, n_threads=2, n_prompt=512, n_gen=0, test_time="2026-01-01T00:00:00Z",
        samples_ns=(10**9, 10**9 + 10**7),
    )  # fmt: skip
    book = EvalBook(tmp_path / "e.db")
    for at in (1.0, 2.0):
        await book.keep_bench(records_of([row.flat()], {"load_s": at}, job="j", at=at, model="m"))
    await book.keep_bench(records_of([row.flat()], {}, job="j", at=3.0, model="other"))
    found = await book.benches("m", 10)
    assert [(point.at, point.trend, point.figures) for point in found] == [
        (2.0, "steady", {"load_s": 2.0}), (1.0, "first", {"load_s": 1.0}),
    ]  # fmt: skip
    assert found[0].test == "pp512"
    assert found[0].machine == "A processor"
    assert "n_threads 2" in found[0].setting
    assert len(await book.benches(None, 10)) == 3
    assert len(await book.benches(None, 1)) == 1
    book.close()


def test_rows_at_once_are_marked_and_llama_benchs_stay_as_they_were() -> None:
    row = BenchRow(
        build_commit="c", model_filename="m", model_type="t", model_size=1, model_n_params=1, n_threads=1, n_prompt=0,
        n_gen=10, n_parallel=4, test_time="t", samples_ns=(10**9,),
    )  # fmt: skip
    assert (row.test, row.avg_ts) == ("tg10 x4", 40.0)
    assert BenchRow.from_flat(row.flat()) == row
    assert "n_parallel" not in BenchRow.from_flat({**row.flat(), "n_parallel": 1}).fields()


def test_energy_is_read_from_counters_or_unknown(tmp_path: Path) -> None:
    zone, part, whole = (tmp_path / "sys/class/powercap" / name for name in
                         ("intel-rapl:0", "intel-rapl:0:1", "intel-rapl:1"))  # fmt: skip
    for folder, name, energy in ((zone, "package-0", 5_000_000), (part, "core", 4_000_000), (whole, "psys", 9_000_000)):
        folder.mkdir(parents=True)
        (folder / "name").write_text(name)
        (folder / "energy_uj").write_text(str(energy))
    meter = EnergyMeter(tmp_path)
    before = meter.read()
    assert before.cpu_j == 5.0
    (zone / "energy_uj").write_text("7500000")
    assert Energy(cpu_j=meter.read().cpu_j).since(Energy(cpu_j=before.cpu_j)) == 2.5
    assert Energy(cpu_j=1.0).since(Energy(cpu_j=5.0)) is None, "the counter wrapped"
    assert EnergyMeter(tmp_path / "nowhere").read().cpu_j is None
    assert Energy().since(Energy()) is None
