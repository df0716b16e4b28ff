"""Overlap of training data and test items: against counting by hand, at scale against the counted table."""

import gzip
import json
import random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import confint_proportions_2indep
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW
from typer.testing import CliRunner

from llamax import cli
from llamax.data.sources import rows
from llamax.data.world.items import test_items
from llamax.errors import DataError, ParameterError
from llamax.evaluation.contamination import (
    Document,
    Index,
    Item,
    Report,
    Scan,
    as_json,
    benchmark_items,
    benchmark_names,
    check,
    clean_scores,
    clean_subset,
    command,
    decontaminate,
    documents,
    flagged,
    read_report,
    rows_to_remove,
    summary,
    write,
)
from llamax.evaluation.contamination import index as index_module
from llamax.evaluation.contamination.clean import detectable_difference
from llamax.evaluation.contamination.report import item_table, row_table, run
from llamax.evaluation.contamination.show import report_text
from llamax.evaluation.contamination.tokens import tokenize, unspaced
from llamax.evaluation.questions import Question, _options

runner = CliRunner()
LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
NINE = "what is the longest river in this small country"


def scanned(items, texts, piece=1_000_000):
    """The two tables of a report on rows 1, 2, ... with these texts."""
    scan = Scan(Index(items), piece)
    run(scan, [Document(n, text) for n, text in enumerate(texts, 1)])
    return item_table(scan), row_table(scan)


def item(text, question=None, name="i", benchmark="b"):
    return Item(benchmark, name, text, text if question is None else question)


class TestTokens:
    @pytest.mark.parametrize(
        ("text", "tokens"),
        [
            ("Hello, WORLD_x 1,234!", ["hello", "world", "x", "1", "234"]),
            ("naïve – café Straße", ["naïve", "café", "straße"]),
            ("cafe\u0301 ＦＵＬＬ ﬁne", ["café", "full", "fine"]),
            ("什么是 AI2?", ["什", "么", "是", "ai2"]),
            ("カナ・かな", ["カ", "ナ", "か", "な"]),
            ("हिन्दी में", ["हिन्दी", "में"]),
            ("한국어 질문", ["한국어", "질문"]),
            ("ที่นี่", ["ที่", "นี่"]),
            ("Ünïted_İ", ["ünïted", "i̇"]),
            ("", []),
            ("… — !?", []),
        ],
    )
    def test_examples(self, text, tokens):
        assert tokenize(text) == tokens

    @given(st.text(alphabet=st.characters(max_codepoint=127)))
    def test_ascii_is_the_plain_rule_by_either_way(self, text):
        # a letter outside ASCII sends the same text the long way
        assert tokenize(text + " ж") == [*tokenize(text), "ж"]

    def test_only_scripts_without_blanks_are_unspaced(self):
        assert [unspaced(t) for t in ("word", "什", "ที่", "한국어", "हिन्दी", "é")] == [False, True, True] + [False] * 3


def grams(tokens, n):
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def by_hand(items, texts):
    """What a check should find, by sets of tuples: (hits_8, hits_13, question) of each item, measures of each row."""
    rows = [text.split() for text in texts]
    held = {n: [set(grams(row, n)) for row in rows] for n in (8, 13)}
    found, touched = [], {}
    for one in items:
        words, asked = one.text.split(), one.question.split()
        hits = []
        for n in (8, 13):
            hits.append(sum(any(gram in row for row in held[n]) for gram in grams(words, n)))
            for number, row in enumerate(held[n], 1):
                if row & set(grams(words, n)):
                    touched.setdefault(number, set()).add(f"ngram_{n}")
        has = [number for number, row in enumerate(rows, 1) if tuple(asked) in grams(row, len(asked))]
        has = has if len(asked) >= 8 else []
        for number in has:
            touched.setdefault(number, set()).add("question")
        found.append((*hits, bool(has)))
    return found, touched


sentence = st.lists(st.sampled_from("ab"), max_size=40).map(" ".join)  # two words, so that overlaps abound
long_text = st.lists(st.sampled_from("ab"), min_size=60, max_size=150).map(" ".join)
small_items = st.lists(st.tuples(sentence, sentence), min_size=1, max_size=5).map(
    lambda pairs: [item(text, question, str(n)) for n, (text, question) in enumerate(pairs)]
)


