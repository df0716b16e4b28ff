"""Definitions: lm-eval's own prompts word for word, protocols, fingerprints, and a benchmark added by two files."""

import importlib
import json
import re
import string
from contextlib import nullcontext
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("lm_eval")

from beside_lm_eval import check_against_lm_eval
from little_benchmarks import little_card, write_lines
from lm_eval.api.metrics import exact_match_hf_evaluate

from llamax.errors import DataError, ParameterError
from llamax.evaluation import benchmarks, definitions, own_tasks
from llamax.evaluation.config import EvaluationConfig, card_of
from llamax.evaluation.definitions import Settings, describe, exact_match, find, headline, names, resolved
from llamax.evaluation.harness import confidences, load_tasks, measured, outcomes, prepare
from llamax.evaluation.questions import questions
from llamax.runs.keys import changed, input_parts

TYPE_A = ["mmlu", "humaneval", "gsm8k", "gsm8k_cot", "nq_open", "truthfulqa_mc1", "truthfulqa_mc2"]


def test_type_a_is_the_programmes_list_and_each_has_a_headline():
    assert [name for name in names() if find(name).extras.type == "A"] == TYPE_A
    assert len(set(names())) == len(names()) and {"leetcode", "jmmlu", "cmmlu", "mmmlu_de_de"} <= set(names())
    assert {name: headline(name) for name in TYPE_A} == {
        "mmlu": "acc",
        "humaneval": "pass@1",
        "gsm8k": "exact_match,flexible-extract",
        "gsm8k_cot": "exact_match,flexible-extract",
        "nq_open": "exact_match,remove_whitespace",
        "truthfulqa_mc1": "acc",
        "truthfulqa_mc2": "acc",
    }
    assert headline("jmmlu") == "acc" and headline("leetcode") == "pass@1"


def test_what_stands_in_for_a_set_that_is_not_public_says_so():
    titles = {name: find(name).extras.title for name in ("gre_like", "ap_like", "sat_en_proxy", "lsat_rc_proxy")}
    assert titles["gre_like"].startswith("GRE-like") and titles["ap_like"].startswith("AP-like")
    assert all("proxy" in titles[name] for name in ("sat_en_proxy", "lsat_rc_proxy"))
    assert len(find("ap_like").files) == 13 and len(find("mmlu").files) == 57
    assert not any("mathematics" in file.name for file in find("ap_like").files)


def test_usual_shots_and_those_that_a_definition_fixes():
    def shots(name, asked=None):
        found = resolved(find(name), Settings(shots=asked))
        (number,) = {config["num_fewshot"] for config in found.values()}
        return number

    assert {name: shots(name) for name in TYPE_A} == dict(zip(TYPE_A, [5, 0, 5, 8, 5, 0, 0], strict=True))
    assert [shots(name, 3) for name in TYPE_A] == [3, 0, 3, 8, 3, 0, 0]
    assert shots("mmlu", 0) == 0 and shots("mmmlu_de_de", 5) == 0 and shots("cmmlu") == 5 and shots("leetcode", 2) == 0


def test_sampled_answers_have_the_nucleus_of_lm_evals_own_sampled_task():
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    file = Path(lm_eval.tasks.__file__).parent / "humaneval" / "humaneval_64.yaml"
    wanted = load_yaml(file, resolve_func=False)["generation_kwargs"]["top_p"]
    for name in ("humaneval", "gsm8k"):
        (config,) = resolved(find(name), Settings(samples=2, temperature=0.8)).values()
        kwargs = config["generation_kwargs"]
        assert (kwargs["do_sample"], kwargs["temperature"], kwargs["top_p"]) == (True, 0.8, wanted)


# -- beside lm-eval itself --------------------------------------------------------------------------------------------


LITTLE = [
    ("mmlu_anatomy", "mmlu/default/mmlu_anatomy.yaml", 5),
    ("gsm8k", "gsm8k/gsm8k.yaml", None),
    ("gsm8k_cot", "gsm8k/gsm8k-cot.yaml", None),
    ("nq_open", "nq_open/nq_open.yaml", 5),
    ("truthfulqa_mc1", "truthfulqa/truthfulqa_mc1.yaml", None),
    ("truthfulqa_mc2", "truthfulqa/truthfulqa_mc2.yaml", None),
    ("humaneval", "humaneval/humaneval.yaml", None),
    ("gre_like", "agieval/aqua-rat.yaml", None),
]


