import gc
import signal
import threading
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.domain.elastic import InputSpec, bytes_of
from meedge_ray.domain.errors import InvalidInputError, NotFoundError
from meedge_ray.runtime.engine import Engine
from meedge_ray.runtime.memory import rss_bytes
from meedge_ray.runtime.preemption import Preemption

ALL = ("exit0-small", "exit0-large", "exit1-small", "exit1-large", "exit2-small", "exit2-large")


class TripsAtRead(Preemption):
    """Is tripped by the n-th look at it, and counts the looks."""

    def __init__(self, reads):
        self.reads_left, self.reads = reads, 0
        super().__init__()

    @property
    def at(self):
        self.reads += 1
        if self.reads == self.reads_left:
            self.tripped_at = perf_counter()
        return self.tripped_at

    @at.setter
    def at(self, value):
        self.tripped_at = value


@pytest.fixture(scope="module")
def long_world(worlds):
    """A chain that takes milliseconds."""
    return worlds(blocks=100)


@pytest.fixture(scope="module")
def long_engine(long_world):
    return long_world.engine(*(f"exit{index}-small" for index in range(100)))


def softmax(logits):
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def test_every_result_is_that_of_the_network(world, samples):
    answer = world.engine(*ALL).infer(samples[0])
    expected = world.logits(samples[:1])
    assert [output.branch for output in answer.outputs] == [*ALL, None]
    for output in answer.outputs:
        confidences = softmax(expected[output.branch][0])
        assert output.label == confidences.argmax()
        assert output.confidence == pytest.approx(confidences.max(), abs=1e-5)
    assert (answer.ending, answer.branch, answer.exit_index) == ("completed", None, 3)
    assert answer.confidences == pytest.approx(softmax(expected[None][0]), abs=1e-5)
    assert answer.label == np.argmax(answer.confidences)
    times = [output.at_ms for output in answer.outputs]
    assert [0, *times, answer.elapsed_ms] == sorted([0, *times, answer.elapsed_ms])


def test_a_batch_gives_the_logits_of_every_exit(world, samples):
    logits = world.engine(*ALL).infer_batch(samples)
    expected = world.logits(samples)
    assert set(logits) == {*ALL, None}
    for branch, values in logits.items():
        assert values.shape == (len(samples), 3)
        np.testing.assert_allclose(values, expected[branch], atol=1e-4)


def test_confidences_of_many_classes_are_a_softmax_too(worlds, samples):
    world = worlds(classes=200)
    confidences = world.engine().infer(samples[0]).confidences
    assert len(confidences) == 200
    assert confidences == pytest.approx(softmax(world.logits(samples[:1])[None][0]), abs=1e-5)


@pytest.mark.parametrize("count", [0, 1, 127, 128, 129])
def test_a_batch_may_have_any_size(world, count):
    samples = np.random.default_rng(2).random((count, 2, 4, 4))
    logits = world.engine("exit0-small").infer_batch(samples)
    assert {branch: values.shape for branch, values in logits.items()} == {
        "exit0-small": (count, 3),
        None: (count, 3),
    }


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float32, np.float64, np.bool_])
def test_samples_may_have_any_numeric_type(world, samples, dtype):
    engine = world.engine()
    raw = (samples[0] % 2).astype(dtype)
    expected = softmax(world.logits(raw[None].astype(float))[None][0])
    assert engine.infer(raw).confidences == pytest.approx(expected, abs=1e-3)
    assert engine.infer(raw.tolist()).confidences == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        (np.zeros((4, 4, 2)), r"has shape \(4, 4, 2\), expected is \(2, 4, 4\)"),
        (np.zeros((1, 2, 4, 4)), r"has shape \(1, 2, 4, 4\), expected is \(2, 4, 4\)"),
        (np.full((2, 4, 4), np.nan), "not finite"),
        (np.full((2, 4, 4), -np.inf), "not finite"),
        (np.full((2, 4, 4), 1e300), "not finite"),
        (np.full((2, 4, 4), "1"), "expected are numbers"),
        (np.full((2, 4, 4), 1j), "expected are numbers"),
        (np.full((2, 4, 4), None), "expected are numbers"),
        ([[1, 2], [3]], "is not an array"),
        (None, "expected are numbers"),
    ],
)
def test_what_is_no_sample_is_refused_with_the_shape_expected(world, sample, said):
    with pytest.raises(InvalidInputError, match=said):
        world.engine().infer(sample)