class TestFinding:
    @given(small_items, st.lists(sentence, max_size=6))
    def test_equals_counting_by_hand(self, items, texts):
        table, rows = scanned(items, texts)
        found, touched = by_hand(items, texts)
        assert list(zip(table["hits_8"], table["hits_13"], table["question"], strict=True)) == found
        measures = {r.pop("row"): {name for name, hit in r.items() if hit} for r in rows.to_dict(orient="records")}
        assert measures == touched
        for hit, noted in zip(found, table["rows"], strict=True):
            assert bool(noted) == any(hit)
            assert set(noted) <= set(touched)

    @given(small_items, st.lists(sentence, max_size=9), st.integers(1, 9), st.randoms(use_true_random=False))
    def test_order_and_pieces_do_not_matter(self, items, texts, piece, rng):
        whole = scanned(items, texts)
        shuffled = [Document(n, text) for n, text in enumerate(texts, 1)]
        rng.shuffle(shuffled)
        scan = Scan(Index(items), piece)
        run(scan, shuffled)
        pd.testing.assert_frame_equal(item_table(scan), whole[0])
        pd.testing.assert_frame_equal(row_table(scan), whole[1])

    @given(small_items, long_text, st.integers(1, 9), st.data())
    def test_lines_of_one_text_are_one_text(self, items, text, piece, data):
        words = text.split()
        cuts = sorted(data.draw(st.lists(st.integers(0, len(words)), max_size=5)))
        lines = [words[a:b] for a, b in zip([0, *cuts], [*cuts, len(words)], strict=True)]
        scan = Scan(Index(items), piece)
        run(scan, [Document(n, " ".join(line), goes_on=n > 0) for n, line in enumerate(lines)])
        found = by_hand(items, [text])[0]
        table = item_table(scan)
        assert list(zip(table["hits_8"], table["hits_13"], table["question"], strict=True)) == found

    def test_what_lies_across_pieces_is_found_whole(self):
        words = [f"w{n}" for n in range(400)]
        items = [item(" ".join(words[start:][:50]), name=str(start)) for start in range(0, 350, 7)]
        scan = Scan(Index(items), piece=1)
        run(scan, [Document(n, " ".join(words[n : n + 3]), goes_on=n > 0) for n in range(0, 400, 3)])
        table = item_table(scan)
        assert set(table["hits_8"]) == {43}
        assert set(table["hits_13"]) == {38}
        assert table["question"].all()
        assert [rows[0] for rows in table["rows"]] == [start // 3 * 3 for start in range(0, 350, 7)]

    def test_a_row_is_the_line_on_which_the_overlap_begins(self):
        words = LONG.split()
        scan = Scan(Index([item(LONG)]), piece=4)
        lines = ["nothing here", " ".join(words[:4]), "", " ".join(words[4:]), "nor here"]
        run(scan, [Document(n, line, goes_on=n > 1) for n, line in enumerate(lines, 1)])
        assert item_table(scan)["rows"][0] == [2, 4]
        assert row_table(scan).to_dict(orient="list") == {
            "row": [2, 4], "ngram_13": [True, False], "ngram_8": [True, True], "question": [True, False],
        }  # fmt: skip

    @given(st.integers(13, 30), st.integers(0, 10**6))
    def test_a_planted_overlap_is_found_whatever_case_and_punctuation(self, length, seed):
        rng = random.Random(seed)
        words = [f"w{rng.randrange(10**6)}" for _ in range(60)]
        start = rng.randrange(len(words) - length + 1)
        planted = "".join(word.upper() + rng.choice([" ", ", ", "\n", ' "', "-"]) for word in words[start:][:length])
        table, _ = scanned([item(" ".join(words))], ["x y z", f"before {planted} after"])
        assert (table["hits_13"][0], table["hits_8"][0]) == (length - 12, length - 7)
        assert table["rows"][0][0] == 2

    @given(st.lists(st.sampled_from(["p", "q", "r"]), max_size=80).map(" ".join), sentence)
    def test_nothing_is_found_in_another_vocabulary(self, text, other):
        table, rows = scanned([item(other)], [text])
        assert not table[["hits_8", "hits_13", "question"]].to_numpy().any()
        assert rows.empty

    def test_nothing_spans_two_rows(self):
        table, _ = scanned([item(LONG)], [" ".join(LONG.split()[:7]), " ".join(LONG.split()[7:14])])
        assert table["hits_8"][0] == 0

    def test_an_item_ends_where_the_next_begins(self):
        first, second = "a b c d e f g", "h i j k l m n"
        table, _ = scanned([item(first, name="1"), item(second, name="2")], [f"{first} {second}"])
        assert table["ngrams_8"].tolist() == [0, 0]
        assert not table["question"].any()

    def test_a_question_of_seven_tokens_is_anybodys_and_one_of_eight_is_not(self):
        seven, eight = "who is the king of this place", "who is the king of this very place"
        table, _ = scanned([item(seven, name="7"), item(eight, name="8")], [f"Q: {seven}? Q: {eight}?"])
        assert table["question"].tolist() == [False, True]

    def test_the_question_counts_without_its_options(self):
        table, _ = scanned([item(f"{NINE}\nRed\nBlue", NINE)], [f"{NINE}? Yes."])
        assert table["question"][0]
        assert table["hits_13"][0] == 0

    def test_rows_with_a_13_gram_come_first(self):
        rows = [*[" ".join(LONG.split()[:8])] * 9, LONG]
        noted = scanned([item(LONG, "no")], rows)[0]["rows"][0]
        assert noted == [10, 1]
        rows = [" ".join(LONG.split()[start:][:8]) for start in range(8)]  # an 8-gram each
        assert scanned([item(LONG, "no")], rows)[0]["rows"][0] == [1, 2, 3, 4, 5]

    @pytest.mark.parametrize("piece", [1, 1000])
    def test_the_row_of_a_question_is_the_first_in_whatever_order(self, piece):
        scan = Scan(Index([item("no", NINE)]), piece)
        run(scan, [Document(row, f"{NINE}? {NINE}!") for row in (5, 2, 9)])
        assert item_table(scan)["rows"][0] == [2]
        assert row_table(scan)["row"].tolist() == [2, 5, 9]

    def test_languages(self):
        question = "世界で一番高い山は何という名前ですか"
        table, _ = scanned([item(question)], [f"質問：「{question}」"])
        assert table["question"][0]
        assert table["unspaced"][0] == 1.0

    def test_a_collision_of_hashes_is_no_hit(self):
        """The training text has another word in place of "nine", and both words have the same weight."""
        index = Index([item(LONG)])
        index.weights[0] = index.weights[index.vocabulary["nine"]]
        scan = Scan(index)
        other = LONG.replace("nine", "zzz")
        ids = np.array([index.vocabulary.get(word, 0) for word in other.split()], np.int32)
        hashes = index_module.hash_windows(ids, np.arange(3), 13, index.weights)
        assert set(hashes.tolist()) == set(index.grams[1].hashes.tolist())
        run(scan, [Document(1, other)])
        table = item_table(scan)
        assert (table["hits_8"][0], table["hits_13"][0], table["question"][0]) == (1, 0, False)

    def test_items_whose_hashes_collide_are_hashed_again(self, monkeypatch):
        drawn = []

        def poor_then_good(seed):
            drawn.append(seed)
            return np.random.Generator(np.random.PCG64(seed)) if seed else Constant()

        class Constant:
            def integers(self, low, high, size, dtype):
                return np.ones(size, dtype)

        monkeypatch.setattr(index_module.np.random, "default_rng", poor_then_good)
        table, _ = scanned([item(LONG)], [LONG])
        assert drawn == [0, 1]
        assert table["hits_13"][0] == 3

    def test_no_items_and_items_twice_are_errors(self):
        with pytest.raises(DataError, match="no test items"):
            Index([])
        with pytest.raises(DataError, match="b: item 'i' comes twice"):
            Index([item("x"), item("y")])


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


class TestDocuments:
    @pytest.mark.parametrize(
        ("row", "tokens"),
        [
            ({"instruction": "Do it", "input": "with this", "output": "done"}, "do it with this done"),
            ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}, "hi ho"),
            ({"prompt": "P", "chosen": "C", "rejected": "R"}, "p c r"),
            ({"question": "Q", "answer": "A"}, "q a"),
            ({"text": "T", "url": "x"}, "t"),
            ({"content": "T", "url": "x"}, "t"),
            ("just a text", "just a text"),
        ],
    )
    def test_all_text_of_a_row_is_one_document(self, tmp_path, row, tokens):
        found = documents(write_rows(tmp_path / "d.jsonl", [row, row]))
        assert [(d.row, " ".join(tokenize(d.text)), d.goes_on) for d in found.stream] == [
            (1, tokens, False), (2, tokens, False),
        ]  # fmt: skip
        assert found.total == 2

    def test_named_fields_are_all_that_is_read(self, tmp_path):
        rows = [{"question": "Q", "answer": "A", "note": None}, {"question": "R", "answer": "", "note": "n"}]
        path = write_rows(tmp_path / "d.jsonl", rows)
        assert [tokenize(d.text) for d in documents(path, fields=["question", "note"]).stream] == [["q"], ["r", "n"]]

    @pytest.mark.parametrize("zipped", [False, True])
    def test_plain_text_goes_on_from_line_to_line(self, tmp_path, zipped):
        content = "\ufeffone\n\ntwo".encode()
        path = tmp_path / ("t.txt.gz" if zipped else "t.txt")
        path.write_bytes(gzip.compress(content) if zipped else content)
        found = documents(str(path))
        assert list(found.stream) == [(1, "one\n", False), (2, "\n", True), (3, "two", True)]

    def test_parquet_is_counted_and_read(self, tmp_path):
        pd.DataFrame({"text": ["a", "b"]}).to_parquet(tmp_path / "t.parquet")
        found = documents(str(tmp_path / "t.parquet"))
        assert (found.total, [d.text for d in found.stream]) == (2, ["a", "b"])

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            ("", "no rows in it"),
            ('{"url": "x"}\n', "no text in its first row, which has url: should be a conversation, text or content"),
            ('{"text": "x"}\n{"text": 3}\n', "line 2 field 'text' is int 3, should be a text"),
            ('{"text": "x"}\n{"other": 3}\n', "line 2 field 'text' is missing"),
            ('{"text": "x"}\n{"text": \n', "line 2 is not JSON"),
            ('{"text": "x"}\n[1]\n', "line 2 is list, should be an object with named fields, or a text"),
            ('{"text": "x"}\n' + "[" * 100_000 + "\n", "line 2 cannot be read: nested too deeply"),
            ('{"instruction": "x", "output": "y"}\n{"instruction": "x"}\n', "line 2 field 'output' is missing"),
            ("[1]\n", "no text in its first row, which has no fields"),
            ('{"text": ""}\n{"text": "?!"}\n', "2 rows, and no text in any of them"),
        ],
    )
    def test_rows_without_text_are_one_clear_line(self, tmp_path, content, says):
        (tmp_path / "d.jsonl").write_text(content)
        with pytest.raises(DataError) as caught:
            check(str(tmp_path / "d.jsonl"), [item(LONG)])
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)
        assert str(tmp_path / "d.jsonl") in str(caught.value)

    def test_text_that_is_not_utf8(self, tmp_path):
        (tmp_path / "t.txt").write_bytes(b"fine\nh\xe9\n")
        with pytest.raises(DataError, match=r"t\.txt: line 2 is not UTF-8"):
            list(documents(str(tmp_path / "t.txt")).stream)
        (tmp_path / "t.txt.gz").write_bytes(b"no gzip")
        with pytest.raises(DataError, match="damaged gzip"):
            documents(str(tmp_path / "t.txt.gz"))

    def test_a_missing_source_is_said_before_any_benchmark_is_read(self, monkeypatch):
        monkeypatch.setattr(command, "benchmark_items", lambda names: pytest.fail("read"))
        with pytest.raises(DataError, match="no data source 'nowhere'"):
            command.run("nowhere", "mmlu", "train", (), "ngram_13")

    def test_a_missing_field_and_a_missing_source(self, tmp_path):
        path = write_rows(tmp_path / "d.jsonl", [{"text": "x"}])
        with pytest.raises(DataError, match="line 1 field 'query' is missing"):
            list(documents(path, fields=["query"]).stream)
        with pytest.raises(DataError, match="no data source 'nowhere'"):
            documents("nowhere")
        (tmp_path / "t.txt").write_text("x")
        for source in (str(tmp_path / "t.txt"), "nano"):
            with pytest.raises(DataError, match=r"has no fields to choose from \(query given\)"):
                documents(source, fields=["query"])

    def test_the_small_world_is_read_as_conversations_without_rows(self):
        found = documents("nano")
        first = next(iter(found.stream))
        assert (found.total, first.row) == (4000, 1)
        assert len(tokenize(first.text)) > 3
        with pytest.raises(DataError, match="nano: has no rows"):
            rows("nano")

    def test_a_benchmark_is_no_training_data_unless_its_fields_are_named(self, shared_data, monkeypatch):
        monkeypatch.setenv("LLAMAX_DATA", str(shared_data))
        with pytest.raises(DataError, match="humaneval is a benchmark; training data is wanted"):
            documents("humaneval", split="test")
        found = documents("humaneval", split="test", fields=["prompt"])
        assert (found.total, len(list(found.stream))) == (164, 164)


