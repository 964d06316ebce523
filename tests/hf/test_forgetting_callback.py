"""`ForgettingCallback` with the real `Trainer`: what it logs, and when (extra `lm`)."""

import copy
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.language_models import make_model, make_tokenizer, quiet, write_lines
from helpers.trainers import NEW, OLD, TEXTS, add_callback, forget_log, lora, make_trainer, samples, train

from clbench.core.errors import DataError, SpecError
from clbench.hf import replay_mix

# transformers and PEFT call what is deprecated in each other, and PEFT looks for a base that is not in a file.
pytestmark = [pytest.mark.extra("lm"), *map(pytest.mark.filterwarnings, (
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:Could not find a config file:UserWarning"))]
KEYS = ("forget/old/nll", "forget/old/exact", "forget/texts/nll")


@pytest.fixture(scope="module", autouse=True)
def quiet_import():
    quiet()


def expected_scores(model):
    """Return the scores by transformers' own loss and generation, one item after the other."""
    tokenizer, model = make_tokenizer(), copy.deepcopy(model).eval()
    nll, exact = [], []
    for item in samples(tokenizer, OLD):
        ids, labels = torch.tensor([item["input_ids"]]), torch.tensor([item["labels"]])
        response = labels[labels != -100].tolist()
        with torch.no_grad():
            nll.append(float(model(input_ids=ids, labels=labels).loss))
            prompt = ids[:, :ids.shape[1] - len(response)]
            answer = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                                    max_new_tokens=len(response), pad_token_id=0)[0, prompt.shape[1]:].tolist()
        exact.append(answer == response)
    texts = []
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            texts.append(float(model(input_ids=ids, labels=ids).loss))
    return sum(nll) / len(nll), sum(exact) / len(exact), sum(texts) / len(texts)


class Snapshots:
    """Collects deep copies of the model by step, through the hooks of `Trainer`."""

    def __new__(cls):
        transformers, _ = quiet()

        class Collecting(transformers.TrainerCallback):
            def __init__(self):
                self.models = {}

            def on_step_begin(self, args, state, control, model, **kwargs):
                if not self.models:
                    self.models[state.global_step] = copy.deepcopy(model)

            def on_step_end(self, args, state, control, model, **kwargs):
                self.models[state.global_step] = copy.deepcopy(model)

        return Collecting()


@pytest.mark.parametrize("adapt", [None, lora], ids=["plain", "peft"])
def test_the_log_has_the_scores_of_transformers_own_loss_and_generation(tmp_path, adapt):
    model = make_model(seed=5, attention_dropout=0.2)
    trainer = make_trainer(tmp_path, adapt(model) if adapt else model, steps=30, per_device_train_batch_size=8)
    trainer.train_dataset = samples(make_tokenizer(), OLD)  # it learns them, so that matches are not all wrong
    snapshots = Snapshots()
    trainer.add_callback(snapshots)
    add_callback(trainer, every=10)
    train(trainer)
    entries = [entry for entry in trainer.state.log_history if "forget/old/nll" in entry]
    assert [entry["step"] for entry in entries] == [0, 10, 20, 30]
    assert "forget/texts/exact" not in entries[0]
    first = expected_scores(snapshots.models[0])
    for entry in entries:
        expected = expected_scores(snapshots.models[entry["step"]])
        assert [entry[key] for key in KEYS] == pytest.approx(expected, abs=1e-5)
        assert [entry[f"{key}_difference"] for key in KEYS] == pytest.approx(
            [a - b for a, b in zip(expected, first, strict=True)], abs=1e-5)
    if not adapt:
        assert entries[0]["forget/old/exact"] < entries[-1]["forget/old/exact"]


@pytest.mark.parametrize(("settings", "every", "steps"), [
    ({}, None, [0, 6]),
    ({"eval_strategy": "steps", "eval_steps": 2}, None, [0, 2, 4, 6]),
    ({"eval_strategy": "steps", "eval_steps": 4, "eval_on_start": True}, None, [0, 4, 6]),
    ({"eval_strategy": "epoch"}, None, [0, 3, 6]),
    ({"eval_strategy": "steps", "eval_steps": 1}, 4, [0, 4, 6]),
    ({}, 3, [0, 3, 6]),
])
def test_when_it_scores(tmp_path, settings, every, steps):
    trainer = make_trainer(tmp_path, **settings)
    if "eval_on_start" in settings:
        trainer.eval_dataset = {"a": trainer.eval_dataset, "b": trainer.eval_dataset}  # two evaluations in one step
    add_callback(trainer, every=every)
    trainer.evaluate(trainer.train_dataset)  # not part of training
    assert forget_log(trainer) == []
    train(trainer)
    assert [step for step, _ in forget_log(trainer)] == steps
    trainer.evaluate(trainer.train_dataset)
    assert [step for step, _ in forget_log(trainer)] == steps
    train(trainer)  # a second training has its own start
    assert [step for step, _ in forget_log(trainer)] == steps
    assert forget_log(trainer, "forget/old/nll_difference")[0] == (0, 0.0)


def test_the_last_scores_are_of_the_best_model_if_that_is_loaded(tmp_path):
    trainer = make_trainer(tmp_path, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
                           load_best_model_at_end=True, greater_is_better=True)  # the worst, so it is not the last
    add_callback(trainer)
    train(trainer)
    log = forget_log(trainer)
    best = int(trainer.state.best_model_checkpoint.rpartition("-")[2])
    assert best < 6 and [step for step, _ in log] == [0, 2, 4, 6, 6]
    assert log[-1][1] == pytest.approx(dict(log[:-1])[best], abs=1e-6) != pytest.approx(log[-2][1], abs=1e-3)


def test_tensorboard_gets_all_scores_in_one_file(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(tmp_path, report_to="tensorboard")
    add_callback(trainer, every=4)
    train(trainer)
    events, = tmp_path.rglob("events.*")
    scalars = EventAccumulator(str(events)).Reload().Scalars("train/forget/old/nll")
    assert [event.step for event in scalars] == [0, 4, 6]
    assert [event.value for event in scalars] == pytest.approx([value for _, value in forget_log(trainer)])


def test_differences_after_resuming_are_to_the_start_of_the_first_training(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 3}
    whole = make_trainer(tmp_path, **settings)
    add_callback(whole, every=2)
    train(whole)
    resumed = make_trainer(tmp_path, **settings)
    add_callback(resumed, every=2)
    train(resumed, resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    key = "forget/old/nll_difference"
    assert [step for step, _ in forget_log(resumed)] == [0, 2, 3, 4, 6]
    assert dict(forget_log(resumed, key))[6] == dict(forget_log(whole, key))[6] != 0
    late = make_trainer(tmp_path, **settings)
    add_callback(late, {"other": OLD})
    with pytest.warns(UserWarning, match="has no forget/other/nll; its difference is to step 3"):
        train(late, resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert [step for step, _ in forget_log(late, "forget/other/nll")] == [3, 6]
    assert forget_log(late, "forget/other/nll_difference")[0] == (3, 0.0)


def test_files_and_names(tmp_path):
    write_lines(tmp_path / "old.jsonl", OLD)
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS))
    talk = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}]
    trainer = make_trainer(tmp_path, make_model(length=1024))
    from_files = add_callback(trainer, [tmp_path / "old.jsonl", str(tmp_path / "texts.txt"), "english"])
    from_rows = add_callback(trainer, {"old": OLD, "texts": TEXTS, "talk": talk})
    assert [*from_files.files] == ["old", "texts", "english"] and len(from_files.files["english"].items) == 36
    for name in ("old", "texts"):
        assert from_files.files[name] == from_rows.files[name]
    assert make_tokenizer().decode([from_rows.files["talk"].items[0].ids[i]
                                    for i in from_rows.files["talk"].items[0].scored]) == "yo<|im_end|>"


@pytest.mark.parametrize(("files", "options", "kind", "words"), [
    (["a/old.jsonl", "b/old.jsonl"], {}, SpecError, "a/old.jsonl and b/old.jsonl would both be logged as 'old'"),
    ([], {}, SpecError, "name at least one file"),
    ("old.jsonl", {}, SpecError, "expected a list of paths or a mapping, found the path 'old.jsonl'"),
    (["nowhere.jsonl"], {}, DataError, "nowhere.jsonl: there is no such file"),
    ({"old": []}, {}, DataError, "old: it has no items"),
    ({"old": [*OLD, {"prompt": 1}]}, {}, DataError, "old, item 6: 'prompt' must be text, found 1"),
    ({"old": [OLD[0], ["a"]]}, {}, DataError, r"old, item 2: expected an object .*, found \[\"a\"\]"),
    ({"old": OLD}, {"every": 0}, SpecError, "every 0: expected at least 1 step"),
    ({"old": OLD}, {"length": 0}, SpecError, "length 0: expected at least 2 tokens"),
    ({"old": OLD}, {"batch_size": 0}, SpecError, "batch_size 0: expected at least 1 item"),
    ({"old": OLD}, {"length": 999}, SpecError, "length 999: the model takes at most 256 tokens"),
    ({"old": OLD}, {"length": 3}, DataError, "old, item 1: its 9 tokens do not fit into 3"),
    ({"old": OLD}, {"tokenizer": "none"}, SpecError, "pass tokenizer= to ForgettingCallback"),
])
def test_errors(tmp_path, files, options, kind, words):
    from clbench.hf import ForgettingCallback

    trainer = make_trainer(tmp_path)
    if options.pop("tokenizer", None):
        trainer.processing_class = None
    with pytest.raises(kind, match=words):
        ForgettingCallback(trainer, files, **options)


def test_virtual_tokens_of_an_adapter_take_places_of_an_item(tmp_path):
    from clbench.hf import ForgettingCallback

    trainer = make_trainer(tmp_path)
    trainer.model.peft_config = {"default": SimpleNamespace(num_virtual_tokens=8), "lora": SimpleNamespace()}
    with pytest.raises(SpecError, match="length 249: the model takes at most 248 tokens"):
        ForgettingCallback(trainer, {"old": OLD}, length=249)


def test_the_length_of_a_model_that_also_takes_images_is_that_of_its_part_for_texts(tmp_path):
    from clbench.hf import ForgettingCallback

    trainer = make_trainer(tmp_path)
    trainer.model.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=100))
    with pytest.raises(SpecError, match="length 101: the model takes at most 100 tokens"):
        ForgettingCallback(trainer, {"old": OLD}, length=101)


