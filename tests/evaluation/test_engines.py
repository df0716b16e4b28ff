"""Engines, the journal between them and the disk, and ranks: the same answers, whoever gives them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import types
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llamax.errors import DiskFullError, LaunchError, ParameterError
from llamax.evaluation import engines, ranks
from llamax.evaluation.engines import Ask, How, TorchEngine, VllmEngine
from llamax.evaluation.journal import Journal, Journaled
from llamax.evaluation.ranks import RankedEngine, part_of_asks, part_of_pairs

PAIRS = [([0, 10 + n, 11], [[13, 14 + n], [15]]) for n in range(9)]
ASKS = [Ask([0, 20 + n], n) for n in range(9)]
HOW = How(max_new_tokens=6, stop_strings=())
SAMPLED = HOW._replace(temperature=1.0)


def scored(engine, pairs=PAIRS):
    found = {}
    engine.score(pairs, found.__setitem__)
    return [found[number] for number in range(len(pairs))]


def said(engine, asks=ASKS, how=HOW):
    found = {}
    engine.say(asks, how, found.__setitem__)
    return [found[number] for number in range(len(asks))]


@pytest.fixture
def engine(tiny_model, tiny_tokenizer):
    return TorchEngine(tiny_model, tiny_tokenizer)


class Counting:
    """An engine that notes what it is asked, and stops after `limit` answers as a killed process would."""

    def __init__(self, engine, limit=10**6):
        self.engine, self.limit, self.asked = engine, limit, []
        self.tokenizer, self.window = engine.tokenizer, engine.window

    def _until(self, done):
        def tell(number, answer):
            if not self.limit:
                raise KeyboardInterrupt
            self.limit -= 1
            done(number, answer)

        return tell

    def score(self, pairs, done):
        self.asked.extend(pairs)
        self.engine.score(pairs, self._until(done))

    def say(self, asks, how, done):
        self.asked.extend(asks)
        self.engine.say(asks, how, self._until(done))


def test_what_the_journal_has_is_not_computed_again(tmp_path, engine):
    first = Journaled(Counting(engine), Journal(tmp_path, "model"))
    expected = scored(first), said(first), said(first, how=SAMPLED)
    assert expected[:2] == (scored(engine), said(engine))
    again = Journaled(Counting(engine), Journal(tmp_path, "model", writer="other"))
    assert (scored(again), said(again), said(again, how=SAMPLED)) == expected
    assert again.engine.asked == []
    assert said(again, how=HOW._replace(max_new_tokens=5)) != expected[1]
    assert len(again.engine.asked) == len(ASKS)
    other = Journaled(Counting(engine), Journal(tmp_path, "another model"))
    assert scored(other) == expected[0] and len(other.engine.asked) == len(PAIRS)


def test_samples_of_one_prompt_are_told_apart_and_greedy_answers_are_not(tmp_path, engine):
    journal = Journal(tmp_path, "model")
    same = [Ask([0, 20], place) for place in range(4)]
    assert len({journal.key_of_ask(ask, SAMPLED) for ask in same}) == 4
    assert len({journal.key_of_ask(ask, HOW) for ask in same}) == 1
    assert len(set(said(Journaled(engine, journal), same, SAMPLED))) > 1


def test_an_interrupted_engine_goes_on_where_it_was(tmp_path, engine):
    with pytest.raises(KeyboardInterrupt):
        said(Journaled(Counting(engine, limit=4), Journal(tmp_path, "model")))
    with open(tmp_path / "answers-main.jsonl", "ab") as stream:
        stream.write(b'["half a li')  # killed while it wrote
    again = Journaled(Counting(engine), Journal(tmp_path, "model"))
    assert said(again) == said(engine)
    assert len(again.engine.asked) == len(ASKS) - 4
    assert len(Journal(tmp_path, "model").known) == len(ASKS)


def test_parts_are_a_partition_of_equal_work():
    pairs = [([n % 7, *range(n % 50)], [[1]]) for n in range(200)]
    for count in (1, 2, 3, 8):
        parts = [part_of_pairs(pairs, rank, count) for rank in range(count)]
        assert sorted(map(repr, [pair for part in parts for pair in part])) == sorted(map(repr, pairs))
        work = [sum(len(context) for context, _ in part) for part in parts]
        assert max(work) - min(work) < 110
        asks = [part_of_asks(ASKS, rank, count) for rank in range(count)]
        assert sorted([ask for part in asks for ask in part]) == sorted(ASKS)
    assert part_of_pairs(PAIRS[:1], 0, 3) + part_of_pairs(PAIRS[:1], 1, 3) + part_of_pairs(PAIRS[:1], 2, 3) == PAIRS[:1]


def test_what_begins_alike_stays_together_and_work_is_counted_in_tokens():
    pairs = [([group, *range(20), n], [[1]]) for n in range(10) for group in (2, 0, 3, 1)]
    assert [pair for rank in range(3) for pair in part_of_pairs(pairs, rank, 3)] == sorted(pairs)
    few_and_long = [*[([1] * 10, [[1]])] * 100, *[([0] * 100, [[1]])] * 10]
    assert len(part_of_pairs(few_and_long, 0, 2)) == pytest.approx(10, abs=1)
    assert [len(part_of_pairs([([], [[1]])] * 4, rank, 2)) for rank in range(2)] in ([0, 4], [4, 0])
    asks = [Ask([0] * length, length) for length in (3, 9, 1, 7, 5)]
    assert [[ask.place for ask in part_of_asks(asks, rank, 2)] for rank in range(2)] == [[9, 5, 1], [7, 3]]


def ranked(tmp_path, tiny_model, tiny_tokenizer, count):
    from llamax.models.save import save

    model = tmp_path / "model"
    if not model.exists():
        save(tiny_model, tiny_tokenizer, model)
    return RankedEngine(str(model), tiny_tokenizer, 256, Journal(tmp_path / "journal", "model"), ranks=count)


def test_two_ranks_answer_as_one_and_another_number_goes_on(request, tmp_path, tiny_model, tiny_tokenizer, engine):
    two = ranked(tmp_path, tiny_model, tiny_tokenizer, 2)
    request.addfinalizer(two.close)
    assert said(two, how=SAMPLED) == said(engine, how=SAMPLED)
    for ours, theirs in zip(scored(two), scored(engine), strict=True):
        assert [s.logprob for s in ours] == pytest.approx([s.logprob for s in theirs], abs=1e-5)
    written = sum(len(file.read_text().splitlines()) for file in (tmp_path / "journal").glob("answers-*"))
    assert written == len(PAIRS) + len(ASKS)
    assert {file.name for file in (tmp_path / "journal").glob("answers-*")} == {"answers-0.jsonl", "answers-1.jsonl"}
    process = two.process
    two.close()
    assert process.poll() == 0
    one = Counting(engine)
    assert said(Journaled(one, Journal(tmp_path / "journal", "model")), how=SAMPLED) == said(engine, how=SAMPLED)
    assert one.asked == []


def test_a_failing_rank_is_quoted(tmp_path, tiny_model, tiny_tokenizer):
    engine = ranked(tmp_path, tiny_model, tiny_tokenizer, 1)
    with pytest.raises(LaunchError, match=r"rank 0 failed(.|\n)*pair 0: context and every choice need"):
        scored(engine, [([], [[1]])])


def test_a_killed_evaluation_loses_at_most_its_batch(tmp_path, tiny_model, tiny_tokenizer, engine):
    from llamax.models.save import save

    save(tiny_model, tiny_tokenizer, tmp_path / "model")
    code = f"""
        import time
        from llamax.evaluation.engines import Ask, How, TorchEngine
        from llamax.evaluation.journal import Journal, Journaled
        from llamax.models.load import load
        from pathlib import Path
        engine = TorchEngine(*load({str(tmp_path / "model")!r}), batch_size=2)
        slow = lambda number, said: (print(number, flush=True), time.sleep(0.3))
        asks = [Ask([0, 20 + n], n) for n in range(9)]
        Journaled(engine, Journal(Path({str(tmp_path / "journal")!r}), "model")).say(asks, How(6, ()), slow)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        told = [process.stdout.readline() for _ in range(4)]
        os.kill(process.pid, signal.SIGKILL)
    assert all(line.strip().isdigit() for line in told)
    again = Counting(engine)
    assert said(Journaled(again, Journal(tmp_path / "journal", "model"))) == said(engine)
    assert len(again.asked) <= len(ASKS) - 4