ITEMS = [item(LONG, name="thirteen"), item(" ".join(LONG.split()[4:12]) + " and more", name="eight"),
         item(NINE, name="whole"), item("quite another thing", name="clean"),
         item(LONG, name="other", benchmark="second")]  # fmt: skip


@pytest.fixture
def leaky(tmp_path):
    """A training file of six rows and the report on it: row 2 has a 13-gram, 4 a whole question, 5 only an 8-gram."""
    texts = ["a b c", f"x {LONG}", "d e f", f"{NINE}?", " ".join(LONG.split()[4:12]), "g h"]
    path = write_rows(tmp_path / "train.jsonl", [{"text": text, "id": n} for n, text in enumerate(texts)])
    return check(path, ITEMS)


class TestReport:
    def test_counts_and_shares(self, leaky):
        assert (leaky.documents, leaky.tokens) == (6, 3 + 16 + 3 + 9 + 8 + 2)
        found = {(line.benchmark, line.measure): line for line in summary(leaky)}
        assert {key: (line.n, line.judged, line.hits) for key, line in found.items()} == {
            ("b", "ngram_13"): (4, 1, 1), ("b", "ngram_8"): (4, 3, 3), ("b", "question"): (4, 3, 2),
            ("second", "ngram_13"): (1, 1, 1), ("second", "ngram_8"): (1, 1, 1), ("second", "question"): (1, 1, 1),
        }  # fmt: skip
        low, high = found["b", "question"].share[2:4]
        wanted = stats.binomtest(2, 3).proportion_ci(method="wilson")  # the fourth is too short to be judged
        assert (low, high) == pytest.approx((wanted.low, wanted.high))
        assert found["b", "question"].too_short == 1

    def test_where_nothing_can_be_judged_there_is_no_share(self, leaky):
        short = leaky._replace(items=leaky.items.assign(ngrams_13=0, hits_13=0))
        line = next(line for line in summary(short) if line.measure == "ngram_13")
        assert (line.judged, line.share) == (0, None)
        said = next(one for one in as_json(short)["summary"] if one["measure"] == "ngram_13")
        assert (said["too_short"], said["share"], said["low"]) == (4, None, None)
        assert "13-gram         4      4          0       0" in report_text(short)

    def test_questions_that_two_benchmarks_ask_are_counted_once(self, tmp_path):
        path = write_rows(tmp_path / "train.jsonl", [{"text": f"x {LONG}"}])
        twice = [
            *ITEMS,
            *(one._replace(benchmark="again", item=f"again/{one.item}") for one in ITEMS if one.benchmark == "b"),
        ]
        report = check(path, twice)
        assert [line.benchmark for line in summary(report)][::3] == ["b, again", "second"]
        assert next(line for line in summary(report)).n == 4
        shown = report_text(report)
        once = len({(one.text, one.question) for one in ITEMS})
        assert f" of {once} questions flagged by ngram_13_or_question" in shown
        assert "thirteen, other, again/thirteen" in shown
        assert flagged(report, "again") == {f"again/{one}" for one in flagged(report, "b")}

    def test_written_and_read_back_it_is_the_same_and_holds_no_text(self, leaky, tmp_path):
        folder = write(leaky, tmp_path / "out")
        again = read_report(folder)
        assert again[:6] == leaky[:6]
        pd.testing.assert_frame_equal(again.items, leaky.items)
        pd.testing.assert_frame_equal(again.rows, leaky.rows)
        assert sorted(path.name for path in folder.iterdir()) == ["items.parquet", "report.json", "rows.parquet"]
        for path in folder.iterdir():
            assert not any(word in path.read_bytes() for word in (b"thirteenth", b"eleven", b"longest", b"country"))
        write(leaky, folder)  # its own report may be replaced

    def test_no_other_folder_is_replaced(self, leaky, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("years of work")
        with pytest.raises(DataError, match=r"holds thesis\.tex too"):
            write(leaky, tmp_path / "out")
        with pytest.raises(DataError, match="is a file; name a folder"):
            write(leaky, tmp_path / "train.jsonl")

    def test_what_is_no_report(self, leaky, tmp_path):
        with pytest.raises(DataError, match="no report of"):
            read_report(tmp_path / "nothing")
        folder = write(leaky, tmp_path / "out")
        (folder / "rows.parquet").write_bytes(b"torn")
        with pytest.raises(DataError, match="no report of"):
            read_report(folder)

    def test_a_report_on_clean_data(self, tmp_path):
        report = check(write_rows(tmp_path / "d.jsonl", [{"text": "a b c"}]), ITEMS)
        assert rows_to_remove(report) == []
        assert flagged(report, "b") == set()
        pd.testing.assert_frame_equal(read_report(write(report, tmp_path / "out")).rows, report.rows, check_dtype=False)


class TestRules:
    @pytest.mark.parametrize(
        ("rule", "items", "rows"),
        [
            ("ngram_13_or_question", {"thirteen", "whole"}, [2, 4]),
            ("ngram_13", {"thirteen"}, [2]),
            ("ngram_8", {"thirteen", "eight", "whole"}, [2, 4, 5]),
            ("question", {"thirteen", "whole"}, [2, 4]),
        ],
    )
    def test_items_and_rows(self, leaky, rule, items, rows):
        assert flagged(leaky, "b", rule) == items
        assert rows_to_remove(leaky, rule) == rows

    def test_palm_wants_seven_tenths_of_the_8_grams(self, tmp_path):
        words = [f"w{n}" for n in range(17)]  # ten 8-grams
        for length, says in ((14, True), (13, False)):
            path = write_rows(tmp_path / "d.jsonl", [{"text": " ".join(words[:length])}])
            report = check(path, [item(" ".join(words), "no"), item("short", name="s")])
            assert report.items["hits_8"][0] == length - 7
            assert flagged(report, "b", "palm") == ({"i"} if says else set())
        with pytest.raises(ParameterError, match="'palm' says which items"):
            rows_to_remove(report, "palm")

    def test_unknown_rule_and_unchecked_benchmark(self, leaky):
        with pytest.raises(ParameterError, match="unknown rule 'ngram_9': valid are ngram_13_or_question"):
            flagged(leaky, "b", "ngram_9")
        with pytest.raises(ParameterError, match="'third' was not checked"):
            flagged(leaky, "third")

    def test_decontaminated_data_is_clean_and_otherwise_the_same(self, leaky, tmp_path):
        assert decontaminate(leaky, tmp_path / "clean") == (4, 2)
        rows = [json.loads(line) for line in (tmp_path / "clean" / "data.jsonl").read_text().splitlines()]
        before = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
        assert rows == [before[n] for n in (0, 2, 4, 5)]
        assert flagged(check(str(tmp_path / "clean" / "data.jsonl"), ITEMS), "b") == set()
        note = json.loads((tmp_path / "clean" / "removed.json").read_text())
        assert (note["kept"], note["removed"], note["rows"]) == (4, 2, [2, 4])
        assert note["benchmarks"] == ["b", "second"]

    def test_data_that_changed_since_is_not_cut(self, leaky, tmp_path):
        with open(tmp_path / "train.jsonl", "a") as file:
            file.write('{"text": "new"}\n')
        with pytest.raises(DataError, match="has changed since it was checked"):
            decontaminate(leaky, tmp_path / "clean")
        assert not (tmp_path / "clean").exists()

    def test_nothing_left_is_an_error_that_leaves_nothing(self, tmp_path):
        report = check(write_rows(tmp_path / "d.jsonl", [{"text": LONG}]), ITEMS)
        with pytest.raises(DataError, match="nothing left"):
            decontaminate(report, tmp_path / "clean")
        assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]

    def test_plain_text_has_no_rows_to_leave_out(self, tmp_path):
        (tmp_path / "t.txt").write_text(LONG)
        with pytest.raises(DataError, match="has no rows that could be left out"):
            decontaminate(check(str(tmp_path / "t.txt"), ITEMS), tmp_path / "clean")


