"""Scores of items under causal language models, against transformers' own loss and generation (extra `lm`)."""

import random
import warnings

import pytest
import torch
from helpers.language_models import load, make_model, make_multimodal, make_tokenizer, quiet, save

from clbench.models import scoring
from clbench.models.causal_lm import Base, load_model, longest
from clbench.models.hf_parts import build_untrained
from clbench.models.scoring import Scorer, TokenItem, collate, split, token_scores

pytestmark = pytest.mark.extra("lm")
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def quiet_import():
    quiet()


def random_items(seed, count=6, longest=20):
    """Return items of random tokens; the EOS, which is the padding, too is scored."""
    draw = random.Random(seed)
    items = []
    for _ in range(count):
        length = draw.randint(2, longest)
        first = draw.randint(1, length - 1)
        items.append(TokenItem((*(draw.randint(1, 258) for _ in range(length - 1)), 0), tuple(range(first, length))))
    return items


def their_loss(model, items, padding=0):
    """Return the loss that transformers computes from labels."""
    longest = max(len(item.ids) for item in items)
    ids = torch.tensor([[*item.ids, *[padding] * (longest - len(item.ids))] for item in items])
    mask = torch.tensor([[1] * len(item.ids) + [0] * (longest - len(item.ids)) for item in items])
    labels = torch.full_like(ids, -100)
    for row, item in enumerate(items):
        for place in item.scored:
            labels[row, place] = item.ids[place]
    with torch.no_grad():
        return float(model(input_ids=ids, attention_mask=mask, labels=labels).loss)


def test_the_loss_is_that_of_transformers_on_random_batches():
    model = make_model()
    scorer = Scorer(model, CPU)
    assert scorer.parts is not None
    for seed in range(20):
        items = random_items(seed)
        scores = scorer.score(items, batch_size=1 + seed % 6)
        counts = [len(item.scored) for item in items]
        mean = sum(n * loss for n, loss in zip(counts, scores.nll, strict=True)) / sum(counts)
        assert mean == pytest.approx(their_loss(model, items), abs=1e-5)


def test_scores_do_not_depend_on_batch_size_order_or_padding():
    scorer, items = Scorer(make_model(), CPU), random_items(7, count=11, longest=40)
    alone = [scorer.score([item], 1) for item in items]
    for size in (1, 3, 11):
        together = scorer.score(items, size)
        assert together.nll == pytest.approx([one.nll[0] for one in alone], abs=1e-5)
        assert together.exact == tuple(one.exact[0] for one in alone)
    backward = scorer.score(items[::-1], 4)
    assert backward.nll[::-1] == pytest.approx(scorer.score(items, 4).nll, abs=1e-5)


def test_batches_have_targets_and_the_places_before_them():
    batch = collate([TokenItem((5, 6, 7), (2,)), TokenItem((8, 9), (1,)), TokenItem((1, 2, 3, 0), (1, 2, 3))])
    assert batch.ids.tolist() == [[5, 6, 7, 0], [8, 9, 0, 0], [1, 2, 3, 0]]
    assert batch.mask.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch.at.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 2]]
    assert batch.y.tolist() == [[7, -100, -100], [9, -100, -100], [2, 3, 0]]


def test_exact_match_is_what_greedy_generation_gives():
    model = make_model(seed=3)
    model.generation_config.eos_token_id = None  # generation goes on for all tokens
    scorer, draw, checked = Scorer(model, CPU), random.Random(0), {True: 0, False: 0}
    for number in range(24):
        prompt = tuple(draw.randint(3, 258) for _ in range(draw.randint(1, 9)))
        with torch.no_grad():
            greedy = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=4,
                                    pad_token_id=0)[0, len(prompt):].tolist()
        response = list(greedy)
        if number % 2:
            response[draw.randrange(4)] = draw.randint(3, 258)
        ids = (*prompt, *response)
        with torch.no_grad():
            best = model(torch.tensor([ids])).logits[0, len(prompt) - 1:-1].topk(2).values
        if (best[:, 0] - best[:, 1]).min() > 1e-4:
            exact, = scorer.score([TokenItem(ids, tuple(range(len(prompt), len(ids))))], 1).exact
            assert exact == (greedy == response)
            checked[exact] += 1
    assert min(checked.values()) >= 5


def test_items_on_both_sides_of_the_switch_of_longrope_are_scored_apart():
    """transformers chooses the position embeddings of a whole batch by its longest item."""
    transformers, _ = quiet()
    torch.manual_seed(0)
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4,
            "long_factor": [4.0, 6.0, 8.0, 8.0], "original_max_position_embeddings": 16, "partial_rotary_factor": 1.0}
    options = {"rope_parameters": rope} if transformers.__version__[0] > "4" else {"rope_scaling": {
        "type": "longrope", "short_factor": rope["short_factor"], "long_factor": rope["long_factor"]}}
    model = transformers.Phi3ForCausalLM(transformers.Phi3Config(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, original_max_position_embeddings=16, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, initializer_range=0.15, **options)).eval()
    items = [TokenItem(tuple(range(1, length + 1)), (length - 1,)) for length in (4, 9, 16, 17, 30, 12)]
    single = [their_loss(model, [item]) for item in items]
    assert Scorer(model, CPU).score(items, len(items)).nll == pytest.approx(single, abs=1e-4)