# -- the journal ------------------------------------------------------------------------------------------------------


def test_any_torn_line_is_no_answer_and_costs_no_other(tmp_path):
    """Cut a journal at every byte and go on writing: all whole lines are read, and what comes after."""
    Journal(tmp_path / "whole", "model").write("a", [[-1.5, True]])
    whole = Journal(tmp_path / "whole", "model")
    whole.write("b", ["text\n\u2028", 3])
    whole.write("c", 5)
    data = whole.file.read_bytes()
    assert data.count(b"\n") == 3
    for cut in range(len(data) + 1):
        torn = Journal(tmp_path / "torn", "model")
        torn.file.write_bytes(data[:cut])
        again = Journal(tmp_path / "torn", "model")
        kept = data[:cut].count(b"\n") + (data[:cut].endswith(b"]") and data[cut : cut + 1] == b"\n")
        assert list(again.known) == ["a", "b", "c"][:kept]
        again.write("d", 7)
        assert Journal(tmp_path / "torn", "model").known == {**again.known, "d": 7}
    again.file.write_bytes(b'5\nnull\n[[1], 2]\n[1, 2, 3]\n\xff\n["a", 1]\n')
    assert Journal(tmp_path / "torn", "model").known == {"a": 1}


def test_a_disk_that_takes_a_line_in_pieces_gets_all_of_it(tmp_path):
    journal = Journal(tmp_path, "model")
    journal.write("a", 1)
    really = journal.stream
    journal.stream = types.SimpleNamespace(write=lambda data: really.write(data[:3]))
    journal.write("b", 2)
    assert Journal(tmp_path, "model").known == {"a": 1, "b": 2}


