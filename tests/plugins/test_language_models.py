"""Methods on a tiny Llama, alone and in stacks, and against transformers' own model (extra `lm`)."""

import pytest
import torch
from helpers.language_models import load
from helpers.language_runs import (
    LanguageRuns,
    as_batch,
    as_transformers,
    learn,
    task_batches,
)

from clbench.accounting.count import count
from clbench.accounting.shapes import stream_without_values
from clbench.core import seeds
from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.strategy.regularization import slot

pytestmark = pytest.mark.extra("lm")
METHODS = ["naive", "joint", "independent", "l2", "si", "ewc:fisher=empirical:strength=1", "er", "er:share=0.3",
           "a-gem:balance=reservoir", *(f"{method}:targets=all-linear" for method in (
               "lora", "lora:infer=gaussian", "seq-lora", "seq-lora:merge=true", "seq-lora:replay=0.3",
               "o-lora:dropout=0", "inflora", "sd-lora", "ewc-lora:strength=1", "lora-mean")), "gpm", "osf"]
RATES = {"lora": 1.0, "seq-lora": 1.0, "o-lora": 0.1, "inflora": 1.0, "sd-lora": 0.5, "ewc-lora": 1.0, "lora-mean": 1.0,
         "osf": 0.2}
FIRST = ("naive", "er", "lora:infer=gaussian:targets=all-linear", "seq-lora:replay=0.3:targets=all-linear")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return LanguageRuns.make(tmp_path_factory.mktemp("language"))


@pytest.fixture
def theirs(runs):
    """Return the model as transformers loads it."""
    return load(runs.model).train()


def published(strategy):
    """Return a strategy's parameters by the names that transformers gives them."""
    return {strategy.model.published_name(name): parameter for name, parameter in strategy.model.named_parameters()}


def give(model, strategy):
    """Set the weights of a model of transformers to those of a strategy."""
    model.load_state_dict({name: p.detach() for name, p in published(strategy).items()}, strict=False)
    model.tie_weights()


def test_all_that_declare_it_are_tested_here():
    assert {i.name for i in discover().strategies.values() if "causal-lm" in i.objectives} == {
        method.partition(":")[0] for method in METHODS}


@pytest.mark.parametrize(("method", "scenario"), [
    (method, "domain" if method in FIRST else "task") for method in METHODS])
def test_a_stack_learns_as_each_seed_alone(runs, method, scenario):
    planned = runs.planned(method, seeds=2, scenario=scenario, epochs=2, lr=RATES.get(method.partition(":")[0], 0.05))
    records = runs.runner.run_stack(planned)
    for one, stacked in zip(planned, records, strict=True):
        assert not [note for note in stacked.notes if "alone" in note]
        alone = runs.runner.run(one)
        assert (alone.status, stacked.status) == ("done", "done")
        torch.testing.assert_close(torch.tensor(stacked.R), torch.tensor(alone.R), rtol=1e-3, atol=1e-3)
        assert alone.costs.bytes == stacked.costs.bytes
        assert alone.R[3][2] < alone.R[0][2] - 0.02, "nothing was learned"
    assert records[0].R != records[1].R


def test_methods_with_a_part_for_each_task_need_it_given_or_inferred(runs):
    for method, advice in (("independent", "no head is chosen by the prompt; choose --scenario task, or"),
                           ("lora", "write (lora:)?infer=gaussian, or choose --scenario task")):
        with pytest.raises(SpecError, match=advice):
            runs.replica(method, scenario="domain")


def test_rows_are_the_mean_loss_of_items(runs, theirs):
    strategy, stream = runs.learned("naive")
    record = runs.runner.run(runs.planned("naive")[0])
    for row, weights in ((0, None), (3, strategy)):
        if weights is not None:
            give(theirs, weights)
        for task, value in zip(stream.tasks, record.R[row], strict=True):
            with torch.no_grad():
                losses = [theirs.eval()(**as_transformers(item)).loss for item in task.test.chunks(1)]
            assert value == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