def table(values, **columns):
    return pd.DataFrame({"item": [f"i{n}" for n in range(len(values))], "outcome": values} | columns)


class TestCleanSubset:
    def test_against_statsmodels_and_scipy(self):
        rng = np.random.default_rng(0)
        values = (rng.random(300) < np.where(np.arange(300) < 20, 0.9, 0.5)).astype(float)
        found = clean_subset(table(values), {f"i{n}" for n in range(20)})
        dirty, clean = values[:20], values[20:]
        low, high = confint_proportions_2indep(dirty.sum(), 20, clean.sum(), 280, method="newcomb", compare="diff")
        assert (found.difference.low, found.difference.high) == pytest.approx((low, high))
        counts = [[dirty.sum(), 20 - dirty.sum()], [clean.sum(), 280 - clean.sum()]]
        assert found.difference.p_value == pytest.approx(stats.fisher_exact(np.array(counts, int)).pvalue)
        assert (found.everything.value, found.everything.n) == (pytest.approx(values.mean()), 300)
        assert (found.clean.value, found.clean.n) == (pytest.approx(clean.mean()), 280)
        assert found.clean.standard_error == pytest.approx(stats.sem(clean))
        wanted = stats.binomtest(int(dirty.sum()), 20).proportion_ci(method="wilson")
        assert (found.flagged.low, found.flagged.high) == pytest.approx((wanted.low, wanted.high))

    def test_fractions_are_compared_by_welch(self):
        values = np.random.default_rng(1).random(60)
        found = clean_subset(table(values), {f"i{n}" for n in range(9)}).difference
        peer = CompareMeans(DescrStatsW(values[:9]), DescrStatsW(values[9:]))
        assert (found.low, found.high) == pytest.approx(peer.tconfint_diff(usevar="unequal"))
        assert found.p_value == pytest.approx(peer.ttest_ind(usevar="unequal")[1])

    def test_answers_to_an_item_are_averaged_and_clusters_counted(self):
        one = table([1.0, 0.0, 1.0, 1.0], cluster=["x", "x", "y", "y"])
        two = pd.concat([one, one.assign(outcome=[0.0, 0.0, 1.0, 1.0])])
        found = clean_subset(two, {"i3"})
        assert found.everything.value == pytest.approx((0.5 + 0 + 1 + 1) / 4)
        assert found.everything.n == 4
        residuals = np.array([0.5 + 0, 1.0]) - np.array([2, 1]) * 0.5
        assert found.clean.standard_error == pytest.approx(np.sqrt(2 * np.sum(residuals**2)) / 3)

    def test_one_flagged_item_says_nearly_nothing(self):
        found = clean_subset(table([1.0] + [0.0, 1.0] * 50), {"i0"})
        assert found.flagged.low < 0.25
        assert found.difference.low < 0 < found.difference.high
        assert found.detectable > 1 - found.clean.value
        fractions = clean_subset(table([0.9] + [0.2, 0.6] * 50), {"i0"})
        assert np.isnan(fractions.difference.low)

    def test_no_item_flagged_and_all_flagged(self):
        none, every = (clean_subset(table([1.0, 0.0, 1.0]), flags) for flags in (set(), {"i0", "i1", "i2"}))
        assert (none.flagged, none.difference, none.clean) == (None, None, none.everything)
        assert (every.clean, every.difference, every.flagged.n) == (None, None, 3)
        assert np.isnan(none.detectable)
        assert np.isnan(every.detectable)

    def test_the_detectable_difference_is_shown_four_times_in_five(self):
        rng = np.random.default_rng(0)
        clean = np.repeat([0.0, 1.0], [200, 200])
        gain = detectable_difference(clean, 80)
        runs = [
            clean_subset(
                table(np.concatenate([rng.random(80) < 0.5 + gain, rng.random(400) < 0.5]).astype(float)),
                {f"i{n}" for n in range(80)},
            ).difference
            for _ in range(200)
        ]
        assert np.mean([found.low > 0 for found in runs]) == pytest.approx(0.8, abs=0.08)

    def test_bad_input(self):
        with pytest.raises(ParameterError, match="flagged item 'zz' is not among"):
            clean_subset(table([1.0]), {"zz"})
        with pytest.raises(ParameterError, match="none"):
            clean_subset(table([]), set())

    def test_scores_of_a_table_of_outcomes(self, leaky):
        names = ["thirteen", "eight", "whole", "clean"]
        rows = [("m", "b", "acc", name, outcome) for name, outcome in zip(names, (1.0, 0.0, 1.0, 0.0), strict=True)]
        rows += [("m", "unchecked", "acc", "x", 1.0)]
        outcomes = pd.DataFrame(rows, columns=["model", "benchmark", "metric", "item", "outcome"])
        ((key, found),) = clean_scores(leaky, outcomes).items()
        assert key == ("m", "b", "acc")
        assert (found.everything.value, found.clean.value, found.flagged.value) == (0.5, 0.0, 1.0)
        (by_another,) = clean_scores(leaky, outcomes, "ngram_8").values()
        assert (by_another.clean.n, by_another.flagged.value, by_another.flagged.n) == (1, 2 / 3, 3)
        with pytest.raises(DataError, match="outcomes of item 'b/0', which was not checked"):
            clean_scores(leaky, outcomes.assign(item="b/0"))
        with pytest.raises(DataError, match="lack the column 'metric'"):
            clean_scores(leaky, outcomes.drop(columns="metric"))
        with pytest.raises(DataError, match=r"no benchmark with outcomes \(unchecked\) was checked"):
            clean_scores(leaky, outcomes[outcomes["benchmark"] == "unchecked"])