def test_after_a_write_that_failed_the_next_answer_is_not_lost(tmp_path):
    journal = Journal(tmp_path, "model")
    journal.write("a", 1)
    really = journal.stream

    def full(data):
        really.write(data[:3])
        raise OSError(28, "No space left on device")

    journal.stream = types.SimpleNamespace(write=full, close=really.close)
    with pytest.raises(DiskFullError):
        journal.write("b", 2)
    journal.write("c", 3)
    assert Journal(tmp_path, "model").known == {"a": 1, "c": 3}


def test_what_is_known_is_not_written_again(tmp_path):
    journal = Journal(tmp_path, "model")
    for _ in range(3):
        journal.write("a", 1)
    other = Journal(tmp_path, "model", writer="7")
    other.write("a", 1)
    assert [file.name for file in tmp_path.iterdir()] == ["answers-main.jsonl"]
    assert len(journal.file.read_bytes().splitlines()) == 1


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    """Two of one name, as two runs of one evaluation are, and one of another."""
    journals = [Journal(tmp_path, "model", writer) for writer in ("main", "main", "1")]
    for number in range(200):
        journals[number % 3].write(f"key{number}", ["x" * (number * 37 % 3000), number])
    assert len(Journal(tmp_path, "model").known) == 200


def test_keys_tell_apart_all_that_decides_an_answer_and_nothing_else(tmp_path):
    journal = Journal(tmp_path, "model")
    pairs = [([1, 2], [[3]]), ([1], [[2], [3]]), ([1], [[2, 3]]), ([1, 2, 3], [[4]]), ([1, 2], [[3], [3]])]
    assert len({journal.key_of_pair(pair) for pair in pairs}) == len(pairs)
    ask, hows = (
        Ask([1, 2], 5),
        [HOW, SAMPLED, HOW._replace(stop_strings=("a", "b")), HOW._replace(stop_strings=("ab",))],
    )
    hows += [HOW._replace(max_new_tokens=7), SAMPLED._replace(top_p=0.5), SAMPLED._replace(seed=1)]
    assert len({journal.key_of_ask(ask, how) for how in hows}) == len(hows)
    assert journal.key_of_ask(ask, HOW) != journal.key_of_ask(Ask([1, 3], 5), HOW)
    whole = How(6, [], 1, 1, 0)  # as a task's YAML may have it
    assert journal.key_of_ask(ask, whole) == journal.key_of_ask(ask, SAMPLED)
    assert Journal(tmp_path, "another").key_of_ask(ask, HOW) != journal.key_of_ask(ask, HOW)


