"""The ways of the waterfall: each computes the same, by another path; a way that does not is found."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch

from llamax.data.packing import Documents
from llamax.errors import TrainingError
from llamax.infrastructure import analysis
from llamax.infrastructure.waterfall import WAYS, Recipe, all_logits, one_way, operations, padded_tokens
from llamax.training.attention import Extents, attend


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def recipe(tiny_model):
    documents, rng = Documents(64), np.random.default_rng(0)
    for source in range(8):
        n = int(rng.integers(4, 40))
        documents.add(source, rng.integers(3, 512, n), np.arange(n) >= n // 2)
    packed, single = (documents.rows(packing=packing) for packing in (True, False))
    return Recipe(packed, single, tiny_model, pad_id=0, rows=len(packed), batch=8, rate=1e-3, micro=4)


def parity(recipe, ways):
    rows = []
    for way in ways:
        norms = []
        losses = one_way(recipe, way._replace(precision="fp32"), on_step=norms.append)[1]()
        rows.append({"key": way.key, "loss": losses[0], "norm": norms[0]})
    return pd.DataFrame(rows)


def test_every_way_computes_the_same_loss_and_gradient(recipe):
    table = parity(recipe, WAYS)
    loss, norm = analysis.check_parity(table)
    assert loss < 1e-5 and norm < 1e-5
    assert table.loss[0] == pytest.approx(np.log(512), rel=0.05)  # of a model that knows nothing
    assert len({way.key for way in WAYS}) == len(WAYS)


def test_each_way_changes_one_thing():
    """The objective, the rows, how they are laid, the precision, norms, rotary: never two of them at once."""
    for before, after in pairwise(WAYS):
        functions = {getattr(way.objective, "func", way.objective) for way in (before, after)}
        fields = ("rows", "precision", "documents", "norms", "rotary")
        changed = [getattr(before, field) != getattr(after, field) for field in fields]
        assert sum(changed) + len(functions) - 1 <= 1


def test_a_way_that_loses_a_target_is_found(recipe):
    def one_target_less(model, batch):
        mask = batch.loss_mask.clone()
        first = mask.flatten().nonzero()[0]
        mask.view(-1)[first] = False
        return all_logits(model, batch._replace(loss_mask=mask))

    wrong = WAYS[1]._replace(objective=one_target_less)
    with pytest.raises(TrainingError, match="way 'targets' in fp32: its loss differs"):
        analysis.check_parity(parity(recipe, [WAYS[0], wrong]))


def test_a_way_without_a_gradient_is_found(recipe):
    table = parity(recipe, WAYS[:2])
    table.loc[1, "norm"] *= 1.01
    with pytest.raises(TrainingError, match=r"its gradient norm differs by 0\.01"):
        analysis.check_parity(table)
    table.loc[1, "norm"] = np.nan
    with pytest.raises(TrainingError, match="way 'targets'"):
        analysis.check_parity(table)


def test_extents_say_which_documents_are_short():
    x = torch.randn(1, 2, 6, 4, requires_grad=True)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]])
    outs, kinds = [], []
    for short in (None, 0):
        out, _ = attend(None, x, x, x, None, scaling=0.5, documents=Extents.of(positions, short))
        outs.append(out)
        kinds.append(type(out.grad_fn.next_functions[0][0]).__name__)
    torch.testing.assert_close(*outs)
    assert "ShortDocuments" in kinds[0] and "ShortDocuments" not in kinds[1]


def test_operations_are_of_the_real_tokens_however_they_lie(recipe):
    assert operations(recipe.model, recipe.packed) == operations(recipe.model, recipe.single) > 0


def test_padding_counts_what_goes_through_the_model(recipe):
    seen = []

    def counting(model, batch):
        seen.append(batch.input_ids.numel())
        return all_logits(model, batch)

    one_way(recipe, WAYS[0]._replace(objective=counting))[1]()
    assert padded_tokens(recipe, WAYS[0]) == sum(seen) > len(recipe.single.tokens)
    assert padded_tokens(recipe, WAYS[2]) == len(recipe.single.tokens)
