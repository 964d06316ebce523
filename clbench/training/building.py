"""Build models, their inputs and strategies from declarations, on the default device (`meta` in a dry run)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from clbench.core import seeds
from clbench.core.entry_points import builder, package_of, resolve
from clbench.core.errors import ClbenchError, DataError, OptionError, PluginError, SpecError, message_of
from clbench.core.options import Options, format_value
from clbench.core.pretrained import Preprocessing, WeightsSource, hash_weights
from clbench.core.registry import Registry
from clbench.core.scenario import Scenario
from clbench.core.user_code import place_of_function, users_place
from clbench.data.prepare import IMAGE_DIMS
from clbench.data.stream import Stream, stored_inputs
from clbench.experiment.inputs import advise_text_model
from clbench.experiment.trial import Resolved, Trial, Weights
from clbench.models.network import Network
from clbench.models.weights import MisfitError, fill, hash_tensors, load_weights, misfit, rename_tensors
from clbench.strategy.base import Strategy, StreamInfo
from clbench.strategy.common_options import OutputsOptions
from clbench.strategy.per_task import PerTaskStrategy


def as_inputs(stream: Stream, size: int | None, channels: int | None, preprocessing: Preprocessing | None,
              normalize: bool) -> Stream:
    """Return a stream that prepares its images as a model needs them.

    Args:
        stream: the stream of the benchmark.
        size: pixels along each side; None for the benchmark's size.
        channels: the number of channels that the model takes; None if it takes any number.
        preprocessing: the preprocessing that belongs to the model's weights; None if there is none.
        normalize: whether to normalize inputs as in the training of the weights, instead of as the benchmark does.

    Raises:
        SpecError: the samples are not images.
        DataError: inputs are to be normalized, but are neither bytes nor numbers in [0, 1].
    """
    shape = stream.input_shape
    repeated = channels if channels is not None and len(shape) == 3 and shape[0] == 1 else None
    if size is None and repeated is None and preprocessing is None:
        return stream
    if len(shape) != 3:
        raise SpecError(f"this benchmark's samples are no images ({list(shape)}), so the model's size and "
                        "preprocessing do not apply; choose another model")
    prepare = replace(stream.prepare, size=None if shape[1:] == (size, size) else size, channels=repeated)
    notes = []
    if size is not None:
        resized = "" if shape[1:] == (size, size) else f", made of {shape[1]} x {shape[2]}"
        notes.append(f"inputs: {size} x {size} pixels{resized}")
    if repeated:
        notes.append("inputs: gray images, their channel repeated")
    if preprocessing is not None:
        prepare = replace(prepare, interpolation=preprocessing.interpolation, antialias=preprocessing.antialias)
        if normalize:
            require_unit(stream)
            prepare = replace(prepare, mean=preprocessing.mean, std=preprocessing.std)
            notes.append(f"inputs: preprocessed as the weights were trained ({preprocessing})")
        else:
            normalization = f"by mean {list(stream.prepare.mean)}" if stream.prepare.mean else "not at all"
            notes.append(f"inputs: normalized {normalization}, as the benchmark's options say, while the weights were "
                         f"trained with {preprocessing}")
    side = shape[1:] if size is None else (size, size)
    return replace(stream, prepare=prepare, augment=stream.augment and stream.augment.sized(size),
                   input_shape=(repeated or shape[0], *side), notes=(*stream.notes, *notes),
                   fingerprint=hashlib.sha256(f"{stream.fingerprint} {prepare}".encode()).hexdigest()[:16])


def require_unit(stream: Stream) -> None:
    """Raise a DataError for inputs outside [0, 1], because these have been normalized already."""
    x = stored_inputs(stream.tasks[0].test)
    if isinstance(x, Tensor) and x.dtype != torch.uint8 and (float(x.min()) < 0 or float(x.max()) > 1):
        raise DataError("inputs are to be normalized as the model's weights were trained, but they are not in [0, 1]: "
                        "the benchmark seems to have normalized them; let it give images, or choose normalize = none")


SHOWN = 200  # characters of a model's own error message
PATCH = re.compile(r"patch size \(?(\d+)")


def build_model(model: Resolved, weights: Weights | None, input_shape: tuple[int, ...], classes: int,
                registry: Registry) -> tuple[Network, list[str]]:
    """Return a model with its starting weights, and notes on them.

    Raises:
        SpecError: the model cannot be built for these inputs.
        DataError: the weights do not fit the model, or their file has changed since the trial was planned.
    """
    info = registry.model(model.name)
    build = builder(info, "model")
    if takes_images(model, registry) and len(input_shape) != IMAGE_DIMS - 1:
        raise SpecError(f"model {model.name!r} takes images, this benchmark has inputs {list(input_shape)}; choose "
                        "another model (mlp takes any inputs) or another benchmark")
    try:
        network: Network = build(info.options.stored(model.options), input_shape, classes)
    except ClbenchError:
        raise
    except Exception as error:
        raise explain_unfit(model, input_shape, registry, error) from error
    if not isinstance(network, Network):
        raise SpecError(f"the build function of model {model} returned a {type(network).__name__}; it must return a "
                        "clbench.Network(blocks, head)")
    if weights is None:
        return network, []
    try:
        if weights.named:
            source: WeightsSource = resolve(info.weights, f"model {info.name!r}")
            tensors = source.load(model.name, weights.path)
            network.weights_hash = hash_tensors(tensors)
            return network, fill(network, tensors, weights.path)
        return network, load_weights(network, _check_weights(weights), trainable_head=True)
    except MisfitError as error:
        fitting_models = [name for name in registry.models if fits(name, error.given, input_shape, classes, registry)]
        hint = f"; they fit --model {' and '.join(fitting_models)}" if fitting_models else ""
        raise DataError(f"{error}; the model is {model}{hint}") from None


def fits(name: str, given: Mapping[str, Tensor], input_shape: tuple[int, ...], classes: int,
         registry: Registry) -> bool:
    """Return whether tensors are weights of the model with this name, with its default options."""
    info = registry.model(name)
    try:
        with torch.device("meta"):
            network: Network = builder(info, "model")(info.options(), input_shape, classes)
    except Exception:  # the model does not take these inputs, or an option has no default
        return False
    state = network.state_dict()
    return not misfit(rename_tensors(given, state, network.aliases), state)


def prepare_for_model(stream: Stream, trial: Trial, registry: Registry) -> Stream:
    """Return a benchmark's stream that prepares its images as a trial's model needs them.

    Raises:
        ClbenchError: see `as_inputs`.
    """
    as_trained = trial.benchmark.options.get("normalize", "model") == "model" and not stream.prepare.mean
    return as_inputs(stream, trial.model.options.get("size"), registry.model(trial.model.name).channels,
                     trial.preprocessing, normalize=as_trained)


def require_kind(model: Resolved, stream: Stream, registry: Registry) -> None:
    """Check that a model of text gets text, and that any other model does not.

    Raises:
        SpecError: the model does not take the inputs of the benchmark.
    """
    text = registry.model(model.name).text
    if text and not stream.is_text:
        raise SpecError(f"model {model.name!r} takes text, this benchmark has inputs {list(stream.input_shape)}; "
                        "choose another model, or a benchmark of texts such as text:FILE.csv")
    if stream.is_text and not text:
        raise SpecError(f"model {model.name!r} takes numbers, this benchmark has texts of {stream.input_shape[0]} "
                        f"tokens; {advise_text_model(stream.predicts_tokens)}")


def takes_images(model: Resolved, registry: Registry) -> bool:
    """Return whether a model takes images; such a model has an option `size`, to which they are resized."""
    return "size" in registry.model(model.name).options.model_fields


def explain_unfit(model: Resolved, input_shape: tuple[int, ...], registry: Registry, error: Exception) -> SpecError:
    """Return the error for a model that does not work on these inputs, on one line and with a suggestion."""
    reason = message_of(error)[:SHOWN].rstrip(".") or type(error).__name__
    if place := users_place(error, package_of(registry.model(model.name).build)):
        reason += f" ({place})"
    alternative = "another model"
    if takes_images(model, registry):
        named = ":".join([model.name, *(f"{name}={format_value(value)}" for name, value in model.options.items()
                                        if name != "size" and value != default(model, name, registry)), "size=PX"])
        patch = PATCH.search(reason)
        alternative = f"another size ({named}{f', PX a multiple of {patch[1]}' if patch else ''}) or another model"
    return SpecError(f"model {model} does not work on inputs {list(input_shape)}: {reason}; choose {alternative}")


def default(model: Resolved, name: str, registry: Registry) -> object:
    """Return the default of a model's option."""
    return registry.model(model.name).options.model_fields[name].default