def test_equal_requests_are_each_answered(tmp_path, engine):
    journaled = Journaled(engine, Journal(tmp_path, "model"))
    twice = [pair for pair in PAIRS[:3] for _ in range(2)]
    for _ in range(2):
        assert scored(journaled, twice)[::2] == scored(journaled, twice)[1::2]
        assert said(journaled, [*ASKS, *ASKS]) == said(engine) * 2


# -- ranks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def in_this_process(monkeypatch, engine):
    """Ranks without processes: each answers its part as `ranks.main` does, here; "lazy" ranks answer nothing."""
    ran, turn = [], threading.Lock()  # one model for all of them: one at a time

    class InTurn(Journaled):
        def score(self, pairs, done):
            with turn:
                super().score(pairs, done)

        def say(self, asks, how, done):
            with turn:
                super().say(asks, how, done)

    @contextlib.contextmanager
    def started(module, job_file, where):
        shared = ranks.Shared.parse(json.loads(job_file.read_text()), str(job_file))
        ran.append(shared)
        threads = []
        for rank in range(where.ranks):
            worker = InTurn(engine, Journal(Path(shared.journal), shared.identity, writer=str(rank)))
            worker = Lazy() if shared.model == "lazy" else worker
            arguments = (job_file.parent, worker, rank, where.ranks)
            threads.append(threading.Thread(target=ranks.answer_lists, args=arguments))
            threads[-1].start()
        process = SimpleNamespace(poll=lambda: None if any(one.is_alive() for one in threads) else 0, returncode=0)
        yield process
        assert process.poll() == 0

    class Lazy:
        """Says that it is done and has done nothing."""

        def score(self, pairs, done):
            pass

        def say(self, asks, how, done):
            pass

    monkeypatch.setattr(ranks, "started", started)
    monkeypatch.setattr(ranks, "POLL_SECONDS", 0.01)
    return ran


@pytest.mark.parametrize("count", [1, 3, 12])
def test_settings_that_are_whole_numbers_find_their_answers(tmp_path, in_this_process, tiny_tokenizer, engine, count):
    journal = Journal(tmp_path / "journal", "model")
    shared = Journaled(RankedEngine("a-model", tiny_tokenizer, 256, journal, ranks=count), journal)
    whole = How(6, (), 1, 1, 0)
    assert said(shared, how=whole) == said(engine, how=SAMPLED)
    for ours, theirs in zip(scored(shared), scored(engine), strict=True):
        assert [s.logprob for s in ours] == pytest.approx([s.logprob for s in theirs], abs=1e-5)
    assert said(shared, how=whole) == said(engine, how=SAMPLED)
    shared.engine.close()
    assert len(in_this_process) == 1  # for both lists of requests
    assert not (tmp_path / "journal" / "answers-main.jsonl").exists()
    lines = [file.read_bytes().count(b"\n") for file in (tmp_path / "journal").glob("answers-*")]
    assert sum(lines) == len(PAIRS) + len(ASKS)


def test_what_ranks_are_told_and_how_far_they_are(tmp_path, in_this_process, tiny_tokenizer, monkeypatch):
    bars = []

    @contextlib.contextmanager
    def bar(total, label, shown):
        steps = []
        bars.append((total, label, shown, steps))
        yield SimpleNamespace(advance=steps.append)

    monkeypatch.setattr(ranks, "Progress", bar)
    given = {"pad_token": "<pad>", "precision": "bf16", "batch_size": 7}
    shared = RankedEngine("m", tiny_tokenizer, 99, Journal(tmp_path, "model"), ranks=2, progress=True, **given)
    scored(shared)
    said(shared)
    shared.close()
    assert in_this_process == [ranks.Shared(model="m", journal=str(tmp_path), identity="model", **given)]
    assert (shared.window, shared.tokenizer) == (99, tiny_tokenizer)
    assert [(total, label, shown, sum(steps)) for total, label, shown, steps in bars] == [(9, "2 ranks", True, 9)] * 2