@pytest.mark.parametrize(("name", "file", "shots"), LITTLE)
def test_requests_are_those_of_lm_eval(local_data, name, file, shots):
    check_against_lm_eval(name, file, shots, 2)


def test_our_tasks_leave_lm_evals_index_alone_and_import_no_metric_from_the_hub():
    config = next(iter(resolved(find("humaneval"), Settings()).values()))
    assert config["metric_list"] == [{"metric": "bypass"}] and config["filter_list"] is None


# -- protocols --------------------------------------------------------------------------------------------------------


def strict(name, answer, protocol):
    """The score of one answer to the first item, by every metric."""
    (part,) = prepare(name, settings=Settings(protocol=protocol))
    part = part._replace(requests=part.requests[:1])
    part.requests[0].resps.append(answer)
    return {row.metric: row.outcome for row in outcomes(part)}


def set_answer(root, number):
    """GSM8K with the answer `number` to its first item."""
    rows = [json.loads(line) for line in (root / "gsm8k" / "test.jsonl").read_text().strip().split("\n")]
    rows[0]["answer"] = f"So.\n#### {number}"
    write_lines(root / "gsm8k" / "test.jsonl", rows)


@pytest.mark.parametrize(
    ("answer", "gold", "as_it_is", "mended"),
    [
        (" The answer is 18", "18", 0, 1),
        (" The answer is 18.", "18", 1, 1),
        (" The answer is 1,800.\n\n", "1800", 1, 1),
        (" The answer is 1.8 dollars", "1.8", 1, 1),
        (" The answer is -7", "-7", 0, 1),
        (" The answer is 18", "1", 1, 0),
        (" So 18 it is", "18", 0, 0),
    ],
)
def test_the_unescaped_dot_is_kept_by_one_protocol_and_mended_by_the_other(local_data, answer, gold, as_it_is, mended):
    set_answer(local_data, gold)
    assert strict("gsm8k_cot", answer, "lm-eval")["exact_match,strict-match"] == as_it_is
    assert strict("gsm8k_cot", answer, "llamax")["exact_match,strict-match"] == mended


@pytest.mark.parametrize(
    ("answer", "as_it_is", "mended"),
    [
        (" rock roll", 0, 1),  # the gold answer is Rock & Roll, whose ampersand goes and leaves two spaces
        (" Rock & Roll", 1, 1),
        (" 0", 1, 1),  # the other gold answer is The 0
        (" rockroll", 0, 0),
    ],
)
def test_the_double_spaces_are_kept_by_one_protocol_and_mended_by_the_other(local_data, answer, as_it_is, mended):
    assert strict("nq_open", answer, "lm-eval") == {"exact_match,remove_whitespace": as_it_is}
    assert strict("nq_open", answer, "llamax") == {"exact_match,remove_whitespace": mended}


WORDS = st.lists(
    st.sampled_from(["a ", "The ", "an", "ox", " ", "  ", "-", "&", ".", "ROCK", "18", "\u00e9"]), max_size=6
)
OPTIONS = {
    "regexes_to_ignore": [r"\b(?:The |the |An |A |The |a |an )"],
    "ignore_case": True,
    "ignore_punctuation": True,
}


@given(WORDS.map("".join), WORDS.map("".join))
def test_the_mended_match_differs_from_lm_evals_in_spaces_only(given_text, gold):
    def theirs(text, other):
        return exact_match_hf_evaluate(predictions=[text], references=[other], **OPTIONS)["exact_match"]

    ours = exact_match(predictions=[given_text], references=[gold], **OPTIONS)["exact_match"]
    assert ours >= theirs(given_text, gold), "a match was lost"
    if not ours:  # nor is a mismatch one of spaces
        assert normal_without_ends(given_text) != normal_without_ends(gold)


def normal_without_ends(text):
    """What lm-eval's steps make of a text, its runs of spaces squeezed by other means than ours."""
    text = re.sub(OPTIONS["regexes_to_ignore"][0], "", text).lower()
    text = "".join(letter for letter in text if letter not in string.punctuation)
    return re.sub(" +", " ", text).strip()


@pytest.mark.parametrize("left_out", OPTIONS)
def test_the_mended_match_passes_over_only_what_it_is_told_to(left_out):
    options = {key: value for key, value in OPTIONS.items() if key != left_out}
    for answer in ("ox", "OX", "ox.", "the ox"):
        theirs = exact_match_hf_evaluate([answer], ["ox"], **options)["exact_match"]
        assert exact_match([answer], ["ox"], **options) == {"exact_match": theirs}


