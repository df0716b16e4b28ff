"""Other wordings change the words they are about, and nothing else of a definition."""

import pytest

from llamax.evaluation.wordings import AS_DEFINED, REAL

CONFIG = {"task": "t", "description": "Think.", "doc_to_text": "Q: {{question}}\nA:", "num_fewshot": 5}


@pytest.mark.parametrize(
    ("text", "cued"),
    [
        ("Question: {{question}}\nAnswer:", "Question: {{question}}\nThe answer is"),
        ("Q: {{question}}?\nA:", "Q: {{question}}?\nThe answer is"),
        ("Q: {{question}}\n\n  A: ", "Q: {{question}}\n\n  The answer is"),
        ("{{prompt}}", "{{prompt}}"),
        ("A: {{a}} or B: {{b}}", "A: {{a}} or B: {{b}}"),
    ],
)
def test_the_cue_at_the_end_is_put_in_other_words(text, cued):
    assert REAL["the answer is"](CONFIG | {"doc_to_text": text}) == CONFIG | {"doc_to_text": cued}


def test_a_prompt_that_a_function_writes_stays():
    config = CONFIG | {"doc_to_text": str.upper}
    assert REAL["the answer is"](config) == config


def test_descriptions():
    assert REAL[AS_DEFINED](CONFIG) == CONFIG
    assert REAL["no description"](CONFIG) == CONFIG | {"description": ""}
    polite = REAL["polite"](CONFIG)
    assert polite["description"].endswith(".\n\n") and polite | {"description": "Think."} == CONFIG