def test_a_batch_of_another_shape_is_refused(world, samples):
    with pytest.raises(InvalidInputError, match=r"has shape \(2, 4, 4\), expected is \(n, 2, 4, 4\)"):
        world.engine().infer_batch(samples[0])


def test_the_most_accurate_result_at_hand_is_the_answer(worlds, samples):
    weak_end = worlds(final_accuracy=0.1)
    answer = weak_end.engine("exit0-large", "exit1-small").infer(samples[0])
    assert answer.branch == "exit1-small"
    assert answer.ending == "completed"
    assert len(answer.outputs) == 3


def test_branches_of_one_exit_run_by_accuracy_however_they_are_given(world):
    assert world.engine(*reversed(ALL)).branches == ALL


@pytest.fixture(scope="module", params=[False, True], ids=["own units", "shared units"])
def three_results(worlds, request):
    return worlds(shared=request.param).engine("exit0-small", "exit2-large")


@given(reads=st.integers(1, 30))
def test_a_preemption_ends_the_inference_within_one_unit(three_results, samples, reads):
    preemption = TripsAtRead(reads)
    start = perf_counter()
    answer = three_results.infer(samples[0], preemption=preemption)
    assert all(start + output.at_ms / 1e3 <= preemption.tripped_at for output in answer.outputs)
    if answer.ending == "preempted":
        # Looked at once more to weigh the last result, and once or twice to name the ending.
        assert preemption.reads <= reads + 4
        assert len(answer.outputs) < 3
    else:
        assert len(answer.outputs) == 3


def test_a_preemption_before_the_start_leaves_no_answer(world, samples):
    preemption = Preemption()
    preemption.trip()
    answer = world.engine(*ALL).infer(samples[0], preemption=preemption)
    assert (answer.label, answer.confidences, answer.outputs) == (None, (), ())
    assert (answer.exit_index, answer.branch, answer.ending) == (None, None, "preempted")


def test_the_first_trip_counts():
    preemption = Preemption()
    preemption.trip()
    first = preemption.at
    preemption.trip()
    assert preemption.at == first <= perf_counter()


def test_another_thread_preempts_a_running_inference(long_engine, samples):
    for _ in range(200):
        preemption, running = Preemption(), threading.Event()

        def trip(preemption=preemption, running=running):
            running.wait()
            preemption.trip()

        thread = threading.Thread(target=trip)
        thread.start()
        running.set()
        start = perf_counter()
        answer = long_engine.infer(samples[0], preemption=preemption)
        thread.join()
        if answer.ending == "preempted":
            assert len(answer.outputs) < 101
            assert all(start + output.at_ms / 1e3 <= preemption.at for output in answer.outputs)
            return
    pytest.fail("no inference was preempted")


def test_a_signal_handler_preempts_a_running_inference(long_engine, samples):
    preemption = Preemption()
    before = signal.signal(signal.SIGALRM, lambda *_: preemption.trip())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        answer = long_engine.infer(samples[0], preemption=preemption)
        while preemption.at == np.inf:
            answer = long_engine.infer(samples[0], preemption=preemption)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert answer.ending in ("preempted", "completed")  # the last unit may have been under way
    assert len(long_engine.infer(samples[0], preemption=preemption).outputs) == 0


@given(deadline_ms=st.floats(0, 20))
def test_only_results_before_the_deadline_count(long_engine, long_world, samples, deadline_ms):
    answer = long_engine.infer(samples[0], deadline_ms=deadline_ms)
    assert all(output.at_ms < deadline_ms for output in answer.outputs)
    if answer.ending == "deadline":
        assert len(answer.outputs) < 101
        assert answer.elapsed_ms >= deadline_ms
    else:
        assert (answer.ending, len(answer.outputs)) == ("completed", 101)
    if answer.outputs:
        assert (answer.branch, answer.label) == (answer.outputs[-1].branch, answer.outputs[-1].label)
    else:
        assert answer.label is None


@pytest.mark.parametrize("deadline_ms", [-1, float("nan")])
def test_a_deadline_that_is_none_is_refused(world, samples, deadline_ms):
    with pytest.raises(InvalidInputError, match="no deadline"):
        world.engine().infer(samples[0], deadline_ms=deadline_ms)


