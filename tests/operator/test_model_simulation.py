"""The decisions about a build, held against a simulated cluster and a simulated user, whatever they do."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meedge_ray.api.kinds import KINDS
from meedge_ray.api.stages import STAGES
from meedge_ray.operator.controllers.model_plan import Build, Decision, Declared, decide
from meedge_ray.operator.controllers.model_status import build_conditions, build_status, read_build
from meedge_ray.operator.jobs_client import Job
from meedge_ray.operator.publishing import status_with

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NEEDS = {
    "pretrain": (),
    "cultivate": ("pretrain",),
    "share": ("pretrain", "cultivate"),
    "elasticize": ("pretrain",),
    "assemble": ("pretrain", "cultivate", "share", "elasticize"),
}


class Cluster(RuleBasedStateMachine):
    """A cluster and a user who do what they like, between decisions; the operator may die between any two actions."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.build = Build()
        self.spec = Declared(job_prefix="ns-m-0123abcd-", generation=1, keys={}, backoff_limit=2)
        self.versions = Counter[str]()
        self.present = list(STAGES)
        self.jobs: dict[str, Job] = {}
        self.ran: dict[str, tuple[str, str]] = {}  # stage and key of every job, of all clusters
        self.lost_clusters = 0
        self.results: set[tuple[str, str]] = set()  # stages and keys whose results lie on the disk
        self.worked: set[tuple[str, str]] = set()  # and of which they ever did
        self.is_damaged = False  # somebody took results away
        self.failures = Counter[tuple[str, str]]()  # by generation and stage
        self.bundle: str | None = None
        self._respec()

    def _respec(self) -> None:
        keys = {
            name: "|".join(f"{each}{self.versions[each]}" for each in (*NEEDS[name], name) if each in self.present)
            for name in self.present
        }
        self.spec = replace(self.spec, keys=keys)

    def _changed(self) -> None:
        self.spec = replace(self.spec, generation=self.spec.generation + 1)
        self._respec()

    @property
    def alive(self) -> list[str]:
        return [name for name, each in self.jobs.items() if not each.is_over]

    def _decide(self) -> Decision:
        before = {(stage.name, stage.key) for stage in self.build.stages if stage.state == "Succeeded"}
        decision = decide(self.spec, self.build, self.jobs, bundle_is_there=self.bundle is not None, now=self.now)
        self._write(decision.build)
        by_name = {stage.name: stage for stage in decision.build.stages}
        if (stage := decision.submit) is not None:
            assert not self.alive
            assert not self.spec.suspend
            assert stage.key == self.spec.keys[stage.name]
            assert all(by_name[need].state in ("Succeeded", "Skipped") for need in NEEDS[stage.name])
            assert self.is_damaged or (stage.name, stage.key) not in before
        for stage in decision.build.stages:
            assert stage.state != "Succeeded" or (stage.name, stage.key) in self.worked
        if decision.build.next is None and not self.is_damaged:
            assert self.bundle == self.spec.keys[STAGES[-1]]
        return decision

    def _write(self, build: Build) -> None:
        """Write the status, which comes before all else, and read it back."""
        content = {"metadata": {"generation": self.spec.generation}}
        status = status_with(content, build_status(build, None), build_conditions(build, self.now), self.now)
        assert KINDS[0].status_problems(status) == []
        self.build = read_build(status, build.started_at)
        assert self.build == build

    def _act(self, decision: Decision) -> None:
        if decision.stop is not None:
            assert decision.stop in self.alive
            assert decision.submit is None
        if decision.submit is None:
            return
        name = decision.submit.job_id or ""
        assert self.lost_clusters or name not in self.ran
        assert name not in self.jobs
        self.ran[name] = (decision.submit.name, decision.submit.key or "")
        self.jobs[name] = Job(id=name, state="PENDING", message="", started_at=self.now)

    def _end(self, name: str, state: str, exit_code: int | None, message: str = "") -> None:
        self.jobs[name] = replace(
            self.jobs[name], state=state, exit_code=exit_code, message=message, finished_at=self.now
        )

    def _try_to_succeed(self, name: str) -> None:
        stage, key = self.ran[name]
        declared_parts = {part.rstrip("0123456789"): part for part in key.split("|")}
        for need in (each for each in NEEDS[stage] if each in declared_parts):
            of_need = "|".join(declared_parts[each] for each in (*NEEDS[need], need) if each in declared_parts)
            if (need, of_need) not in self.results:
                self._end(name, "FAILED", 2, f"error: x: {stage} needs {need}, which is not finished. Run it")
                return
        self._end(name, "SUCCEEDED", 0)
        self.results.add((stage, key))
        self.worked.add((stage, key))
        if stage == STAGES[-1]:
            self.bundle = key

    @rule()
    def tick(self) -> None:
        self._act(self._decide())

    @rule()
    def tick_and_die_before_acting(self) -> None:
        self._decide()

    @rule(ticks=st.integers(1, 12))
    def all_goes_well(self, ticks: int) -> None:
        for _ in range(ticks):
            decision = self._decide()
            self._act(decision)
            if decision.stop is not None:
                self._end(decision.stop, "STOPPED", None)
            elif self.alive:
                self._try_to_succeed(self.alive[0])
            self.now += timedelta(seconds=1)

    @rule(ticks=st.integers(4, 12), exit_code=st.sampled_from([1, 137]))
    def all_fails(self, ticks: int, exit_code: int) -> None:
        for _ in range(ticks):
            self._act(self._decide())
            if self.alive:
                self.job_ends(exit_code)
            self.now += timedelta(seconds=100)

    @rule(seconds=st.sampled_from([1, 9, 30, 400]))
    def time_goes_by(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @precondition(lambda self: self.alive)
    @rule()
    def job_runs(self) -> None:
        [name] = self.alive
        self.jobs[name] = replace(self.jobs[name], state="RUNNING")

    @precondition(lambda self: self.alive)
    @rule(end=st.sampled_from(["succeeded", "stopped", "lost", 1, 137, 2]))
    def job_ends(self, end: str | int) -> None:
        [name] = self.alive
        match end:
            case "succeeded":
                self._try_to_succeed(name)
            case "stopped":
                self._end(name, "STOPPED", None)
            case "lost":
                self._end(name, "FAILED", None, "its supervisor died")
            case int():
                self._end(name, "FAILED", end, "some log")
                self.failures[name.split("-")[3], name.split("-")[4]] += 1

    @rule()
    def cluster_is_lost(self) -> None:
        self.jobs = {}
        self.lost_clusters += 1

    @precondition(lambda self: self.bundle)
    @rule()
    def bundle_is_removed(self) -> None:
        self.bundle, self.is_damaged = None, True

    @precondition(lambda self: self.results)
    @rule(data=st.data())
    def results_are_removed(self, data: st.DataObject) -> None:
        self.results.discard(data.draw(st.sampled_from(sorted(self.results))))
        self.is_damaged = True

    @rule(stage=st.sampled_from(STAGES[:-1]))
    def user_changes_a_stage(self, stage: str) -> None:
        self.versions[stage] += 1
        self._changed()

    @rule(stage=st.sampled_from(STAGES[:-1]))
    def user_adds_or_removes_a_stage(self, stage: str) -> None:
        present = set(self.present) ^ {stage}
        self.present = [name for name in STAGES if name in present]
        self._changed()

    @rule()
    def user_suspends_or_resumes(self) -> None:
        self.spec = replace(self.spec, suspend=not self.spec.suspend)
        self._changed()

    @rule(seconds=st.sampled_from([None, 60, 2000]))
    def user_sets_a_deadline(self, seconds: int | None) -> None:
        self.spec = replace(self.spec, deadline_s=seconds)
        self._changed()

    @invariant()
    def at_most_one_job_runs(self) -> None:
        assert len(self.alive) <= 1

    @invariant()
    def failures_stay_within_the_limit(self) -> None:
        assert all(count <= self.spec.backoff_limit + 1 for count in self.failures.values())

    @invariant()
    def stages_are_listed_once_and_in_order(self) -> None:
        assert [stage.name for stage in self.build.stages] in ([], list(STAGES))
        assert sum(stage.state == "Running" for stage in self.build.stages) <= 1

    def teardown(self) -> None:
        """Whatever happened: when the user lets it and jobs succeed, it becomes ready and then rests."""
        self.spec = replace(self.spec, suspend=False, deadline_s=None)
        self._changed()
        for _ in range(60):
            self.all_goes_well(1)
            self.now += timedelta(seconds=400)
        assert self.build.next is None
        rest = self._decide()
        assert (rest.stop, rest.submit, rest.notes) == (None, None, ())


TestWhateverHappens = Cluster.TestCase
TestWhateverHappens.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