class TestItems:
    def test_options_count_where_they_are_columns_that_the_prompt_shows(self):
        prompt = "Which?\nA. red\nB. 2\nAnswer:"
        assert _options({"choices": ["red", "2"]}, prompt) == "red\n2"
        assert _options({"A": "red", "B": 2, "Answer": "A"}, prompt) == "red\n2"
        assert _options({"choices": ["red", "blue"]}, prompt) == ""
        assert _options({"question": "Which?"}, prompt) == ""

    def test_the_text_has_the_options_and_the_question_has_not(self, monkeypatch):
        monkeypatch.setattr("llamax.evaluation.questions.questions", lambda name: [Question("q/0", "Which?", "red\n2")])
        assert benchmark_items(["mmlu"]) == [Item("mmlu", "q/0", "Which?\nred\n2", "Which?")]

    def test_nano_has_the_ids_of_its_outcome_tables(self):
        assert [one.item for one in benchmark_items(["nano"])] == [one.id for one in test_items()]

    def test_all_is_type_a(self):
        assert {name.split("_")[0] for name in benchmark_names("all")} == {
            "mmlu", "humaneval", "gsm8k", "nq", "truthfulqa",
        }  # fmt: skip


class TestCommand:
    """Against the small world's suite, which needs no data."""

    @pytest.fixture
    def leak(self, tmp_path):
        """A training file whose second row is a nano item, and that item."""
        one = next(i for i in benchmark_items(["nano"]) if len(tokenize(i.text)) >= 13 and i.item.startswith("arith"))
        return write_rows(tmp_path / "d.jsonl", [{"text": "a b"}, {"text": one.question.upper()}]), one

    def test_prints_writes_and_cuts(self, leak, tmp_path):
        path, one = leak
        pd.DataFrame(
            [("m", "nano", "acc", i.item, float(i.item == one.item)) for i in benchmark_items(["nano"])],
            columns=["model", "benchmark", "metric", "item", "outcome"],
        ).to_parquet(tmp_path / "items.parquet")
        options = ["--against", "nano", "--outcomes", tmp_path / "items.parquet", "--out", tmp_path / "o"]
        done = runner.invoke(
            cli.app, ["contamination", path, *map(str, options), "--decontaminate", str(tmp_path / "c")]
        )
        assert done.exit_code == 0, done.exception
        assert f"{one.item}  " in done.output
        assert "1 of 711 questions flagged by ngram_13_or_question" in done.output
        assert "1 rows kept, 1 removed" in done.output
        assert "100.0 [20.7, 100.0] n=1" in done.output  # Wilson's interval of 1 of 1
        assert flagged(read_report(tmp_path / "o"), "nano") == {one.item}
        assert (tmp_path / "c" / "data.jsonl").read_text() == '{"text": "a b"}\n'

    def test_json(self, leak):
        path, one = leak
        values = json.loads(runner.invoke(cli.app, ["contamination", path, "--against", "nano", "--json"]).stdout)
        assert values["flagged"] == {"nano": [one.item]}
        (found,) = [found for found in values["items"] if found["item"] == one.item]
        assert found["rows"] == [2]
        assert {line["measure"]: line["hits"] for line in values["summary"]}["ngram_13"] == 1

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["--against", "mmlo"], "unknown benchmark 'mmlo': "),
            (["--against", ","], "should be benchmarks, each once"),
            (["--against", "nano,nano"], "should be benchmarks, each once"),
            (["--against", "nano", "--rule", "x"], "unknown rule 'x'"),
            (["--against", "nano", "--rule", "palm", "--decontaminate", "new"], "'palm' says which items"),
            (["--against", "nano", "--out", "."], "too, which would be lost"),
            (["--against", "nano", "--outcomes", "gone.parquet"], "gone.parquet: not a run's items.parquet"),
            (["--against", "nano", "--fields", "query"], "line 1 field 'query' is missing"),
            (["--against", "nano", "--fields", ","], "--fields ',': names no field"),
            (["--against", "nano", "--split", "test"], "is a file, which has no split 'test'"),
            (["--against", "nano", "--out", "x", "--decontaminate", "./x"], "named by --out and by --decontaminate"),
        ],
    )
    def test_bad_options_are_one_line(self, leak, tmp_path, monkeypatch, options, says):
        monkeypatch.chdir(tmp_path)
        error = runner.invoke(cli.app, ["contamination", leak[0], *options]).exception
        assert isinstance(error, DataError | ParameterError)
        assert says in str(error)
        assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]

    def test_a_benchmark_without_its_data(self, leak, tmp_path, monkeypatch):
        (tmp_path / "data").mkdir()
        monkeypatch.setenv("LLAMAX_DATA", str(tmp_path / "data"))
        error = runner.invoke(cli.app, ["contamination", leak[0], "--against", "gsm8k"]).exception
        assert isinstance(error, DataError)
        assert "LLAMAX_DATA should hold gsm8k/" in str(error)