def test_cut_items_are_reported_and_options_are_used(tmp_path):
    trainer = make_trainer(tmp_path)
    with pytest.warns(UserWarning, match="texts: 1 text was cut to 17 tokens"):
        callback = add_callback(trainer, {"texts": TEXTS}, length=17, batch_size=5,
                                tokenizer=make_tokenizer(bos=True))
    assert [len(item.ids) for item in callback.files["texts"].items] == [17, 17]
    assert callback.files["texts"].items[0].ids[0] == 2
    assert callback.batch_size == 5 and trainer.args.per_device_eval_batch_size == 8


def test_replayed_samples_are_trained_on(tmp_path):
    trainer = make_trainer(tmp_path, steps=40, per_device_train_batch_size=16)
    tokenizer = make_tokenizer()
    trainer.train_dataset = replay_mix(samples(tokenizer, NEW), samples(tokenizer, OLD), 0.4, 0)
    add_callback(trainer)
    train(trainer)
    with_replay = forget_log(trainer)[-1][1]
    without = make_trainer(tmp_path, steps=40, per_device_train_batch_size=16)
    add_callback(without)
    train(without)
    assert len(trainer.train_dataset) == 13 and with_replay < forget_log(without)[-1][1] - 0.5


def test_without_transformers_the_error_names_the_extra():
    code = ("import sys\nsys.modules['transformers'] = None\nimport clbench.hf\n"
            "assert clbench.hf.replay_mix(['a'], ['b'], 0.5, 0)\n"
            "try:\n    clbench.hf.ForgettingCallback\n"
            "except Exception as error:\n    print(type(error).__name__, error)")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert out == "SpecError ForgettingCallback needs transformers: pip install 'clbench[lm]'\n"
