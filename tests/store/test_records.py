"""Jobs, requests, samples, runs and hashes at rest."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lathe.store import requests, samples
from lathe.store.errors import NotFound
from lathe.store.hashes import Hashes, HashRecord
from lathe.store.jobs import JobRecord, Jobs
from lathe.store.requests import RequestRecord, Requests
from lathe.store.runs import Runs, StepRecord
from lathe.store.samples import Samples, Tier
from msgspec.structs import replace
from support.stores import memory_store

DAY = 86_400.0


# -- jobs ----------------------------------------------------------------------------------------------------------


def job(jobs: Jobs, state: str = "done", **changes: object) -> JobRecord:
    record = replace(JobRecord(id=jobs.new_id(), kind="scan", state=state, body='{"a": 1}'), **changes)
    jobs.save(record)
    return record


def test_jobs_come_back_newest_first_by_number_not_by_clock() -> None:
    with memory_store() as db:
        jobs = Jobs(db)
        first, second, third = (job(jobs, created_at=at) for at in (5e9, 1.0, 2.0))
        assert [record.id for record in (first, second, third)] == ["j-1", "j-2", "j-3"]
        assert jobs.newest() == [third, second, first]
        assert jobs.newest(2) == [third, second]
        assert jobs.get("j-2") == second


def test_numbers_are_never_given_twice() -> None:
    with memory_store() as db:
        jobs = Jobs(db)
        job(jobs), job(jobs, "failed"), job(jobs, "running")
        reserved = jobs.new_id()
        assert jobs.clear_finished() == 2
        assert jobs.new_id() == "j-5"
        assert [record.state for record in jobs.newest()] == ["running"]
        with pytest.raises(NotFound):
            jobs.get(reserved)


def test_unfinished_jobs_oldest_first() -> None:
    with memory_store() as db:
        jobs = Jobs(db)
        states = ["running", "done", "queued", "cancelled", "failed", "interrupted", "running"]
        for state in states:
            job(jobs, state, run="r-1" if state == "running" else None)
        assert [record.id for record in jobs.unfinished()] == ["j-1", "j-3", "j-7"]
        assert [record.id for record in jobs.of_run("r-1")] == ["j-1", "j-7"]
        assert [record.id for record in jobs.newest(states=("done", "failed"))] == ["j-5", "j-2"]


@pytest.mark.parametrize("name", ["", "j-", "j-0", "j-99", "j--1", "j-1 ", "j-²", "1", "j-1; DROP", f"j-{2**70}"])
def test_ids_that_are_none_find_nothing(name: str) -> None:
    with memory_store() as db:
        record = job(Jobs(db))
        with pytest.raises(NotFound, match="no job"):
            Jobs(db).get(name)
        with pytest.raises(NotFound):
            Jobs(db).save(replace(record, id=name))
        assert Jobs(db).get("j-1") == record


# -- requests --------------------------------------------------------------------------------------------------------


def request(number: int, **changes: object) -> RequestRecord:
    base = RequestRecord(id=f"q{number}", model="m", client="key", finish="stop", finished_at=float(-number))
    return replace(base, **changes)


def test_the_request_log_is_capped_and_ordered_by_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "KEPT", 5)
    with memory_store() as db:
        log = Requests(db)
        log.add([request(number) for number in range(3)])
        log.add([request(number, model="other") for number in range(3, 7)])
        log.add([])
        assert [record.id for record in log.newest()] == ["q6", "q5", "q4", "q3", "q2"]
        assert [record.id for record in log.newest(model="m")] == ["q2"]
        assert log.count() == 5


def test_the_request_log_has_no_place_for_text() -> None:
    fields = set(RequestRecord.__struct_fields__)
    assert not fields & {"prompt", "messages", "text", "answer", "content", "address"}
    with memory_store() as db:
        assert {column.name for column in db.table("requests").columns} == fields | {"number"}


# -- samples -------------------------------------------------------------------------------------------------------


def test_a_bucket_holds_mean_and_peak_of_what_is_known() -> None:
    with memory_store() as db:
        history = Samples(db)
        for at, value in ((100.0, 1.0), (101.0, 3.0), (109.9, None)):
            history.add(at, {"cpu": value, "load": 7.0})
        (bucket,) = history.history(95, 110)
        assert (bucket.bucket, bucket.width_s) == (100, 10)
        assert bucket.figures["cpu"] == samples.Figure(2, 2.0, 3.0)
        assert bucket.figures["load"] == samples.Figure(3, 7.0, 7.0)


def test_the_span_chooses_the_width() -> None:
    with memory_store() as db:
        history = Samples(db)
        for minute in range(180):
            history.add(minute * 60.0, {"cpu": float(minute)})
        now = 180 * 60.0
        assert {bucket.width_s for bucket in history.history(now - 3600, now)} == {10}
        assert {bucket.width_s for bucket in history.history(now - DAY, now)} == {60}
        quarters = history.history(now - 20 * DAY, now)
        assert [bucket.figures["cpu"].mean for bucket in quarters] == [7.0 + 15 * number for number in range(12)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-4e9, 4e9), max_size=40))
def test_no_clock_makes_the_history_grow_beyond_its_cap(times: list[float]) -> None:
    tiers = (Tier(10, 4), Tier(60, 3))
    with pytest.MonkeyPatch.context() as patch, memory_store() as db:
        patch.setattr(samples, "TIERS", tiers)
        for at in times:
            Samples(db).add(at, {"cpu": 0.5})
            for tier in tiers:
                newest = int(at // tier.width_s) * tier.width_s
                rows = db.execute("SELECT bucket FROM samples WHERE width_s = ?", [tier.width_s]).fetchall()
                assert len(rows) <= tier.kept
                assert (newest,) in rows


# -- runs ------------------------------------------------------------------------------------------------------------


def test_run_ids_count_within_their_day() -> None:
    with memory_store() as db:
        runs = Runs(db)
        ids = [runs.start("p", at).id for at in (0.0, 1.0, DAY, 2.0, 0.5)]
        assert ids == ["r-1970-01-01-01", "r-1970-01-01-02", "r-1970-01-02-01", "r-1970-01-01-03", "r-1970-01-01-04"]
        for _ in range(100):
            last = runs.start("p", DAY)
        assert last.id == "r-1970-01-02-101"
        assert runs.newest(1) == [last]
        ended = runs.finish(ids[0], "done", 0, 9.0)
        assert runs.get(ids[0]) == ended
        with pytest.raises(NotFound):
            runs.get("r-1970-01-01-00")


def test_steps_are_reused_by_key_only_when_done() -> None:
    with memory_store() as db:
        runs = Runs(db)
        run = runs.start("p", 0.0).id
        step = StepRecord(run=run, name="q4", key="k1", state="running")
        runs.record(step)
        assert runs.reusable("k1") is None
        done = replace(step, state="done", job="j-1", result='{"exit":0}')
        runs.record(StepRecord(run=run, name="later", key="k2", state="failed"))
        runs.record(done)
        assert runs.steps(run) == [done, StepRecord(run=run, name="later", key="k2", state="failed")]
        assert runs.reusable("k1") == done
        assert runs.reusable("k2") is None
        again = replace(done, run=runs.start("p", 0.0).id)
        runs.record(again)
        assert runs.reusable("k1") == again


# -- hashes ----------------------------------------------------------------------------------------------------------


def test_a_hash_counts_for_the_size_and_time_it_was_made_for() -> None:
    with memory_store() as db:
        hashes = Hashes(db)
        hashes.put(HashRecord(path="/m/a", size=1, mtime_ns=2, sha256="x"))
        assert hashes.get("/m/a", 1, 2) == "x"
        assert hashes.get("/m/a", 1, 3) is hashes.get("/m/a", 2, 2) is hashes.get("/m/b", 1, 2) is None
        hashes.put(HashRecord(path="/m/a", size=1, mtime_ns=3, sha256="y"))
        assert hashes.get("/m/a", 1, 3) == "y"
        for path in ("/m/ab", "/m2/a", "/m/%"):
            hashes.put(HashRecord(path=path, size=1, mtime_ns=1, sha256="z"))
        hashes.forget("/m")
        assert hashes.get("/m/a", 1, 3) is hashes.get("/m/%", 1, 1) is None
        assert hashes.get("/m2/a", 1, 1) == "z"
