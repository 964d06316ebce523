"""A callback of Hugging Face's `Trainer` that scores old tasks and general texts while a language model trains."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from clbench.core import seeds
from clbench.core.errors import SpecError
from clbench.data.own.instruction_tokens import ItemTokenizer, Tokenized, fitting_length
from clbench.data.own.instructions import find_file, make_items, read_items
from clbench.models.scoring import Scorer

try:
    from transformers import Trainer, TrainerCallback
except ModuleNotFoundError as error:
    raise SpecError("ForgettingCallback needs transformers: pip install 'clbench[lm]'") from error

Rows = Iterable[Mapping[str, Any] | str]


class ForgettingCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not type-checked
    """Log what a causal language model forgets while a `Trainer` trains it, with or without adapters of PEFT.

        trainer.add_callback(ForgettingCallback(trainer, ["beta.jsonl", "english"]))

    All files are scored before the first step, then at each evaluation of the trainer or every `every` steps, and at
    the end of training. With `load_best_model_at_end`, the last scores are those of the best model. Scoring works as in
    `clbench forget`, but in the precision of the training. The trainer and its reporters log for each file NAME.jsonl:

    - `forget/NAME/nll`: negative log-likelihood of a response in nats per token, averaged over items.
    - `forget/NAME/exact`: fraction of items for which greedy decoding would generate the whole response, from 0 to
      1; not logged for plain texts.
    - `forget/NAME/nll_difference`, `forget/NAME/exact_difference`: the value minus the value before training. If
      training resumes from a checkpoint, the value before training is read from the checkpoint's log.

    Training is the same as without the callback: the modes of all modules and the global random generators of Python,
    NumPy and torch (CPU and CUDA) are restored, and no gradients are computed. Only durations that the trainer logs,
    such as `train_runtime`, include the scoring. If several processes train, the main one scores while the others wait.

    Args:
        trainer: the `transformers.Trainer`, or an instance of a subclass, to which the callback is added.
        files: paths of `.jsonl`, `.json` or `.txt` files, or `english`, which comes with clbench; or a mapping from
            names to paths or to rows. A row is a dictionary `{"prompt", "response"}` or `{"messages": [...]}`, or a
            text.
        tokenizer: a tokenizer of transformers; by default the trainer's `processing_class`.
        every: number of optimizer steps between scorings; None scores at each evaluation of the trainer.
        length: largest number of tokens of an item; by default the model's maximum, at most 1024.
        cut_responses: whether responses that do not fit are cut; otherwise they are an error.
        batch_size: number of items per batch; by default the trainer's `per_device_eval_batch_size`.

    Raises:
        DataError: a file cannot be read, or an item cannot be tokenized or does not fit.
        SpecError: an argument is out of bounds, two files have the same name, or there is no tokenizer. At the start of
            training: the model is sharded.
    """

    def __init__(self, trainer: Any, files: Sequence[str | Path] | Mapping[str, str | Path | Rows], *,
                 tokenizer: Any = None, every: int | None = None, length: int | None = None,
                 cut_responses: bool = False, batch_size: int | None = None) -> None:
        """Read and tokenize all files."""
        if every is not None and every < 1:
            raise SpecError(f"every {every}: expected at least 1 step")
        if length is not None and length < 2:
            raise SpecError(f"length {length}: expected at least 2 tokens")
        if batch_size is not None and batch_size < 1:
            raise SpecError(f"batch_size {batch_size}: expected at least 1 item")
        self.trainer, self.every = trainer, every
        self.batch_size = trainer.args.per_device_eval_batch_size if batch_size is None else batch_size
        tokenizer = tokenizer if tokenizer is not None else trainer.processing_class
        if tokenizer is None:
            raise SpecError("the trainer has no processing_class: pass tokenizer= to ForgettingCallback")
        config: Any = getattr(trainer.model, "config", None)
        text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
        most = getattr(text_config, "max_position_embeddings", None)
        adapters = getattr(trainer.model, "peft_config", {}).values()
        virtual_count = max((int(getattr(config, "num_virtual_tokens", 0) or 0) for config in adapters), default=0)
        item_tokenizer = ItemTokenizer(tokenizer, fitting_length(length, most and most - virtual_count, "the model"),
                                       cut_responses, getattr(text_config, "vocab_size", None))
        self.files: dict[str, Tokenized] = {}
        for name, source in _name_files(files).items():
            items = read_items(find_file(source)) if isinstance(source, str | Path) else make_items(name, source)
            self.files[name] = item_tokenizer.tokenize(items).without_copies()
            for note in self.files[name].notes(item_tokenizer.length):
                warnings.warn(f"{name}: {note}", stacklevel=2)
        self.training = False
        self.before: dict[str, float] = {}  # scores before training
        self.last_step: int | None = None  # step of the last scoring in this training

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that the model is not sharded, and move this callback to the first place."""
        trainer = self.trainer
        if trainer.is_fsdp_enabled or (trainer.is_deepspeed_enabled
                                       and trainer.accelerator.state.deepspeed_plugin.zero_stage == 3):
            raise SpecError("ForgettingCallback needs the whole model in one process, and FSDP and DeepSpeed ZeRO-3 "
                            "shard it; run clbench forget on checkpoints instead")
        self.training, self.before, self.last_step = True, {}, None
        # Reporters close their runs in on_train_end, so the last scores have to be logged before that.
        handler = trainer.callback_handler
        handler.callbacks = [self, *(callback for callback in handler.callbacks if callback is not self)]

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score before the first step, when all reporters are set up."""
        if self.last_step is None:
            self._score(state, control, kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score every `every` steps."""
        if self.every is not None and state.global_step % self.every == 0:
            self._score(state, control, kwargs["model"])

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score with an evaluation that is part of training; the trainer may evaluate several data sets in one step."""
        if self.training and self.every is None and self.last_step != state.global_step:
            self._score(state, control, kwargs["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score the model that training returns."""
        loaded_best = args.load_best_model_at_end and state.best_model_checkpoint is not None
        if self.last_step != state.global_step or loaded_best:
            self._score(state, control, kwargs["model"])
        self.training = False

    def _score(self, state: Any, control: Any, model: nn.Module) -> None:
        """Score all files, and log the scores."""
        self.last_step = state.global_step
        if not state.is_world_process_zero:
            return
        values: dict[str, float] = {}
        with preserve_state(model), self.trainer.accelerator.autocast():
            scorer = Scorer(model, next(model.parameters()).device)
            for name, tokens in self.files.items():
                scores = scorer.score(tokens.items, self.batch_size)
                values[f"forget/{name}/nll"] = fmean(scores.nll)
                if tokens.have_responses:
                    values[f"forget/{name}/exact"] = fmean(scores.exact)
        self.before = self.before or self._find_baseline(state, values)
        differences = {f"{key}_difference": value - self.before[key] for key, value in values.items()}
        should_log = control.should_log  # whether to log the training loss; `log` sets it to False
        # Not `self.trainer.log`, because subclasses may add their running averages to the entry and reset them.
        Trainer.log(self.trainer, {**values, **differences})
        control.should_log = should_log

    def _find_baseline(self, state: Any, values: Mapping[str, float]) -> dict[str, float]:
        """Return the scores before training: those in the log of a resumed training, or else the present `values`."""
        logged: dict[str, float] = {}
        for entry in reversed(state.log_history):
            logged |= {key: entry[key] for key in values if key in entry}
        if state.global_step and (missing := [key for key in values if key not in logged]):
            warnings.warn(f"the log of the checkpoint has no {missing[0]}; its difference is to step "
                          f"{state.global_step}, at which training resumes", stacklevel=2)
        return {**values, **logged}


def _name_files(files: Sequence[str | Path] | Mapping[str, str | Path | Rows]) -> dict[str, str | Path | Rows]:
    """Return the files by the name under which each is logged."""
    if isinstance(files, str | Path):
        raise SpecError(f"files: expected a list of paths or a mapping, found the path {str(files)!r}")
    if isinstance(files, Mapping):
        sources = dict(files)
    else:
        sources = {}
        for path in files:
            if (name := Path(path).stem) in sources:
                raise SpecError(f"{sources[name]} and {path} would both be logged as {name!r}; pass a mapping from "
                                "names to files")
            sources[name] = path
    if not sources:
        raise SpecError("files: name at least one file to score")
    return sources


@contextmanager
def preserve_state(model: nn.Module) -> Iterator[None]:
    """Restore the modes of all modules and the global random generators after the block.

    The generators are those of Python, of NumPy and of torch on the CPU and on the model's CUDA devices.
    """
    modes = [(module, module.training) for module in model.modules()]
    devices = list({parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"})
    before = seeds.state()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            seeds.restore(before)
            for module, mode in modes:
                module.training = mode