def test_pieces_of_logits_change_nothing(monkeypatch):
    hidden, targets = torch.randn(23, 8), torch.randint(0, 50, (23,))
    head = torch.nn.Linear(8, 50)
    monkeypatch.setattr(scoring, "LOGIT_BYTES", 4 * 50 * 5)
    losses, right = token_scores(hidden, targets, head)
    assert torch.allclose(losses, -head(hidden).log_softmax(-1)[torch.arange(23), targets], atol=1e-6)
    assert right.tolist() == (head(hidden).argmax(-1) == targets).tolist()


@pytest.mark.parametrize("kind", ["gemma2", "gpt2", "cohere", "multimodal"])
def test_models_that_change_logits_after_the_head_are_run_as_a_whole(kind):
    transformers, _ = quiet()
    torch.manual_seed(0)
    small = {"vocab_size": 259, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "num_key_value_heads": 2, "intermediate_size": 32, "pad_token_id": 0, "bos_token_id": 2,
             "eos_token_id": 0}
    configs = {
        "gemma2": lambda: transformers.Gemma2Config(**small, head_dim=8, final_logit_softcapping=0.5),
        "cohere": lambda: transformers.CohereConfig(**small, logit_scale=0.25),
        "gpt2": lambda: transformers.GPT2Config(vocab_size=259, n_embd=16, n_layer=1, n_head=2, n_positions=32)}
    model = (make_multimodal() if kind == "multimodal" else
             transformers.AutoModelForCausalLM.from_config(configs[kind]()).eval())
    assert (split(model, CPU) is not None) == (kind in ("gpt2", "multimodal"))
    items = random_items(1)
    counts = [len(item.scored) for item in items]
    nll = Scorer(model, CPU).score(items, 4).nll
    assert sum(n * loss for n, loss in zip(counts, nll, strict=True)) / sum(counts) == pytest.approx(
        their_loss(model, items), abs=1e-5)


def test_a_base_that_also_takes_images_has_the_sizes_of_its_text_configuration(tmp_path):
    folder = save(tmp_path, make_multimodal())
    base = Base(folder, "base", make_tokenizer(), CPU)
    assert split(base.model, CPU) is not None
    assert longest(folder) == 64


def test_constants_of_a_model_in_bfloat16_are_not_rounded(tmp_path):
    """Gemma multiplies embeddings by the square root of their width, 6.3246; bfloat16 rounds it to 6.3125."""
    transformers, _ = quiet()
    torch.manual_seed(0)
    config = transformers.Gemma3TextConfig(
        vocab_size=259, hidden_size=40, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=10, max_position_embeddings=64, pad_token_id=0, initializer_range=0.3)
    save(tmp_path, transformers.Gemma3ForCausalLM(config).to(torch.bfloat16))
    ids = torch.arange(3, 19)[None]
    with torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path), dtype=torch.float32).eval()
        expected = model(input_ids=ids).logits
        assert torch.equal(load_model(tmp_path, CPU)(input_ids=ids).logits, expected)
        stored = transformers.AutoConfig.from_pretrained(str(tmp_path))
        assert stored.dtype == torch.bfloat16
        built = build_untrained("AutoModelForCausalLM", stored, None).eval()
        built.load_state_dict(model.state_dict())
        assert torch.equal(built(input_ids=ids).logits, expected)
        torch.manual_seed(0)  # later random numbers are those after one initialization
        transformers.AutoModelForCausalLM.from_config(stored)
        once = torch.rand(1)
        torch.manual_seed(0)
        build_untrained("AutoModelForCausalLM", stored, None)
        assert torch.rand(1) == once


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_adapters_with_virtual_tokens_give_the_loss_of_peft(kind):
    _, peft = quiet()
    config = getattr(peft, kind)(num_virtual_tokens=3, task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = peft.get_peft_model(make_model(), config).eval()
        items = random_items(5)
        counts = [len(item.scored) for item in items]
        nll = Scorer(model, CPU).score(items, 4).nll
        assert sum(n * loss for n, loss in zip(counts, nll, strict=True)) / sum(counts) == pytest.approx(
            their_loss(model, items), abs=1e-5)


def test_activated_lora_gives_the_loss_of_peft():
    _, peft = quiet()
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False,
                             alora_invocation_tokens=[100, 101])
    base = make_model()
    before, *after = random_items(5, count=4)
    items = [TokenItem((*before.ids, 100, 101, *item.ids), (len(before.ids) + 2 + item.scored[0],)) for item in after]
    without_adapter = Scorer(base, CPU).score(items, 1).nll
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base, config).eval()
        nll = Scorer(model, CPU).score(items, 2).nll
        assert nll == pytest.approx([their_loss(model, [item]) for item in items], abs=1e-5)
    assert all(abs(loss - other) > 1e-3 for loss, other in zip(nll, without_adapter, strict=True))


def test_lower_precision_changes_losses_a_little():
    model, items = make_model(), random_items(2)
    exactly, roughly = (Scorer(model, CPU, p).score(items, 4).nll for p in ("fp32", "bf16"))
    assert exactly != roughly
    assert roughly == pytest.approx(exactly, abs=0.1)


def test_a_saved_model_scores_as_the_one_that_was_saved(tmp_path):
    model, items = make_model(), random_items(4)
    again = load(save(tmp_path / "model", model, make_tokenizer()))
    assert Scorer(again, CPU).score(items, 2).nll == pytest.approx(Scorer(model, CPU).score(items, 2).nll, abs=1e-6)