def test_the_protocols_mend_nothing_else():
    for name in TYPE_A:
        one, other = (definitions.plain(resolved(find(name), Settings(protocol=p))) for p in ("lm-eval", "llamax"))
        differ = {key for task in one for key in one[task] if one[task][key] != other[task][key]}
        assert differ == {"gsm8k_cot": {"filter_list"}, "nq_open": {"metric_list"}}.get(name, set())


def prompts_of(name, **changes):
    _, fingerprint = load_tasks(find(name), Settings(**changes))
    return fingerprint


def test_a_fingerprint_changes_with_what_decides_a_score_and_with_nothing_else(local_data):
    assert prompts_of("gsm8k") == prompts_of("gsm8k", seed=5, protocol="llamax")
    assert prompts_of("gsm8k") != prompts_of("gsm8k", shots=3)
    assert prompts_of("gsm8k") != prompts_of("gsm8k", max_new_tokens=64)
    assert prompts_of("gsm8k") != prompts_of("gsm8k", temperature=0.5)
    assert prompts_of("gsm8k") != prompts_of("gsm8k", examples_seed=5), "other worked examples are another prompt"
    assert prompts_of("gsm8k", samples=2, temperature=0.5) == prompts_of("gsm8k", temperature=0.5)
    assert prompts_of("gsm8k_cot") != prompts_of("gsm8k_cot", protocol="llamax")
    assert prompts_of("nq_open") != prompts_of("nq_open", protocol="llamax")
    before = prompts_of("nq_open"), prompts_of("humaneval"), prompts_of("mmlu_anatomy")
    pool = [{"question": f"who was number {n}", "answer": ["x"]} for n in range(6)]
    write_lines(local_data / "nq_open" / "fewshot_pool_nqshort_train.jsonl", pool)
    assert prompts_of("nq_open") != before[0], "another pool of examples is another prompt"
    assert (prompts_of("humaneval"), prompts_of("mmlu_anatomy")) == before[1:]


def test_the_same_rows_from_the_hub_have_the_same_fingerprint(local_data, monkeypatch):
    before = prompts_of("gsm8k")
    data = benchmarks.load("openai/gsm8k", "main")
    monkeypatch.delenv("LLAMAX_DATA")
    monkeypatch.setattr(benchmarks, "load_dataset", lambda *_: data)
    assert prompts_of("gsm8k") == before


def test_mmmlu_comes_from_the_hub_by_subject_and_shows_no_test_item_as_an_example(local_data, monkeypatch):
    subjects = sorted(file.stem.removeprefix("mmmlu_de_de_") for file in find("mmmlu_de_de").files)
    assert len(subjects) == 57
    rows = [
        dict(zip("ABCD", "wxyz", strict=True)) | {"Question": f"Was ist {s}?", "Answer": "B", "Subject": s}
        for s in subjects
    ]
    asked = []
    monkeypatch.setattr(
        benchmarks, "load_dataset", lambda *names: asked.append(names) or DatasetDict({"test": Dataset.from_list(rows)})
    )
    monkeypatch.setattr(definitions.benchmarks, "asked", lambda *_: nullcontext())
    little_card(local_data, "mmmlu")
    parts = prepare("mmmlu_de_de", settings=Settings(shots=5))
    assert asked == [("openai/MMMLU", "DE_DE")], "one language, fetched once"
    assert len(parts) == 57 and [len(part.requests) for part in parts] == [4] * 57
    prompt = parts[1].requests[0].args[0]
    assert prompt.count("Was ist") == 1 and "Was ist anatomy?\nA. w\nB. x\nC. y\nD. z\nAnswer:" in prompt
    parts[1].requests[1].resps.append((0.0, False))
    for number in (0, 2, 3):
        parts[1].requests[number].resps.append((-1.0, False))
    assert [(row.metric, row.outcome, row.cluster) for row in outcomes(parts[1])] == [
        ("acc", 1, "anatomy"),
        ("acc_norm", 1, "anatomy"),
    ]
    assert measured(parts)[0].shots == 0


def test_the_description_names_the_pool_that_stands_in_for_the_hubs(local_data, monkeypatch):
    assert "5 shots from 6 rows of nq_open/fewshot_pool_nqshort_train.jsonl, not" in describe("nq_open", Settings())
    monkeypatch.delenv("LLAMAX_DATA")
    assert "5 shots, at most 256 new tokens" in describe("nq_open", Settings())
    assert describe("humaneval", Settings(samples=20, temperature=0.8)).endswith("20 samples at temperature 0.8")
    assert "faults mended" in describe("gsm8k_cot", Settings(protocol="llamax"))