def test_one_model_per_task_is_fine_tuning_of_a_whole_model(runs):
    strategy, _ = runs.learned("independent", tasks=2)
    record, alone = (runs.runner.run(runs.planned(method)[0]) for method in ("independent", "naive"))
    assert record.R[1][0] == pytest.approx(alone.R[1][0], rel=1e-6)
    assert [row[0] for row in record.R[1:]] == [record.R[1][0]] * 3
    assert record.costs.trainable == alone.costs.trainable
    assert record.costs.parameters[-1] == {"base": alone.costs.trainable[0], "copies": 3 * alone.costs.trainable[0]}
    for task in range(2):
        head = strategy.head_of_task(task)
        assert head.weight is strategy.copies[task][0].body.embed_tokens.weight
        assert not torch.equal(head.weight, strategy.model.head.weight)
    assert strategy.head_of_task(2) is strategy.model.head


def test_naive_takes_the_steps_of_transformers_own_loss(runs, theirs):
    strategy, stream = runs.learned("naive", tasks=1)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    steps = 0
    for samples in task_batches(stream.tasks[0].train, 0, 0):
        optimizer.zero_grad()
        theirs(**as_transformers(samples)).loss.backward()
        optimizer.step()
        steps += 1
    ours, expected = published(strategy), dict(theirs.named_parameters())
    assert steps == 3 and ours.keys() == expected.keys()
    untrained = dict(load(runs.model).named_parameters())
    for name, parameter in expected.items():
        torch.testing.assert_close(ours[name], parameter, rtol=1e-5, atol=1e-5)
        assert (parameter - untrained[name]).abs().max() > 1e-3


def test_the_empirical_fisher_is_that_of_single_items(runs, theirs):
    strategy, stream = runs.learned("ewc:fisher=empirical", tasks=1)
    give(theirs, strategy)
    expected = {name: torch.zeros_like(p) for name, p in theirs.named_parameters()}
    train = stream.tasks[0].train
    for item in train.chunks(1):
        theirs.zero_grad()
        count = int((item.y[:, 1:] >= 0).sum())
        (count * theirs.eval()(**as_transformers(item)).loss).backward()
        for name, parameter in theirs.named_parameters():
            expected[name] += parameter.grad.square() / len(train)
    for name, parameter in strategy.model.named_parameters():
        ours = strategy.get_buffer(f"importance__{slot(f'model.{name}')}")
        wanted = expected[strategy.model.published_name(name)]
        assert ours.shape == parameter.shape and wanted.max() > 0
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-6 * float(wanted.max()))


def test_the_sampled_fisher_draws_each_token_from_the_model(runs):
    """Its expectation over draws is the sum over targets of sum_v p_v (d log p_v)^2, as targets are independent."""
    strategy, stream = runs.learned("ewc:fisher=sampled:fisher_samples=1", tasks=1)
    from clbench.strategy.fisher import diagonal_fisher

    item, name = stream.tasks[0].train.take(torch.tensor([0])), "model.blocks.2.activation.weight"
    parameter = strategy.get_parameter(name)
    strategy.requires_grad_(False)
    parameter.requires_grad_(True)
    batch = as_batch(strategy, item, 0)
    places = batch.at[0][batch.y[0] >= 0]
    log_p = strategy.eval().model.head(strategy(batch.x)[0, places]).log_softmax(1)
    expected = torch.zeros_like(parameter, requires_grad=False)
    for row in log_p:
        for value in row:
            gradient, = torch.autograd.grad(value, parameter, retain_graph=True)
            expected += value.detach().exp() * gradient.square()
    drawn = [diagonal_fisher(strategy, item, 0, generator=torch.Generator().manual_seed(seed), kind="sampled")[name]
             for seed in range(1000)]
    mean, error = torch.stack(drawn).mean(0), torch.stack(drawn).std(0) / 1000 ** 0.5
    assert ((mean - expected).abs() < 4.5 * error).all()