def test_ranks_that_start_anew_know_nothing_of_earlier_lists(tmp_path, in_this_process, tiny_tokenizer, engine):
    """After `close`, by the same engine and by another one in the same folder."""
    journal = Journal(tmp_path, "model")
    first = RankedEngine("m", tiny_tokenizer, 256, journal, ranks=2)
    for shared in (first, first, RankedEngine("m", tiny_tokenizer, 256, Journal(tmp_path, "model"), ranks=2)):
        for number in range(2):
            asks = [Ask([0, len(in_this_process), 40 + number], 0), Ask([0, len(in_this_process), 50 + number], 0)]
            assert said(shared, asks) == said(engine, asks)
        shared.close()
    assert len(in_this_process) == 3


def test_after_a_rank_has_failed_the_ranks_are_started_again(tmp_path, tiny_tokenizer, monkeypatch):
    begun = []

    @contextlib.contextmanager
    def started(module, job_file, where):
        begun.append(module)
        yield SimpleNamespace(poll=lambda: 3, returncode=3)

    monkeypatch.setattr(ranks, "started", started)
    monkeypatch.setattr(ranks, "first_failure", lambda folder, status, count: f"{folder.name} {status} {count}")
    failing = RankedEngine("m", tiny_tokenizer, 256, Journal(tmp_path, "model"), ranks=2)
    for _ in range(2):
        with pytest.raises(LaunchError, match="ranks 3 2"):
            said(failing)
    assert begun == ["llamax.evaluation.ranks"] * 2


def test_a_rank_loads_what_it_is_told_to(tmp_path, monkeypatch):
    from llamax.models import load as loading

    moved, loaded, answering = [], [], []
    model = SimpleNamespace(to=moved.append, config=SimpleNamespace(max_position_embeddings=64))

    def load(spec, **settings):
        loaded.append((spec, settings))
        return SimpleNamespaceTuple(model, "a tokenizer")

    class SimpleNamespaceTuple(tuple):
        model = property(lambda self: self[0])

        def __new__(cls, *parts):
            return super().__new__(cls, parts)

    monkeypatch.setattr(loading, "load", load)
    monkeypatch.setattr(ranks, "rank_of", lambda job: contextlib.nullcontext((1, 3)))
    monkeypatch.setattr(ranks, "device_of_rank", lambda: "cuda:1")
    monkeypatch.setattr(ranks, "answer_lists", lambda *arguments: answering.append(arguments))
    shared = ranks.Shared(
        model="m", pad_token="<pad>", precision="bf16", batch_size=7, journal=str(tmp_path), identity="model"
    )
    (tmp_path / "job.json").write_text(shared.model_dump_json())
    ranks.main(str(tmp_path / "job.json"))
    ((folder, engine, rank, count),) = answering
    assert (folder, rank, count, moved) == (tmp_path, 1, 3, ["cuda:1"])
    assert loaded == [("m", {"dtype": torch.bfloat16, "pad_token": "<pad>"})]
    assert engine.engine.batch_size == 7
    assert (engine.journal.file.name, engine.journal.identity) == ("answers-1.jsonl", "model")