# -- counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mmlu_anatomy", "gsm8k", "nq_open", "truthfulqa_mc1", "humaneval", "gre_like"])
def test_a_wrong_number_of_items_is_an_error(local_data, name):
    benchmark = find(name)
    more = benchmark._replace(extras=benchmark.extras.model_copy(update={"items": 99}))
    with pytest.raises(DataError, match=rf"{name}: has \d items, should be 99 \(data card \w+\)"):
        load_tasks(more, Settings())


def test_a_subject_that_lost_an_item_is_an_error_of_the_whole(local_data):
    file = local_data / "mmlu" / "test" / "virology_test.csv"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
    for call in (lambda: prepare("mmlu_two", 2), lambda: questions("mmlu_two")):
        with pytest.raises(DataError, match="mmlu_two: has 9 items, should be 10"):
            call()


# -- a benchmark of one's own -----------------------------------------------------------------------------------------

TOY = """
task: toy
dataset_path: toy
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}\\nAnswer:"
doc_to_choice: "{{options}}"
doc_to_target: "{{right}}"
metric_list:
  - metric: acc
"""
CARD = {
    "name": "toy",
    "title": "A toy",
    "licence": "none",
    "format": "benchmark",
    "columns": {"question": "text", "options": "texts", "right": "number"},
}