def test_a_gem_projects_onto_what_the_memory_allows(runs, theirs):
    strategy, stream = runs.learned("a-gem:balance=reservoir", tasks=1)
    assert len(strategy.memory) == 10
    give(theirs, strategy)

    def gradients(samples):
        theirs.zero_grad()
        theirs(**as_transformers(samples)).loss.backward()
        return {name: p.grad.clone() for name, p in theirs.named_parameters()}

    g = gradients(next(task_batches(stream.tasks[1].train, 0, 1)))
    r = gradients(stream.tasks[0].train)  # the memory has all of it
    along, length = (sum((a[n] * r[n]).sum() for n in r) for a in (g, r))
    assert along > 0
    names = {strategy.model.published_name(name): f"model.{name}" for name, _ in strategy.model.named_parameters()}
    for sign in (1, -1):  # what lowers the memory's loss stays; of the opposite nothing is left along r
        edited = strategy.edit_gradients({names[n]: sign * part for n, part in g.items()})
        for name, part in g.items():
            expected = part if sign == 1 else along / length * r[name] - part
            torch.testing.assert_close(edited[names[name]], expected, rtol=1e-4, atol=1e-6)


def test_er_keeps_a_reservoir_of_items_as_the_stream_stores_them(runs):
    strategy, stream = runs.learned("er:capacity=3", epochs=2)
    generator, memory, seen = seeds.generator(0, "strategy"), [], 0
    for index, task in enumerate(stream.tasks):
        for number, samples in enumerate(task_batches(task.train, 0, index, epochs=2)):
            if memory:
                torch.randperm(len(memory), generator=generator)  # the replay batch
            if number >= 3:
                continue  # items are offered in the first pass only
            draws = torch.rand(len(samples), 2, generator=generator, dtype=torch.float64)[:, 0].tolist()
            for x, y, draw in zip(samples.x.tolist(), samples.y.tolist(), draws, strict=True):
                if len(memory) < 3:
                    memory.append((x, y, index))
                elif (place := int(draw * (seen + 1))) < 3:
                    memory[place] = x, y, index
                seen += 1
    stored = strategy.memory
    assert list(zip(stored.x.tolist(), stored.y.tolist(), stored.tasks.tolist(), strict=True)) == memory
    assert strategy.memory_seen.tolist() == [10, 10, 10]
    assert stored.x.dtype == stored.y.dtype == torch.int32
    record = runs.runner.run(runs.planned("er:capacity=3")[0])
    items = 3 * (2 * 4 * stream.input_shape[0] + 8)  # tokens and labels with padding, and the task
    assert record.costs.bytes[-1]["replay"] == items and record.costs.replay_samples == [3] * 3


@pytest.mark.parametrize(("method", "message"), [
    ("ewc", "fisher = exact needs the distribution over all labels of an item, .*; choose fisher = sampled or"),
    ("ewc:fisher=predicted", "fisher = predicted needs"),
    ("a-gem", "method 'a-gem': balance = class divides .*; write a-gem:balance=reservoir"),
    ("er:balance=class", "write er:balance=reservoir"),
])
def test_what_needs_classes_is_refused_before_training(runs, method, message):
    with pytest.raises(SpecError, match=message):
        runs.runner.prepare(runs.planned(method)[0].trial)


@pytest.mark.parametrize("method", ["naive", "si", "seq-lora"])
def test_a_tied_head_is_the_embedding_and_counts_once(runs, theirs, method):
    replicas = runs.replicas(runs.planned(method, seeds=2))
    learn(replicas)
    numbers = sum(p.numel() for p in theirs.parameters())
    for replica in replicas:
        model = replica.strategy.model
        assert model.tied and model.head.weight is model.blocks[0].body.embed_tokens.weight
        record = runs.runner.run(replica.planned)
        assert record.costs.parameters[-1]["base"] == numbers
        assert record.costs.bytes[-1]["base"] == 4 * numbers
        adapters = record.costs.parameters[-1].get("adapters")
        assert record.costs.trainable == [adapters if method == "seq-lora" else numbers] * 3
        moved = (model.head.weight - theirs.lm_head.weight).abs().max()
        assert moved == 0 if method == "seq-lora" else moved > 1e-3


def test_an_item_whose_task_is_inferred_costs_the_base_and_one_adapter(runs):
    def flops(method, scenario):
        one = runs.planned(method, scenario=scenario)[0]
        found = count(one, stream_without_values(runs.runner.stream(one.trial)), runs.runner.registry)
        assert found.note is None
        return found.flops

    given, inferred = flops("lora", "task"), flops("lora:infer=gaussian", "domain")
    assert 1.5 * given < inferred <= 2 * given  # the base has no adapter and needs no logits
