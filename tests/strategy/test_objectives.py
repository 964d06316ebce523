"""The objective of language models: loss, scores and batches, against transformers' own loss (extra `lm`)."""

import random
from dataclasses import replace

import pytest
import torch
from helpers.language_models import make_model, save

from clbench.models.builtin import TextModelOptions
from clbench.models.language_model import language_model
from clbench.models.scoring import IGNORED, Scorer, TokenItem
from clbench.models.weights import load_weights
from clbench.strategy.base import Batch, Strategy, StreamInfo
from clbench.strategy.objectives import CausalLM
from clbench.training.sampling import divide_batches

pytestmark = pytest.mark.extra("lm")
LENGTH = 48


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def strategy(model, tmp_path_factory):
    folder = save(tmp_path_factory.mktemp("model"), model)
    network = language_model(f"hf:{folder}", TextModelOptions(), (LENGTH,))
    load_weights(network, folder / "model.safetensors")
    return Strategy(network, StreamInfo(0, 2, "task", (LENGTH,), torch.Generator(), pretrained=True, is_text=True,
                                        prepare=lambda x: x, objective="causal-lm")).eval()


def random_items(seed, count=6, longest=LENGTH):
    """Return items whose scored tokens have gaps, as those of conversations do."""
    draw = random.Random(seed)
    items = []
    for _ in range(count):
        length = draw.randint(2, longest)
        scored = sorted(draw.sample(range(1, length), draw.randint(1, length - 1)))
        items.append(TokenItem(tuple(draw.randint(0, 258) for _ in range(length)), tuple(scored)))
    return items


def raw_batch(items):
    x = torch.full((len(items), LENGTH), -1, dtype=torch.int32)
    y = torch.full((len(items), LENGTH), IGNORED, dtype=torch.int32)
    for row, item in enumerate(items):
        x[row, :len(item.ids)] = torch.tensor(item.ids, dtype=torch.int32)
        y[row, list(item.scored)] = x[row, list(item.scored)]
    return Batch(x, y, torch.zeros(len(items), dtype=torch.int64), 0)


def their_loss(model, batch):
    there = (batch.x >= 0).long()
    with torch.no_grad():
        return float(model(input_ids=batch.x.clamp(min=0).long(), attention_mask=there, labels=batch.y.long()).loss)


def our_loss(strategy, batch):
    with torch.no_grad():
        return float(strategy.loss(CausalLM().collate([batch])[0]))


def test_the_loss_is_that_of_transformers_on_random_batches_in_any_order(model, strategy):
    for seed in range(20):
        items = random_items(seed, count=1 + seed % 7, longest=5 + 2 * seed)
        batch = raw_batch(items)
        assert our_loss(strategy, batch) == pytest.approx(their_loss(model, batch), abs=1e-5)
        assert our_loss(strategy, raw_batch(items[::-1])) == pytest.approx(their_loss(model, batch), abs=1e-5)


def test_scores_are_those_of_an_audit(model, strategy):
    items = random_items(3, count=9)
    batch, expected = raw_batch(items), Scorer(model, torch.device("cpu")).score(items, 4)
    with torch.no_grad():
        scores = CausalLM().scores(strategy, strategy.predict(batch.x).logits, batch.y)
    assert scores["nll"].tolist() == pytest.approx(list(expected.nll), abs=1e-5)
    assert scores["exact"].tolist() == list(map(float, expected.exact))


def test_a_response_that_the_model_would_give_is_exact(model, strategy):
    ids = [5, 6, 7]
    for _ in range(4):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    right, wrong = TokenItem(tuple(ids), (3, 4, 5, 6)), TokenItem((*ids[:-1], (ids[-1] + 1) % 259), (3, 4, 5, 6))
    batch = raw_batch([right, wrong])
    with torch.no_grad():
        assert CausalLM().scores(strategy, strategy(batch.x), batch.y)["exact"].tolist() == [1.0, 0.0]


def test_collated_batches_of_a_stack_have_one_shape_in_multiples_of_16():
    short, long = raw_batch(random_items(1, longest=10)), raw_batch(random_items(2, longest=30))
    made = CausalLM().collate([short, long])
    assert {b.x.shape[1] for b in made} == {32} and {b.y.shape for b in made} == {b.at.shape for b in made}
    for raw, batch in zip((short, long), made, strict=True):
        for row in range(len(raw.y)):
            there = batch.y[row] != IGNORED
            places = (raw.y[row] != IGNORED).nonzero().flatten()
            assert batch.at[row][there].tolist() == (places - 1).tolist()
            assert batch.y[row][there].tolist() == raw.y[row][places].tolist()
            assert not batch.at[row][~there].any()


def test_gradients_of_parts_of_a_batch_add_up_to_those_of_the_batch(strategy):
    batch, = CausalLM().collate([raw_batch(random_items(5, count=7))])
    parameter = strategy.model.blocks[1].body.unit.self_attn.q_proj.weight
    whole, = torch.autograd.grad(strategy.loss(batch), parameter)
    parts = sum(torch.autograd.grad((share * strategy.loss(part)).sum(), parameter)[0]
                for share, (part,) in divide_batches([batch], 3))
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-7)


def test_stored_outputs_are_cut_with_their_tokens(strategy):
    batch = replace(raw_batch(random_items(1, longest=10)), frozen={"a": torch.zeros(6, LENGTH, 3), "b": torch.ones(6)})
    made, = CausalLM().collate([batch])
    assert made.frozen["a"].shape == (6, 16, 3) and made.frozen["b"].shape == (6,)