@pytest.fixture
def toy(local_data, monkeypatch):
    """Two files, no Python: a definition in the folder of ours, and a data card. (And the data.)"""
    monkeypatch.setattr(own_tasks, "OURS", local_data / "tasks")
    (local_data / "tasks").mkdir()
    (local_data / "tasks" / "toy.yaml").write_text(TOY)
    rows = [{"question": f"Is {n} even?", "options": ["no", "yes"], "right": n % 2 ^ 1} for n in range(4)]
    write_lines(local_data / "toy.jsonl", rows)
    card = CARD | {"splits": {"test": {"local": "toy.jsonl", "items": 4}}}
    (local_data / "data_cards" / "toy.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    return local_data


def check_toy():
    (part,) = prepare("toy")
    assert [request.args for request in part.requests[:2]] == [
        ("Is 0 even?\nAnswer:", " no"),
        ("Is 0 even?\nAnswer:", " yes"),
    ]
    for request in part.requests:
        request.resps.append((-1.0 if request.args[1] == " yes" else -2.0, False))
    assert [row.outcome for row in outcomes(part)] == [1, 0, 1, 0]
    (one,) = measured([part])
    assert (one.metric, one.items, one.total, one.shots) == ("acc", 4, 4, 0)
    assert [question.text for question in questions("toy")][1] == "Is 1 even?\nAnswer:"


def test_a_benchmark_is_one_yaml_file_and_one_data_card(toy):
    assert "toy" in names() and describe("toy", Settings()) == "llamax, 0 shots"
    check_toy()


def test_it_may_be_csv_or_parquet_too(toy):
    import pandas as pd

    frame = pd.read_json(toy / "toy.jsonl", lines=True)
    frame.to_parquet(toy / "toy.parquet")
    card = CARD | {"splits": {"test": {"local": "toy.parquet", "items": 4}}}
    (toy / "data_cards" / "toy.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    clear_cards()
    check_toy()
    frame.assign(options=frame.options.map(json.dumps)).to_csv(toy / "toy.csv", index=False)
    columns = {"question": "text", "options": "text", "right": "text"}
    card = CARD | {"columns": columns, "splits": {"test": {"local": "toy.csv", "items": 4}}}
    (toy / "data_cards" / "toy.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    clear_cards()
    check_toy()


def clear_cards():
    """Cards are read once per folder and process."""
    importlib.import_module("llamax.data.sources")._cards_in.cache_clear()


def test_metadata_says_what_the_format_has_no_place_for(toy):
    extra = 'metadata: {title: Toy, type: A, question: "{{question}}", cluster: right, headline: acc}\n'
    (toy / "tasks" / "toy.yaml").write_text(TOY + extra)
    assert find("toy").extras.type == "A" and questions("toy")[3].text == "Is 3 even?"
    (part,) = prepare("toy")
    for request in part.requests:
        request.resps.append((0.0, False))
    assert [row.cluster for row in outcomes(part)] == ["1", "0", "1", "0"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("task: toy", "task: other"), r"toy\.yaml: task is 'other', should be 'toy'"),
        (lambda text: text.replace("dataset_path: toy\n", ""), r"toy\.yaml: lacks 'dataset_path'; a definition has"),
        (
            lambda text: text.replace("test_split: test\n", ""),
            r"toy\.yaml: parameter .*test_split is missing, or validation_split",
        ),
        (
            lambda text: text + "metadata: {headlin: acc}\n",
            r"toy\.yaml, metadata: unknown parameter 'headlin': did you",
        ),
        (lambda text: text + "metadata: {judge: mine}\n", r"toy\.yaml, metadata: parameter 'judge' = 'mine'"),
        (lambda text: text + "metadata: {cluster: kind}\n", "toy: clusters by 'kind'; its items have question, opt"),
        (lambda text: text.replace("{{question}}", "{{query}}"), "'query' is undefined; items have question, options"),
        (
            lambda text: text.replace("{{right}}", "{{wrong}}"),
            r"toy: its template '\{\{wrong\}\}': 'wrong' is undefined; items have question",
        ),
        (
            lambda text: text.replace("{{question}}", "{{question"),
            r"toy\.yaml: parameter 'doc_to_text' = .*: the template cannot be read",
        ),
        (lambda text: text + "  - [", r"toy\.yaml: not a task definition"),
        (lambda text: "- task", r"toy\.yaml: not a task definition \(Expected YAML dict"),
        (
            lambda text: text + "tset_split: test\n",
            r"toy\.yaml: unknown parameter 'tset_split': did you mean 'test_split'",
        ),
        (lambda text: text + "repeats: 3\n", r"toy\.yaml: parameter 'repeats' = 3"),
        (lambda text: text.replace('doc_to_target: "{{right}}"\n', ""), r"toy\.yaml: lacks 'doc_to_target'"),
        (lambda text: text.replace('doc_to_choice: "{{options}}"\n', ""), r"toy\.yaml: .*doc_to_choice is missing"),
        (lambda text: text.replace("multiple_choice", "multiple"), r"toy\.yaml: parameter 'output_type' = 'multiple'"),
        (
            lambda text: text.replace("metric: acc", "metric: accc"),
            r"toy\.yaml: metric 'accc' gives no number for each item of multiple_choice; these do: acc,",
        ),
        (lambda text: text.replace("\n  - metric: acc", " []"), r"toy\.yaml: parameter 'metric_list' = \[\]"),
        (lambda text: text + "num_fewshot: -1\n", r"toy\.yaml: parameter 'num_fewshot' = -1"),
        (lambda text: text + "num_fewshot: five\n", r"toy\.yaml: parameter 'num_fewshot' = 'five'"),
        (lambda text: text + "generation_kwargs: [a]\n", r"toy\.yaml: parameter 'generation_kwargs' = \['a'\]"),
        (lambda text: text + "generation_kwargs: {max_gen_toks: 0}\n", r"'generation_kwargs.max_gen_toks' = 0"),
        (lambda text: text + "generation_kwargs: {max_new_tokens: 7}\n", r"unknown parameter .*max_new_tokens'"),
        (lambda text: text + "generation_kwargs: {do_sample: true}\n", r"'generation_kwargs.do_sample' = True"),
        (lambda text: text + "generation_kwargs: {temperature: 0.7}\n", r"'generation_kwargs.temperature' = 0.7"),
        (lambda text: text.replace("metric: acc", "metric: f1"), r"metric 'f1' gives no number for each item of mult"),
        (lambda text: text.replace('"{{options}}"', "[yes, no]"), r"'doc_to_choice' = .*options should be texts; YAML"),
        (lambda text: text.replace('"{{question}}\\nAnswer:"', "7"), r"'doc_to_text' = 7: should be a template"),
        (lambda text: text.replace("dataset_path: toy", "dataset_path: ''"), r"parameter 'dataset_path' = ''"),
        (lambda text: text + "filter_list: []\n", r"parameter 'filter_list' = \[\]"),
        (lambda text: text + "include: 7\n", r"toy\.yaml: not a task definition"),
        (lambda text: text + "metadata: {judge: leetcode}\n", r"toy\.yaml: programs are judged that are generated"),
        (lambda text: text + "fewshot_config: {smapler: first_n}\n", r"toy/0: its definition fails: TypeError"),
        (lambda text: text.replace("{{right}}", "{{right / 0}}"), r"toy/0: its definition fails: ZeroDivisionError"),
        (lambda text: text + "generation_kwargs: {until: 5}\n", r"toy\.yaml: parameter 'generation_kwargs.until"),
        (
            lambda text: text + "filter_list: [{name: x, filter: [{function: regx}]}]\n",
            r"'filter_list.0.filter.0.function' = 'regx': lm-eval has no such filter; it has .*regex",
        ),
        (
            lambda text: text + "process_docs: !function utils.gone\n",
            r"toy\.yaml: a !function of it cannot be imported",
        ),
        (lambda text: text + "metadata: {shots: -1}\n", r"toy\.yaml, metadata: parameter 'shots' = -1"),
        (
            lambda text: text + "metadata: {headline: f1}\n",
            r"toy\.yaml, metadata: no metric 'f1'; its outcomes are acc",
        ),
    ],
)
def test_a_definition_with_a_fault_is_one_clear_line(toy, change, said):
    (toy / "tasks" / "toy.yaml").write_text(change(TOY))
    with pytest.raises(ParameterError, match=said) as caught:
        (part,) = prepare("toy")
        for request in part.requests:
            request.resps.append((0.0, False))
        list(outcomes(part))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [(0, r"toy/0: no right answer, or no options \(list index"), (2, "toy/2: its right answer 7 is none of")],
)
def test_a_right_answer_that_is_no_option_is_named(toy, row, said):
    rows = [json.loads(line) for line in (toy / "toy.jsonl").read_text().splitlines()]
    rows[row]["right"] = 7
    write_lines(toy / "toy.jsonl", rows)
    with pytest.raises(DataError, match=said):
        prepare("toy")


