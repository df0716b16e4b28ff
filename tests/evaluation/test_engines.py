"""Engines, the journal between them and the disk, and ranks: the same answers, whoever gives them."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from llamax.errors import LaunchError
from llamax.evaluation.engines import Ask, How, TorchEngine
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
    with open(tmp_path / "answers-0.jsonl", "ab") as stream:
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
