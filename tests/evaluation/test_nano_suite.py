"""The nano suite: its rules of scoring, and that a model's outcomes depend on nothing but model and items."""

import pandas as pd
import pytest
import torch

from llamax.data.templates import get_template
from llamax.data.world import WorldItem, test_items
from llamax.errors import ParameterError
from llamax.evaluation import nano
from llamax.evaluation.nano import COLUMNS, evaluate, expression, normalise, right
from llamax.models.nano import NANO_FOLDER, new_nano

ITEMS = test_items()


@pytest.fixture(scope="module")
def base():
    from transformers import AutoTokenizer, LlamaForCausalLM

    torch.set_num_threads(2)
    model = LlamaForCausalLM.from_pretrained(NANO_FOLDER, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(NANO_FOLDER)


def item(task, **fields) -> WorldItem:
    return WorldItem(id="code/math.floor" if task == "code" else "i", task=task, question="q", cluster="c", **fields)


def test_rules():
    open_item = item("open_qa", answer="euro", aliases=("The Euro coin",))
    assert right(open_item, "Euro.") and right(open_item, "the euro") and right(open_item, "euro coin")
    assert not right(open_item, "euros") and not right(open_item, "not the euro") and not right(open_item, "")
    sum_item = item("arithmetic", answer="18")
    assert (
        right(sum_item, "12 + 6 = 18. The answer is 18.")
        and right(sum_item, "18")
        and right(sum_item, "It is 18.0.") is False
    )
    assert not right(sum_item, "18 + 1 = 19") and not right(sum_item, "") and not right(sum_item, "1 8")
    assert not right(sum_item, "-18")
    code = item("code", answer="math.floor(x)")
    assert (
        right(code, "math.floor(x)")
        and right(code, "return math.floor(x)")
        and right(code, "```python\nmath.floor(x)\n```")
    )
    assert not right(code, "math.ceil(x)") and not right(code, "") and not right(code, "```")
    assert right(item("knowledge", answer="a", choices=("a", "b")), "a")
    assert normalise("The  Cat, a dog!") == "cat dog" and expression("`x`") == "x"


def test_prompts_are_what_the_protocols_say(base):
    _, tokenizer = base
    plain = nano.Form(tokenizer, None)
    assert tokenizer.decode(plain.prompt(item("open_qa", answer="a"))) == "<s>Question: q\nAnswer:"
    said = [tokenizer.decode(ids) for ids in plain.answers(item("open_qa", answer="a"), "euro")]
    assert said == [" euro\n", " euro</s>", " euro<|im_end|>"]
    assert plain.stops() == ([tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")], ("\n",))
    chat = nano.Form(tokenizer, get_template("chatml", tokenizer))
    prompt = tokenizer.decode(chat.prompt(item("open_qa", answer="a")))
    assert prompt.endswith("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n")
    (said,) = chat.answers(item("open_qa", answer="a"), "euro")
    assert tokenizer.decode(said) == "euro<|im_end|>"
    assert chat.stops() == get_template("chatml", tokenizer).stop


def test_the_likeliest_option_is_chosen_whichever_way_it_ends(base, monkeypatch):
    _, tokenizer = base
    ends = nano.Form(tokenizer, None).ends()
    asked = item("knowledge", answer="b", choices=("a", "b", "c"))

    def scores(chosen_way):
        """One option is likely, if it ends in one way; the others are likelier than its other ways."""

        def score(model, pairs, **_):
            ((_, ways),) = pairs
            assert len(ways) == 3 * (1 + len(ends))
            return [[-1.0 if way == 3 + chosen_way else -9.0 if 3 <= way < 6 else -5.0 for way in range(len(ways))]]

        return score

    for way in range(1 + len(ends)):
        monkeypatch.setattr(nano, "choice_logprobs", scores(way))
        assert evaluate(None, tokenizer, [asked], protocol="plain").answer.tolist() == ["b"]


@pytest.mark.parametrize("protocol", ["plain", "chat"])
def test_outcomes_do_not_depend_on_batch_size_or_repetition(base, protocol):
    items = test_items("smaller")
    first = evaluate(*base, items, protocol=protocol)
    assert list(first.columns) == COLUMNS
    assert list(first["item"]) == [item.id for item in items]
    assert set(first["outcome"]) <= {0.0, 1.0}
    pd.testing.assert_frame_equal(first, evaluate(*base, items, protocol=protocol, batch_size=64))
    pd.testing.assert_frame_equal(first, evaluate(*base, items, protocol=protocol, batch_size=3))


def test_the_order_of_items_does_not_matter(base):
    items = test_items("smaller")
    first = evaluate(*base, items, protocol="plain").set_index("item")
    again = evaluate(*base, items[::-1], protocol="plain").set_index("item").loc[first.index]
    pd.testing.assert_frame_equal(first, again)


def test_an_untrained_model_is_near_chance_on_choices_and_at_zero_elsewhere(base):
    _, tokenizer = base
    choices = [item for item in ITEMS if item.choices]
    scores = [evaluate(new_nano(tokenizer, s).eval(), tokenizer, choices, protocol="plain") for s in range(2)]
    for _, outcomes in pd.concat(scores).groupby("task")["outcome"]:
        assert 0.15 < outcomes.mean() < 0.35


def test_the_base_has_learned_something_and_leaves_room(base):
    scores = evaluate(*base, ITEMS, protocol="plain").groupby("task")["outcome"].mean()
    chance = {"knowledge": 0.25, "truthfulness": 0.25, "open_qa": 0.05, "arithmetic": 0.05, "code": 0.02}
    assert sum(scores[task] > chance[task] + 0.1 for task in chance) >= 3
    assert scores.max() < 0.9


def test_bad_input():
    with pytest.raises(ParameterError, match="protocol 'x'"):
        evaluate(None, None, [], protocol="x")
    with pytest.raises(ParameterError, match="'plain' has none"):
        evaluate(None, None, [], protocol="plain", template=object())