def test_a_column_may_stand_for_itself_and_a_function_for_more(toy):
    """As in lm-eval: without braces a column's name is its value, and `!function` makes the text."""
    (toy / "tasks" / "utils.py").write_text("def ask(doc):\n    return 'Q: ' + doc['question']\n")
    for said, first in (("question", "Is 0 even?"), ("!function utils.ask", "Q: Is 0 even?")):
        (toy / "tasks" / "toy.yaml").write_text(TOY.replace('"{{question}}\\nAnswer:"', said))
        assert prepare("toy")[0].requests[0].args[0] == first == questions("toy")[0].text


def test_what_an_answer_begins_with_ends_the_prompt_as_in_lm_eval(toy):
    (toy / "tasks" / "toy.yaml").write_text(TOY + 'gen_prefix: "Well,"\n')
    check_against_lm_eval("toy", str(toy / "tasks" / "toy.yaml"), None, 4)
    assert prepare("toy")[0].requests[0].args[0] == "Is 0 even?\nAnswer: Well,"


OWN_FILTER = """
from lm_eval.api.filter import Filter
class LastWord(Filter):
    def __init__(self, mark="."):
        self.mark = mark
    def apply(self, resps, docs):
        return [[text.rstrip(self.mark).split()[-1] for text in inst] for inst in resps]
def shout(resps, docs):
    return [[text.upper() for text in inst] for inst in resps]
"""
FILTERED = """
task: toy
dataset_path: toy
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{options[right]}}"
generation_kwargs: {until: []}
metric_list:
  - metric: exact_match
filter_list:
  - name: last
    filter: [{function: !function utils.LastWord, mark: "!"}, {function: take_first}]
  - name: loud
    filter: [{function: custom, filter_fn: !function utils.shout}, {function: take_first}]
metadata: {version: 2.0, canonical_task: toy_original, task_pretty_name: Toy, num_samples: 4, num_fewshot: 0}
"""
WINOGRAND = """
def text(doc):
    return doc["right"]
def target(doc):
    return "is " + doc["question"]
def choices(doc):
    return ["It " + option for option in doc["options"]]
"""


