"""Language models: scores of general texts before training and after each task, and answers to test prompts.

General texts belong to no task. If the scenario gives the task ID, they are scored with the part of the latest task,
which is what a user runs after fine-tuning on it. Answers are generated greedily for a few test items of each task,
just after the task was learned and after the last task, so that a reader sees answers after forgetting. Neither the
scores nor the answers affect training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from clbench.core import tokens
from clbench.core.errors import DataError
from clbench.data.own.instruction_streams import as_tensors
from clbench.data.own.instruction_tokens import ItemTokenizer, special_tokens
from clbench.data.own.instructions import FileContent, hashes_of
from clbench.data.stream import Stream
from clbench.data.tests import Tests
from clbench.experiment.trial import Trial
from clbench.models.causal_lm import load_tokenizer, longest, text_config
from clbench.models.hf_files import TOKENIZERS, folder_of, inner
from clbench.models.scoring import IGNORED
from clbench.results.records import Answer
from clbench.strategy.base import Strategy
from clbench.strategy.objectives import prompts_of
from clbench.training import precision
from clbench.training.callbacks.curve import eval_mode
from clbench.training.callbacks.interface import Callback, Training
from clbench.training.evaluation import batch_size, predict_routed, route
from clbench.training.replica import Replica

ANSWERS = 3  # test items of each task that are answered
LONGER = 8  # tokens by which an answer may exceed the response


@dataclass(frozen=True)
class GeneralTexts:
    """Tokenized texts that belong to no task."""

    name: str
    tests: Tests
    has_responses: bool  # whether all items have a response, which exact match needs


class LanguageCallback(Callback):
    """Scores general texts and generates answers.

    Args:
        tokenizer: folder or repository of the tokenizer.
        general: contents of the files of general texts, by name.
        length: largest number of tokens of an item.
        cut_responses: whether a response that does not fit is cut; otherwise it is an error.
    """

    def __init__(self, tokenizer: str, general: Mapping[str, FileContent], length: int, cut_responses: bool) -> None:
        """Load the tokenizer and tokenize the texts; `notes` describes what was cut."""
        self.tokenizer: Any = load_tokenizer(folder_of(tokenizer))
        self.hashes = hashes_of(general)
        self.general: list[GeneralTexts] = []
        self.notes: list[str] = []
        item_tokenizer = ItemTokenizer(self.tokenizer, length, cut_responses)
        for name, content in general.items():
            tokenized = item_tokenizer.tokenize(content.items)
            x, y = as_tensors(tokenized.items, max(len(item.ids) for item in tokenized.items))
            tests = Tests(x, y, torch.zeros(len(x), dtype=torch.int64), (len(x),), None, token_labels=True)
            self.general.append(GeneralTexts(name, tests, tokenized.have_responses))
            self.notes += [f"{name}: {note}" for note in tokenized.notes(length)]

    def on_start(self, training: Training) -> None:
        """Score general texts before the first task, unless a checkpoint had the scores already."""
        for replica in training.replicas:
            for note in self.notes:
                replica.add_note(note)
            if not replica.general:
                replica.general_files = dict(self.hashes)
                self._score(replica, training, 0)

    def on_task(self, training: Training, task: int) -> None:
        """Score general texts, and answer prompts of the task just learned; after the last task, of all tasks."""
        for replica in training.replicas:
            self._score(replica, training, task)
            if task + 1 == len(replica.stream.tasks) and replica.item_scores is not None:
                replica.item_scores = replica.item_scores.with_general(replica.general_items)
            with eval_mode([replica.strategy]), self._forward(replica, training):
                self._answer(replica, task)

    def _forward(self, replica: Replica, training: Training) -> Any:
        return precision.autocast_context(training.recipe, replica.strategy.class_mask.device, replica.strategy)

    def _score(self, replica: Replica, training: Training, task: int) -> None:
        """Add the scores of all general texts; if the scenario gives the task ID, with the part of `task`."""
        strategy = replica.strategy
        device = strategy.class_mask.device
        given_task = task if strategy.stream_info.task_given else None
        with eval_mode([strategy]), self._forward(replica, training):
            for texts in self.general:
                items: dict[str, list[float]] = {}
                size = batch_size(replica.stream, device, texts.tests.y.shape[1])
                for x, y, _ in texts.tests.batches(size):
                    x, y = x.to(device), y.to(device)
                    tasks = route(strategy, prompts_of(x, y[:, :x.shape[1]]) if texts.has_responses else x, given_task)
                    out = predict_routed(strategy, x, given_task, tasks).logits
                    for name, values in strategy.objective.scores(strategy, out, y, given_task).items():
                        items.setdefault(name, []).extend(values.cpu().double().tolist())
                for name, scores in items.items():
                    if name != "exact" or texts.has_responses:
                        replica.general.setdefault(texts.name, {}).setdefault(name, []).append(fmean(scores))
                        replica.general_items.setdefault(texts.name, {}).setdefault(name, []).append(scores)

    def _answer(self, replica: Replica, learned: int) -> None:
        """Add answers to prompts of task `learned`, and after the last task also answers for all earlier tasks."""
        strategy, stream = replica.strategy, replica.stream
        is_last = learned + 1 == len(stream.tasks)
        for task in range(len(stream.tasks)) if is_last else (learned,):
            given_task = task if strategy.stream_info.task_given else None
            x, y = stream.tasks[task].test.x[:ANSWERS], stream.tasks[task].test.y[:ANSWERS]
            prompts, responses = divide_items(x, y)
            limits = [min(len(response) + LONGER, stream.input_shape[0] - len(prompt))
                      for prompt, response in zip(prompts, responses, strict=True)]
            ends = {self.tokenizer.eos_token_id} - {None}
            # A chat template may end a turn with another token; a response that was cut ends with an ordinary one.
            ends |= {response[-1] for response in responses if response} & special_tokens(self.tokenizer)
            generated = generate(strategy, prompts, given_task, limits, ends)
            for number, (prompt, response, continuation) in enumerate(zip(prompts, responses, generated, strict=True)):
                text = self._text(continuation)
                if task == learned:
                    replica.answers.append(Answer(task=task, prompt=self._text(prompt), response=self._text(response),
                                                  learned=text, end=text if is_last else ""))
                else:
                    index = next(i for i, answer in enumerate(replica.answers) if answer.task == task) + number
                    replica.answers[index] = replica.answers[index].model_copy(update={"end": text})

    def _text(self, numbers: Sequence[int]) -> str:
        return str(self.tokenizer.decode(numbers, skip_special_tokens=True))


def divide_items(x: Tensor, y: Tensor) -> tuple[list[list[int]], list[list[int]]]:
    """Return the prompt of each item and its first response.

    The prompt ends before the first scored token. The response is the run of scored tokens that follows it.

    Args:
        x: tokens [N, L].
        y: labels [N, L].
    """
    prompts, responses = [], []
    for row, labels in zip(x.tolist(), (y != IGNORED).tolist(), strict=True):
        start = labels.index(True)
        end = next((i for i in range(start, len(labels)) if not labels[i]), len(labels))
        prompts.append(row[:start])
        responses.append(row[start:end])
    return prompts, responses


@torch.no_grad()
def generate(strategy: Strategy, prompts: Sequence[Sequence[int]], task: int | None, limits: Sequence[int],
             ends: set[int]) -> list[list[int]]:
    """Return the greedy continuation of each prompt, without the end token.

    Args:
        strategy: the strategy, in eval mode.
        prompts: tokens of each prompt.
        task: the task of all prompts; None if it is not given.
        limits: largest number of tokens of each continuation, at least 1.
        ends: tokens that end a continuation.
    """
    device, head = strategy.class_mask.device, strategy.head_of_task(task)
    texts = [list(prompt) for prompt in prompts]
    open_rows = list(range(len(texts)))
    tasks = route(strategy, pad_texts(texts).to(device), task)
    while open_rows:
        x = pad_texts([texts[row] for row in open_rows]).to(device)
        hidden = predict_routed(strategy, x, task, None if tasks is None else tasks[open_rows]).logits
        last_positions = torch.tensor([len(texts[row]) - 1 for row in open_rows], device=device)
        chosen = head(hidden[torch.arange(len(open_rows), device=device), last_positions]).argmax(-1).tolist()
        for row, token in zip(list(open_rows), chosen, strict=True):
            if token not in ends:
                texts[row].append(token)
            if token in ends or len(texts[row]) == len(prompts[row]) + limits[row]:
                open_rows.remove(row)
    return [text[len(prompt):] for text, prompt in zip(texts, prompts, strict=True)]


def pad_texts(texts: Sequence[Sequence[int]]) -> Tensor:
    """Return the tokens of several texts, padded to the same length, as inputs int32 [N, L]."""
    x = torch.full((len(texts), max(map(len, texts))), tokens.NO_TOKEN, dtype=tokens.DTYPE)
    for row, text in enumerate(texts):
        x[row, :len(text)] = torch.tensor(text, dtype=tokens.DTYPE)
    return x


def language_callback(stream: Stream, trial: Trial, general: Mapping[str, FileContent]) -> LanguageCallback | None:
    """Return the callback for a trial of a language model, and None for other trials.

    Raises:
        DataError: a general text has nothing to score, its response does not fit, or the tokenizer is not the model's.
    """
    if not stream.predicts_tokens:
        return None
    options, model = trial.benchmark.options, trial.model.name
    max_length = longest(folder_of(inner(model))) if model.startswith("hf:") else None
    callback = LanguageCallback(options["tokenizer"], general, min(options["length"], max_length or options["length"]),
                                options["cut_responses"])
    if model.startswith("hf:"):
        parts = [*(part.x for task in stream.tasks for part in (task.train, task.test)),
                 *(texts.tests.x for texts in callback.general)]
        largest_id = max(int(x.max()) for x in parts if isinstance(x, Tensor))
        _check_tokens(callback.tokenizer, options["tokenizer"], model, largest_id)
    return callback


def _check_tokens(tokenizer: Any, name: str, model: str, largest_id: int) -> None:
    """Check that token IDs mean in a model what they mean in the tokenizer that the user chose.

    Args:
        tokenizer: the tokenizer of the benchmark.
        name: its folder or repository.
        model: the model.
        largest_id: the largest ID of all texts.

    Raises:
        DataError: a token has another ID in the model's own tokenizer, or the model has no such ID.
    """
    folder = folder_of(inner(model))
    advice = "leave out the benchmark's option tokenizer, so that the model's own tokenizer is used"
    size = text_config(folder).vocab_size
    if largest_id >= size:
        raise DataError(f"model {model!r} has {size} tokens, and the tokenizer {name} made the token ID {largest_id}; "
                        f"{advice}")
    if folder_of(name) == folder or not any((folder / file).is_file() for file in TOKENIZERS):
        return
    own_ids = load_tokenizer(folder).get_vocab()
    for token, number in tokenizer.get_vocab().items():
        if own_ids.get(token, number) != number:
            raise DataError(f"the tokenizer {name} is not that of model {model!r}: token {token!r} is {number} instead "
                            f"of {own_ids[token]}; {advice}")