def check_model(network: Network, model: Resolved, stream: Stream, registry: Registry) -> None:
    """Run a model on one sample on its device (also `meta`), because some check inputs only when they run.

    Models of texts are not run.

    Raises:
        SpecError: the model does not take these inputs, or its features or outputs have a wrong shape.
    """
    if stream.is_text:
        return
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            features = network.features(torch.zeros(1, *stream.input_shape, device=next(network.parameters()).device))
            if features.dim() != 2:
                shape = ", ".join(map(str, features.shape[1:]))
                raise ValueError(f"its features are [N, {shape}], and must be one vector for each sample, [N, D], so "
                                 "the last block should end with nn.Flatten()")
            outputs = network.from_features(features).shape[1]
    except Exception as error:  # the code of a model can raise any error
        raise explain_unfit(model, stream.input_shape, registry, error) from error
    network.train(training)
    if outputs != stream.classes:
        raise SpecError(f"model {model} has {outputs} outputs, and must have {stream.classes}, the number of classes "
                        "that its build function gets")


def _check_weights(weights: Weights) -> Path:
    """Return the path of a weights file, after checking that it has not changed since the trial was planned."""
    try:
        digest = hash_weights(Path(weights.path))
    except OSError as error:
        raise DataError(f"cannot read weights {weights.path}: {error.strerror}") from None
    if digest != weights.sha256:
        raise DataError(f"weights {weights.path} are not those that were planned; run again")
    return Path(weights.path)