def lm_evals_outcomes(file, responses):
    """Outcomes by lm-eval's own task of a file: request -> response, by item and filter."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(file, resolve_func=True)
    data = benchmarks.load(config["dataset_path"])
    task = ConfigurableTask(config=config | {"custom_dataset": lambda **_: data})
    task.build_all_requests(limit=None)
    for request in task.instances:
        request.resps.append(responses(request))
    task.apply_filters()
    found = {}
    for request in task.instances:
        found.setdefault(request.doc_id, []).append(request)
    for number, requests in sorted(found.items()):
        requests.sort(key=lambda request: request.idx)
        for key in requests[0].filtered_resps:
            yield number, key, task.process_results(requests[0].doc, [r.filtered_resps[key] for r in requests])


def test_filters_of_ones_own_and_lm_evals_metadata_are_taken_as_lm_eval_takes_them(toy):
    (toy / "tasks" / "utils.py").write_text(OWN_FILTER)
    (toy / "tasks" / "toy.yaml").write_text(FILTERED)

    def responses(request):
        return ["well, yes!", "no", "yes", "YES"][request.doc_id]

    (part,) = prepare("toy")
    for request in part.requests:
        request.resps.append(responses(request))
    ours = {(row.item, row.metric): row.outcome for row in outcomes(part)}
    theirs = {
        (f"toy/{number}", f"exact_match,{key}"): found["exact_match"]
        for number, key, found in lm_evals_outcomes(toy / "tasks" / "toy.yaml", responses)
    }
    assert ours == theirs and list(ours.values()) == [1, 0, 1, 0, 1, 0, 0, 0]
    assert headline("toy") == "exact_match,last"
    before = prompts_of("toy")
    (toy / "tasks" / "utils.py").write_text(OWN_FILTER.replace("[-1]", "[0]"))
    assert prompts_of("toy") != before, "a filter's source decides a score"


def test_options_that_are_contexts_as_in_winogrande(toy):
    """The text is the number of the right option, each option a context, and the target follows every one of them."""
    (toy / "tasks" / "utils.py").write_text(WINOGRAND)
    functions = {"doc_to_text": "text", "doc_to_target": "target", "doc_to_choice": "choices"}
    lines = [line for line in TOY.splitlines() if line.partition(":")[0] not in functions]
    text = "\n".join([*lines, *(f"{field}: !function utils.{name}" for field, name in functions.items())])
    (toy / "tasks" / "toy.yaml").write_text(text)
    check_against_lm_eval("toy", str(toy / "tasks" / "toy.yaml"), None, 4)

    def responses(request):
        return (-1.0 if request.args[0] == "It yes" else -2.0, False)

    (part,) = prepare("toy")
    assert [request.args for request in part.requests[:2]] == [
        ("It no", " is Is 0 even?"),
        ("It yes", " is Is 0 even?"),
    ]
    for request in part.requests:
        request.resps.append(responses(request))
    ours = [row.outcome for row in outcomes(part)]
    theirs = [found["acc"] for _, _, found in lm_evals_outcomes(toy / "tasks" / "toy.yaml", responses)]
    assert ours == theirs == [1, 0, 1, 0]
    assert list(confidences(part)) == []
    with pytest.raises(
        ParameterError, match=r"toy: doc_to_text is a number: metadata\.question should say what is asked"
    ):
        questions("toy")
    (toy / "tasks" / "toy.yaml").write_text(f'{text}\nmetadata: {{question: "{{{{question}}}}"}}\n')
    assert questions("toy")[0].text == "Is 0 even?"
    rows = [json.loads(line) for line in (toy / "toy.jsonl").read_text().splitlines()]
    write_lines(toy / "toy.jsonl", [row | {"right": 7} for row in rows])
    with pytest.raises(DataError, match=r"toy/0: .*right answer"):
        prepare("toy")


def test_a_file_of_ones_own_is_read_twice_and_no_more(toy, monkeypatch):
    """Once with the names of its functions, which say whether they may be imported, and once with the functions."""
    read = []
    load = definitions.task_file.load_yaml
    monkeypatch.setattr(
        definitions.task_file, "load_yaml", lambda file, **how: read.append(how["resolve_func"]) or load(file, **how)
    )
    monkeypatch.setattr(definitions, "load_yaml", lambda *_, **__: pytest.fail("read again"))
    definitions.configs(find("toy"))
    assert read == [False, True]


def test_a_judged_files_functions_are_left_alone(toy):
    text = FILTERED.replace("utils.", "gone.").replace("metadata: {", "metadata: {judge: leetcode, ")
    (toy / "tasks" / "toy.yaml").write_text(text)
    (config,) = definitions.configs(find("toy")).values()
    assert (config["metric_list"], config["filter_list"]) == ([{"metric": "bypass"}], None)


def test_a_benchmark_may_have_another_name_than_its_data(toy):
    (toy / "tasks" / "twin.yaml").write_text(TOY.replace("task: toy", "task: twin"))
    assert card_of("twin") == "toy" == card_of("toy") and prepare("twin")[0].total == 4


def test_what_decides_a_benchmark_of_ones_own_is_in_the_run_key(toy):
    config = EvaluationConfig(profile="test", suite="real", model="nano", limits={"toy": None})
    before = input_parts(config)
    for name in ("toy.yaml", "_shared.yaml", "utils.py"):
        path = toy / "tasks" / name
        path.write_text((path.read_text() if path.exists() else "") + "# another\n")
        after = input_parts(config)
        assert changed(before, after) == [f"file {name}"]
        before = after
    (toy / "tasks" / "other.yaml").write_text("")  # one that is not asked moves nothing
    assert input_parts(config) == before


def test_a_name_that_lm_eval_has_is_taken(toy):
    (toy / "tasks" / "gsm8k.yaml").write_text(TOY)
    with pytest.raises(ParameterError, match=r"gsm8k\.yaml: gsm8k is a benchmark of lm-eval's already"):
        find("gsm8k")


FAULTY = """
def broken(doc):
    return doc["gone"]