def test_the_earlier_of_deadline_and_preemption_names_the_ending(world, samples):
    preemption = Preemption()
    preemption.trip()
    assert world.engine().infer(samples[0], deadline_ms=1e6, preemption=preemption).ending == "preempted"
    assert world.engine().infer(samples[0], deadline_ms=0, preemption=Preemption()).ending == "deadline"


def test_placing_loads_only_what_is_new(world):
    engine = world.engine("exit0-small", "exit1-large")
    asked = []

    def read(unit):
        asked.append(unit)
        return world.read(unit)

    wanted = [world.branch(name) for name in ("exit0-small", "exit2-small")]
    engine.place(wanted, read)
    assert tuple(asked) == world.branch("exit2-small").units
    assert engine.branches == ("exit0-small", "exit2-small")
    assert engine.resident_bytes == world.bundle.backbone_bytes + bytes_of(wanted)


def test_a_branch_that_cannot_be_had_leaves_the_others_in_place(world, samples):
    engine = world.engine("exit0-small")

    def absent(unit):
        raise NotFoundError("gone")

    with pytest.raises(NotFoundError):
        engine.place([world.branch("exit1-large")], absent)
    assert engine.branches == ("exit0-small",)
    assert len(engine.infer(samples[0]).outputs) == 2


def test_a_unit_that_does_not_fit_is_refused_by_name(world):
    engine = world.engine("exit0-small")
    branch = world.branch("exit1-large")
    for data, said in (
        (b"no model", "ONNX Runtime cannot load it"),
        (b"", "ONNX Runtime cannot load it"),
        (world.blocks[0], "cannot run on an input of shape"),
        (world.blocks[1], "it returns shape"),
    ):
        with pytest.raises(InvalidInputError, match=said) as error:
            engine.place([branch], lambda _, data=data: data)
        assert error.value.where == "branch exit1-large"
    assert engine.branches == ("exit0-small",)


def test_blocks_that_do_not_follow_each_other_are_refused(world):
    spec, (first, second, third, head) = world.bundle.input, world.blocks
    for blocks, where in (
        ([], "blocks"),
        ([second], "block 0"),
        ([first, head, third], "block 2"),
        ([first, second], "block 1"),
    ):
        with pytest.raises(InvalidInputError) as error:
            Engine(spec, blocks, final_accuracy=0.9)
        assert error.value.where == where


def test_an_input_whose_channels_and_statistics_differ_is_refused(world):
    for spec in (
        InputSpec(shape=(2, 4, 4), mean=(0.0, 0.0, 0.0)),
        InputSpec(shape=(2, 4, 4), std=(1.0, 0.0)),
    ):
        with pytest.raises(InvalidInputError):
            Engine(spec, world.blocks, final_accuracy=0.9)


def test_every_inference_sees_one_set_while_branches_are_exchanged(world, samples):
    sets = [ALL[:2], ALL[2:], (), ALL]
    engine = world.engine(*ALL)
    expected = {name: int(values[0].argmax()) for name, values in world.logits(samples[:1]).items()}
    done, answers, failures = threading.Event(), [], []

    def infer():
        try:
            while not done.is_set():
                answers.append(engine.infer(samples[0]))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=infer) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(60):
        world.place(engine, *sets[turn % len(sets)])
    done.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert {tuple(output.branch for output in answer.outputs[:-1]) for answer in answers} <= set(sets)
    assert all(output.label == expected[output.branch] for answer in answers for output in answer.outputs)


def test_unit_times_name_every_unit(world, samples):
    block_ms, branch_ms = world.engine(*ALL).unit_times(samples[0])
    assert block_ms.shape == (4,)
    assert (block_ms > 0).all()
    assert set(branch_ms) == set(ALL)
    assert all(time_ms > 0 for time_ms in branch_ms.values())


def test_dropped_branches_give_their_memory_back(worlds):
    world = worlds(ballast=20_000)  # the larger branches take 5, 10 and 15 MB
    gc.collect()  # of what other tests left, which must not fall meanwhile
    engine = world.engine()
    before = rss_bytes()
    world.place(engine, *ALL)
    assert rss_bytes() - before > 25_000_000
    world.place(engine)
    assert rss_bytes() - before < 10_000_000
    assert engine.branches == ()
    assert engine.resident_bytes == sum(map(len, world.blocks))