def test_a_rank_has_the_gpu_of_its_place_on_its_machine(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("RANK", "11")
    for there, device in ((True, "cuda:3"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert ranks.device_of_rank() == device


def test_a_rank_that_nobody_asks_any_more_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "IDLE_SECONDS", 0)
    monkeypatch.setattr(ranks, "POLL_SECONDS", 0.01)
    ranks.answer_lists(tmp_path, None, 0, 2)
    assert list(tmp_path.iterdir()) == []


def test_an_answer_that_ranks_leave_out_is_an_error(tmp_path, in_this_process, tiny_tokenizer):
    engine = RankedEngine("lazy", tiny_tokenizer, 256, Journal(tmp_path, "model"), ranks=2)
    with pytest.raises(LaunchError, match="9 requests were answered by no rank"):
        scored(engine)
    with pytest.raises(LaunchError, match="9 requests were answered by no rank"):
        said(engine)
    engine.close()


# -- vLLM, as documented: a stand-in that computes by the definition ---------------------------------------------------


class FakeVllm(types.ModuleType):
    """`vllm.LLM` and `vllm.SamplingParams` around a model of ours; it refuses what vLLM refuses."""

    def __init__(self, model, tokenizer, window=256):
        super().__init__("vllm")
        self.net, self.tokenizer, self.window, self.calls, self.loaded = model, tokenizer, window, [], []
        self.own_eos = 300  # of the checkpoint's generation settings

    def LLM(self, **settings):
        self.loaded.append(settings)
        config = types.SimpleNamespace(max_model_len=self.window)
        return types.SimpleNamespace(generate=self.generate, llm_engine=types.SimpleNamespace(model_config=config))

    def SamplingParams(
        self, *, max_tokens=16, temperature=1.0, top_p=1.0, seed=None, stop=None, stop_token_ids=None,
        prompt_logprobs=None, ignore_eos=False, skip_special_tokens=True, detokenize=True,
    ):  # fmt: skip
        assert max_tokens >= 1 and temperature >= 0 and 0 < top_p <= 1 and "" not in (stop or [])
        assert detokenize or not stop
        return types.SimpleNamespace(**{key: value for key, value in locals().items() if key != "self"})

    def generate(self, prompts, params):
        assert prompts, "nothing asked"
        self.calls.append((prompts, params))
        params = params if isinstance(params, list) else [params] * len(prompts)
        return [self.one(p["prompt_token_ids"], q) for p, q in zip(prompts, params, strict=True)]

    def one(self, ids, how):
        assert 0 < len(ids) < self.window, "the prompt and one new token are longer than the maximum model length"
        said, text = [], ""
        stop_ids = {
            *(how.stop_token_ids or []),
            *([] if how.ignore_eos else [self.tokenizer.eos_token_id, self.own_eos]),
        }
        while len(said) < how.max_tokens and len(ids) + len(said) < self.window:
            logits = self.net(torch.tensor([ids + said])).logits[0, -1]
            said.append(int(logits.argmax()))
            if said[-1] in stop_ids:
                break  # the stop token is among the ids
            text = self.tokenizer.decode(said, skip_special_tokens=how.skip_special_tokens)
            if any(string in text for string in how.stop or []):
                break
        outputs = [types.SimpleNamespace(text=text, token_ids=tuple(said))]
        return types.SimpleNamespace(outputs=outputs, prompt_logprobs=self.logprobs(ids, how.prompt_logprobs))

    def logprobs(self, ids, count):
        """None, then for each token of the prompt a dict of it and of the `count` most probable ones."""
        if count is None:
            return None
        places = [None]
        for row, token in zip(self.net(torch.tensor([ids])).logits[0].detach().log_softmax(-1), ids[1:], strict=False):
            kept = dict.fromkeys([token, *row.topk(count).indices.tolist()])
            places.append(
                {t: types.SimpleNamespace(logprob=float(row[t]), rank=int((row >= row[t]).sum())) for t in kept}
            )
        return places


@pytest.fixture
def vllm(monkeypatch, tiny_model, tiny_tokenizer):
    found = FakeVllm(tiny_model, tiny_tokenizer)
    monkeypatch.setitem(sys.modules, "vllm", found)
    return found


def test_vllm_scores_as_ours(vllm, tiny_model, tiny_tokenizer, engine, monkeypatch):
    theirs = VllmEngine("a-model", tiny_tokenizer, gpu_memory_utilization=0.5)
    expected_settings = {"model": "a-model", "dtype": "bfloat16", "enable_prefix_caching": True}
    assert vllm.loaded == [expected_settings | {"gpu_memory_utilization": 0.5}]
    best = [int(tiny_model(torch.tensor([context])).logits[0, -1].argmax()) for context, _ in PAIRS]
    pairs = [(context, [*choices, [token]]) for (context, choices), token in zip(PAIRS, best, strict=True)]
    monkeypatch.setattr(engines, "VLLM_PROMPTS", 7)
    found = scored(theirs, pairs)
    assert [len(prompts) for prompts, _ in vllm.calls] == [9, 9, 9]
    for one, two in zip(found, scored(engine, pairs), strict=True):
        assert [s.logprob for s in one] == pytest.approx([s.logprob for s in two], abs=1e-4)
        assert [s.greedy for s in one] == [s.greedy for s in two]
        assert one[2].greedy and not one[0].greedy
    theirs.score([], None)
    scored(theirs, [([1] * (theirs.window - 1), [[2, 3]])])  # the longest that is let through


def test_two_best_tokens_are_both_greedy_for_vllm(vllm, tiny_tokenizer):
    logprob = lambda value, rank: types.SimpleNamespace(logprob=value, rank=rank)  # noqa: E731
    tied, behind = {7: logprob(-1.0, 2), 8: logprob(-1.0, 2)}, {7: logprob(-2.0, 3), 8: logprob(-1.0, 1)}
    assert engines._scored([tied, tied], [7, 8]) == (-2.0, True)
    assert engines._scored([tied, behind], [7, 7]) == (-3.0, False)


def test_vllm_says_as_ours(vllm, tiny_tokenizer, engine, monkeypatch):
    """With EOS in the middle, stop strings, one of them a special token, and settings of the model's own left out."""
    theirs = VllmEngine("a-model", tiny_tokenizer)
    spoken = FakeVllm.one(vllm, ASKS[0].ids, vllm.SamplingParams(max_tokens=6, ignore_eos=True)).outputs[0].token_ids
    vllm.own_eos = spoken[2]
    free = said(engine, how=HOW._replace(max_new_tokens=9))
    monkeypatch.setattr(engines, "VLLM_PROMPTS", 4)
    for strings in [(), (free[0].text[3:6], ""), ("<|im_end|>",), ("</s>", free[1].text[2:4])]:
        how = HOW._replace(max_new_tokens=9, stop_strings=strings)
        assert said(theirs, how=how) == said(engine, how=how)
    assert [len(prompts) for prompts, _ in vllm.calls[:3]] == [4, 4, 1]
    theirs.say([], HOW, None)


@pytest.mark.parametrize("special", ["eos_token", "im_end"])
def test_vllm_ends_where_ours_ends(vllm, tiny_tokenizer, engine, tiny_model, special):
    """Greedy decoding is made to say a special token third: it ends the answer, and is in no text."""
    token = (
        tiny_tokenizer.eos_token_id if special == "eos_token" else tiny_tokenizer.convert_tokens_to_ids("<|im_end|>")
    )
    rows = tiny_model.lm_head.weight.data
    spoken = FakeVllm.one(vllm, ASKS[0].ids, vllm.SamplingParams(max_tokens=6, ignore_eos=True)).outputs[0].token_ids
    assert spoken[2] not in spoken[:2]
    rows[[token, spoken[2]]] = rows[[spoken[2], token]]
    how = HOW._replace(stop_strings=("<|im_end|>",))
    ours, theirs = said(engine, ASKS[:1], how), said(VllmEngine("a-model", tiny_tokenizer), ASKS[:1], how)
    assert ours == theirs
    assert ours[0].tokens == (2 if special == "eos_token" else 3)
    assert "<" not in ours[0].text


def test_vllm_draws_by_place_and_seed(vllm, tiny_tokenizer):
    theirs = VllmEngine("a-model", tiny_tokenizer)
    said(theirs, [Ask([1], 5), Ask([1], 6)], SAMPLED)
    said(theirs, [Ask([1], 5)], SAMPLED._replace(seed=1))
    said(theirs, [Ask([1], 5)], HOW)
    first, second, third = ([one.seed for one in params] for _, params in vllm.calls)
    assert len({*first, *second}) == 3 and third == [None]
    assert all(0 <= seed < 2**63 for seed in (*first, *second))
    assert vllm.calls[0][1][0].temperature == 1.0


def test_without_vllm_it_is_one_line(monkeypatch, tiny_tokenizer):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ParameterError, match="pip install vllm") as caught:
        VllmEngine("a-model", tiny_tokenizer)
    assert "\n" not in str(caught.value)