def scored(doc, results):
    return {"other": 1.0}
def nothing(doc, results):
    return {"acc": float("nan")}
def emptied(data):
    return list(data)
"""


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("process_docs: !function utils.broken", "toy: process_docs fails: ValueError: Column 'gone'"),
        ("process_docs: !function utils.emptied", "toy: process_docs gives list, should give a Dataset"),
        ("process_results: !function utils.scored", "toy/0: scored with other 1.0; its definition names acc"),
        ("process_results: !function utils.nothing", "toy/0: scored with acc nan; its definition names acc"),
        (
            "description: '{{gone}}'\nnum_fewshot: 0\ntraining_split: train",
            "toy: training_split is 'train'; its data",
        ),
    ],
)
def test_functions_and_splits_that_fail_are_one_clear_line(toy, more, said):
    (toy / "tasks" / "utils.py").write_text(FAULTY)
    (toy / "tasks" / "toy.yaml").write_text(f"{TOY}{more}\n")
    with pytest.raises((ParameterError, DataError), match=said) as caught:
        (part,) = prepare("toy")
        for request in part.requests:
            request.resps.append((0.0, False))
        list(outcomes(part))
    assert "\n" not in str(caught.value)


def test_a_question_without_a_right_answer_is_named(toy):
    text = TOY.replace("multiple_choice", "generate_until").replace("metric: acc", "metric: exact_match")
    text = text.replace('doc_to_choice: "{{options}}"\n', "").replace(
        "{{right}}", "{{'' if '2' in question else right}}"
    )
    (toy / "tasks" / "toy.yaml").write_text(text)
    with pytest.raises(DataError, match="toy/2: has no right answer"):
        prepare("toy")


def test_confidence_is_told_where_sums_decide(toy):
    for metrics, count in (("[{metric: acc}]", 4), ("[{metric: acc_norm}]", 0), ("[{metric: acc_mutual_info}]", 0)):
        (toy / "tasks" / "toy.yaml").write_text(TOY.replace("\n  - metric: acc", f" {metrics}"))
        (part,) = prepare("toy")
        for request in part.requests:
            request.resps.append((-1.0 if request.args[1] == " yes" else -2.0, False))
        assert len(list(confidences(part))) == count


def test_clusters_are_looked_for_before_anything_is_asked(toy):
    (toy / "tasks" / "toy.yaml").write_text(TOY + "metadata: {cluster: kind}\n")
    with pytest.raises(ParameterError, match="toy: clusters by 'kind'"):
        prepare("toy")


def test_a_prompt_of_digits_stays_a_text(toy):
    text = TOY.replace("multiple_choice", "generate_until").replace("{{question}}\\nAnswer:", "{{right}}")
    text = text.replace('doc_to_choice: "{{options}}"\n', "").replace("metric: acc", "metric: exact_match")
    (toy / "tasks" / "toy.yaml").write_text(text)
    (part,) = prepare("toy")
    assert [request.args[0] for request in part.requests] == ["1", "0", "1", "0"]
    for request in part.requests:
        request.resps.append("1")
    assert [row.outcome for row in outcomes(part)] == [1, 0, 1, 0] and headline("toy") == "exact_match"


def test_a_card_without_the_split_or_with_another_number_is_an_error(toy):
    little_card(toy, "gsm8k", splits={"train": {"local": "gsm8k/train.jsonl.gz", "items": 12}})
    clear_cards()
    with pytest.raises(DataError, match="openai/gsm8k: has no split 'test', only train"):
        prepare("gsm8k_cot")