def stream_info_of(stream: Stream, scenario: Scenario, seed: int, pretrained: bool) -> StreamInfo:
    """Return the `StreamInfo` of a trial's strategy, with a generator for the trial's seed."""
    return StreamInfo(
        classes=stream.classes, tasks=stream.tasks_for_strategy, scenario=scenario, input_shape=stream.input_shape,
        generator=seeds.generator(seed, "strategy"), pretrained=pretrained, prepare=stream.prepare,
        is_text=stream.is_text, objective=stream.objective, target=stream.target, boundaries=not stream.hidden)


def build_strategy(method: Resolved, model: Network, stream_info: StreamInfo, registry: Registry) -> Strategy:
    """Return a method's untrained strategy for a model.

    Raises:
        SpecError: the options do not fit the model or the stream, or the declared class is no strategy.
        TypeError: the class does not take these arguments; the message has the file and line of its `__init__`.
    """
    info = registry.strategy(method.name)
    cls = resolve(info.strategy, f"method {info.name!r}")
    options = info.options.stored(method.options)
    try:
        strategy = cls(model, stream_info, options)
    except OptionError as error:
        raise error.of_method(method.name) from error
    except TypeError as error:
        if error.__traceback__ is None or error.__traceback__.tb_next is not None:  # raised inside of `__init__`
            raise
        place = place_of_function(cls.__init__)
        raise TypeError(f"{error}; clbench passes model, stream_info and options"
                        + (f" ({place})" if place else "")) from None
    if not isinstance(strategy, Strategy):
        raise SpecError(f"method {info.name!r}: {cls.__name__} is not a clbench.Strategy")
    require_outputs(strategy, options)
    return strategy


def require_outputs(strategy: Strategy, options: Options) -> None:
    """Check that the option `outputs` has an effect: `Strategy.__init__` reads it from the options that it gets.

    Raises:
        PluginError: the strategy does not pass its options to `Strategy.__init__`.
    """
    stream_info = strategy.stream_info
    complete = options.settled(stream_info.pretrained).in_scenario(stream_info.scenario, stream_info.boundaries)
    if isinstance(complete, OutputsOptions) and (not isinstance(strategy.options, OutputsOptions)
                                                 or strategy.activated == "seen" != complete.outputs):
        raise PluginError(f"{type(strategy).__name__} does not pass its options on, so `outputs` has no effect: call "
                          "super().__init__(model, stream_info, options)")


def require_parts_fit(trial: Trial, strategy: Strategy, stream: Stream) -> None:
    """Check that the stream allows a part for each task, if the strategy has such parts.

    Raises:
        SpecError: classes arrive in several tasks, boundaries are hidden, or the part of a task cannot be inferred.
    """
    if isinstance(strategy, PerTaskStrategy):
        problem = trial.arrival.method_problem(trial.method.name, "", parts_per_task=True)
        if problem:
            raise SpecError(problem)
        for index, task in enumerate(stream.tasks):
            strategy.require_classes(index, task.train_classes)


def channels_last(model: Network) -> Network:
    """Convert the weights of a model's convolutions to channels-last memory, as `Prepare` does for images."""
    for parameter in model.parameters():
        if parameter.dim() == IMAGE_DIMS:
            # `contiguous` would not change the weights of a first layer on gray images.
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return model