# -- the real files ---------------------------------------------------------------------------------------------------


def counted(report: Report):
    """Hits by benchmark: (13-gram, 8-gram, whole question)."""
    found = {}
    for line in summary(report):
        found.setdefault(line.benchmark, []).append(line.hits)
    return {name: tuple(hits) for name, hits in found.items()}


def test_gsm8k_and_leetcode_as_counted(shared_data, monkeypatch):
    """The table of overlaps counts GSM8K's training questions alone, and LeetCode's queries with their code."""
    monkeypatch.setenv("LLAMAX_DATA", str(shared_data))
    items = benchmark_items(["gsm8k", "humaneval"])
    assert counted(check("gsm8k", items, fields=["question"])) == {"gsm8k": (3, 80, 0), "humaneval": (0, 0, 0)}
    leetcode = shared_data / "leetcode" / "LeetCodeDataset-v0.2.0-train.jsonl.gz"
    found = counted(check(str(leetcode), items, fields=["query", "completion"]))
    assert found == {"gsm8k": (0, 0, 0), "humaneval": (0, 15, 0)}


def test_mgsm_is_a_part_of_gsm8k(shared_data, monkeypatch, tmp_path):
    """All 250 English items are GSM8K test items; the German translation holds none."""
    monkeypatch.setenv("LLAMAX_DATA", str(shared_data))
    items = benchmark_items(["gsm8k"])
    for language, whole in (("en", 250), ("de", 0)):
        path = tmp_path / f"{language}.txt"
        path.write_bytes((shared_data / "mgsm" / f"mgsm_{language}.tsv").read_bytes())
        report = check(str(path), items)
        assert (report.documents, report.items["question"].sum()) == (250, whole)


@pytest.mark.slow
def test_alpaca_and_all_of_type_a_as_counted(shared_data, monkeypatch):
    monkeypatch.setenv("LLAMAX_DATA", str(shared_data))
    items = benchmark_items(benchmark_names("all"))
    report = check("alpaca", items)
    assert counted(report) == {
        "mmlu": (6, 106, 0),
        "humaneval": (1, 16, 0),
        "gsm8k, gsm8k_cot": (0, 2, 0),
        "nq_open": (0, 4, 1),
        "truthfulqa_mc1, truthfulqa_mc2": (0, 2, 1),
    }
    assert flagged(report, "nq_open") == {"nq_open/1765"}
    assert flagged(report, "truthfulqa_mc1") == {"truthfulqa_mc1/381"}
    assert counted(check("gsm8k", items, fields=["question"]))["mmlu"][:2] == (0, 8)
    leetcode = shared_data / "leetcode" / "LeetCodeDataset-v0.2.0-train.jsonl.gz"
    assert counted(check(str(leetcode), items, fields=["query", "completion"]))["mmlu"][:2] == (0, 2)
