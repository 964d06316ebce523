"""Audit what adapters and models have forgotten: score them and the base on files, and compare the scores.

The scores of a model on a file are written to the output folder as soon as they are computed, and then reused. Their
file name is a hash of the model's files and of the tokens that are scored.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clbench.core.device import out_of_memory, pick_device
from clbench.core.errors import DataError, SpecError
from clbench.core.files import distinct_names
from clbench.core.objective import CAUSAL_LM
from clbench.data.own.instruction_tokens import ItemTokenizer, Tokenized, fitting_length
from clbench.data.own.instructions import PROBES, read_content
from clbench.execution.score_files import ScoreFiles
from clbench.models.causal_lm import Base, load_model, load_tokenizer, longest, text_config
from clbench.models.hf_candidates import BASE, Candidate, base_folder, find_candidates
from clbench.models.hf_files import fingerprint, read_config
from clbench.models.lora_scale import LoraScale, check_plain
from clbench.models.scoring import Precision, Scorer
from clbench.results.audit import (
    MARGINS,
    Audit,
    AuditedFile,
    Comparison,
    DialPoint,
    FileScores,
    Role,
    compare,
    judge,
    noise_floor,
    stays_within,
)

Note = Callable[[str], None]


@dataclass(frozen=True)
class AuditRequest:
    """The base, models and files of an audit, and its settings.

    `compare_with` is an adapter or model that the others are compared with; None: the base.
    """

    base: str
    models: tuple[Path, ...]
    files: tuple[tuple[Role, Path], ...]
    length: int | None = None
    cut_responses: bool = False
    template: Path | None = None
    any_base: bool = False
    batch_size: int = 8
    device: str = "auto"
    scales: tuple[float, ...] = ()
    margins: Mapping[str, float] = field(default_factory=lambda: MARGINS)
    out: Path | None = None
    compare_with: Path | None = None


@dataclass(frozen=True)
class ReadFile:
    """A file of tokenized items."""

    name: str
    role: Role
    path: Path
    sha256: str
    tokens: Tokenized

    @cached_property
    def tokens_hash(self) -> str:
        """Return the hash of all tokens, with the positions of those that are scored."""
        return sha256(json.dumps([astuple(item) for item in self.tokens.items]).encode()).hexdigest()


class Auditor:
    """Reads the base's tokenizer and all files, and checks the models, before anything is scored.

    Args:
        request: the base, models, files and settings of the audit.
        note: called with lines about progress.

    Raises:
        DataError: a folder or a file is missing or broken, or a model does not belong to the base.
        SpecError: options contradict each other.
    """

    def __init__(self, request: AuditRequest, note: Note = lambda line: None) -> None:
        """Read files and configurations."""
        self.request, self.note = request, note
        folder = base_folder(request.base)
        self.device = pick_device(request.device)
        self.tokenizer = load_tokenizer(folder, request.template)
        self.base = Base(folder, request.base, self.tokenizer, self.device)
        self.reference = self._find_reference()
        self.candidates = [candidate for candidate in find_candidates(request.models)
                           if self.reference is None or candidate.folder.resolve() != self.reference.folder.resolve()]
        # "model" is another column of the tables.
        if self.reference and self.reference.label in ("model", *(candidate.label for candidate in self.candidates)):
            self.reference = replace(self.reference, label=str(self.reference.folder.resolve()))
        if request.models and not self.candidates:
            raise SpecError(f"--compare-with {request.compare_with}: name a second adapter or model to compare it with")
        self.length = self._fitting_length()
        for candidate in self._all_candidates:
            self.base.check(candidate, request.any_base)
        if request.scales:
            self._check_dial()
        self.files = list(self._read())
        self.score_files = ScoreFiles(request.out)
        self._full_model: tuple[Path, Any] | None = None  # a model that is not an adapter, after its folder
        self.stored: list[tuple[str, str, str]] = []  # model, file and path of each file of scores

    @cached_property
    def hashes(self) -> dict[Path, str]:
        """Return the hash of each model's files, by its folder."""
        folders = (self.base.folder, *(candidate.folder for candidate in self._all_candidates))
        return {folder: fingerprint(folder) for folder in folders}

    @property
    def _all_candidates(self) -> list[Candidate]:
        """Return the adapters and models, with the one that the others are compared with."""
        return [*self.candidates, *([self.reference] if self.reference else [])]

    def _find_reference(self) -> Candidate | None:
        """Return the adapter or model that the others are compared with; None if that is the base."""
        path = self.request.compare_with
        if path is None:
            return None
        if self.request.scales:
            raise SpecError("--scale compares with the base; leave --compare-with out")
        candidates = find_candidates([path])
        candidates = [c for c in candidates if c.folder == path] or candidates  # not the checkpoints in its folder
        if len(candidates) != 1:
            raise SpecError(f"--compare-with takes one adapter or model, and {path} has {len(candidates)}: "
                            + ", ".join(str(candidate.folder) for candidate in candidates))
        return candidates[0]

    def _fitting_length(self) -> int:
        """Return the largest number of tokens of an item that the base takes, after all virtual tokens of adapters."""
        adapters = (read_config(c.folder, "adapter") for c in self._all_candidates if c.kind == "adapter")
        virtual_count = max((int(config.get("num_virtual_tokens") or 0) for config in adapters), default=0)
        max_length = longest(self.base.folder)
        name = self.request.base + (f" after {virtual_count} virtual tokens of an adapter" if virtual_count else "")
        return fitting_length(self.request.length, max_length and max_length - virtual_count, name)

    def _check_dial(self) -> None:
        """Check that there is exactly one plain LoRA adapter, a file of the new task and another file."""
        if len(self.candidates) != 1:
            raise SpecError(f"--scale takes one adapter, found {len(self.candidates)} models")
        check_plain(self.candidates[0], self.request.base)
        compared = "--scale compares the gain on the new task with losses on other files"
        roles = {role for role, _ in self.request.files}
        if "new" not in roles:
            raise SpecError(f"{compared}: name the file of the new task by --new FILE")
        if roles == {"new"}:
            raise SpecError(f"{compared}: name the others by --tasks FILE or --general FILE")

    def _read(self) -> Iterator[ReadFile]:
        """Yield the tokenized files: the new task first, then other tasks, then general texts."""
        paths = [path for _, path in self.request.files]
        resolved = [path.resolve() for path in paths]
        if duplicate := next((path for path in paths if resolved.count(path.resolve()) > 1), None):
            raise SpecError(f"{duplicate} is named twice")
        tokenizer = ItemTokenizer(self.tokenizer, self.length, self.request.cut_responses,
                                  text_config(self.base.folder).vocab_size)
        names = dict(zip(paths, distinct_names(paths), strict=True))
        for wanted_role in ("new", "task", "general"):
            for role, path in self.request.files:
                if role == wanted_role:
                    content = read_content(path)
                    items = tokenizer.tokenize(content.items).without_copies()
                    yield ReadFile(names[path], role, path, content.sha256, items)

    def run(self) -> Audit:
        """Score the base, or what the models are compared with instead, and all models; return the comparison."""
        reference_name = self.reference.label if self.reference else BASE
        reference_scores = self._scores(reference_name, self.reference)
        repeated_scores = self._scores(f"{reference_name} in bfloat16", self.reference, precision="bf16")
        floors: dict[tuple[str, str], float] = {}
        for file in self.files:
            first, second = reference_scores[file.name], repeated_scores[file.name]
            floors |= {(file.name, metric.name): noise_floor(first, second, metric)
                       for metric in CAUSAL_LM.metrics if first.values(metric)}
        scores: dict[str, dict[str, FileScores]] = {}
        dial: list[DialPoint] = []
        for candidate in sorted(self.candidates, key=lambda c: c.kind == "model"):
            scores[candidate.label] = self._scores(candidate.label, candidate)
            if self.request.scales:
                dial = self._dial(candidate, reference_scores, scores[candidate.label], floors)
        comparisons = judge([comparison for candidate in self.candidates for comparison in
                             self._comparisons(candidate.label, reference_scores, scores[candidate.label], floors)])
        files = tuple(AuditedFile(f.name, f.role, len(f.tokens.items), f.tokens.notes()) for f in self.files)
        return Audit(self.request.base, files, tuple(c.label for c in self.candidates), tuple(comparisons), tuple(dial),
                     tuple(self._settings()), tuple(self.stored), reference_name)

    def _settings(self) -> Iterator[tuple[str, str]]:
        yield "base", f"{self.request.base} ({self.hashes[self.base.folder][:12]})"
        for candidate in self._all_candidates:
            yield candidate.label, f"{candidate.kind} {candidate.folder} ({self.hashes[candidate.folder][:12]})"
        for file in self.files:
            place = "comes with clbench" if file.path in PROBES.values() else file.path
            yield file.name, f"{place} ({file.sha256[:12]})"
        yield "length", f"{self.length} tokens"
        yield "batch size, device", f"{self.request.batch_size}, {self.device}"
        yield "torch", torch.__version__

    def _comparisons(self, model: str, reference_scores: Mapping[str, FileScores], scores: Mapping[str, FileScores],
                     floors: Mapping[tuple[str, str], float]) -> Iterator[Comparison]:
        """Yield a comparison for each metric of each file."""
        for file in self.files:
            for metric in CAUSAL_LM.metrics:
                if (floor := floors.get((file.name, metric.name))) is not None:
                    yield compare(model, file.name, metric, reference_scores[file.name], scores[file.name], floor,
                                  self.request.margins)

    def _dial(self, candidate: Candidate, base_scores: Mapping[str, FileScores],
              full: Mapping[str, FileScores], floors: Mapping[tuple[str, str], float]) -> list[DialPoint]:
        """Return the adapter's effect at each scale; 0 is the base, and 1 the unscaled adapter."""
        points: dict[float, list[Comparison]] = {}
        for scale in sorted(set(self.request.scales)):
            name = f"scale {scale:g}"
            scaled = base_scores if scale == 0 else full if scale == 1 else self._scores(name, candidate, scale)
            points[scale] = list(self._comparisons(name, base_scores, scaled, floors))
        judged = iter(judge([comparison for comparisons in points.values() for comparison in comparisons]))
        other_files = {file.name for file in self.files if file.role != "new"}
        result = []
        for scale, comparisons in points.items():
            judged_comparisons = tuple(next(judged) for _ in comparisons)
            result.append(DialPoint(scale, judged_comparisons, scale == 0
                                    or stays_within([c for c in judged_comparisons if c.file in other_files])))
        return result

    @contextmanager
    def _load(self, candidate: Candidate | None, scale: float) -> Iterator[Any]:
        """Load the base (None), a model, or an adapter whose update is multiplied by a scale."""
        # Memory may not suffice for the base and a full model, or for two full models.
        if self._full_model and (candidate is None or candidate.folder != self._full_model[0]):
            self._full_model = None
        if candidate is None:
            yield self.base.model
        elif candidate.kind == "model":
            self.base.release()
            self._full_model = self._full_model or (candidate.folder, load_model(candidate.folder, self.device))
            yield self._full_model[1]
        else:
            with self.base.adapted(candidate) as model:
                if scale != 1:
                    LoraScale(model).set(scale)
                yield model

    def _scores(self, name: str, candidate: Candidate | None, scale: float = 1.0,
                precision: Precision = "fp32") -> dict[str, FileScores]:
        """Return the scores of the base (None) or a candidate on all files. It is loaded only if scores are missing."""
        hashes = [self.hashes[self.base.folder], *([self.hashes[candidate.folder]] if candidate else []),
                  *([f"{scale!r}"] if scale != 1 else [])]
        names = {file.name: self.score_files.path_of(hashes, file.tokens_hash, precision) for file in self.files}
        scores_by_file = {file: self.score_files.read(path) for file, path in names.items()}
        missing = [file for file in self.files if scores_by_file[file.name] is None]
        if missing:
            with self._load(candidate, scale) as model:
                scorer = Scorer(model, self.device, precision)
                for file in missing:
                    scores_by_file[file.name] = scores = self._score(scorer, file, name)
                    self.score_files.write(names[file.name], scores)
        if self.request.out is not None:
            self.stored += [(name, file, path) for file, path in names.items()]
        return {file: scores for file, scores in scores_by_file.items() if scores is not None}

    def _score(self, scorer: Scorer, file: ReadFile, name: str) -> FileScores:
        """Return the scores of one file."""
        start = time.monotonic()
        # The noise floor must also include the rounding differences of another batch size.
        size = self.request.batch_size if scorer.precision == "fp32" else self.request.batch_size // 2 or 2
        try:
            scores = scorer.score(file.tokens.items, size)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise DataError(f"{name}: out of memory on {file.path} with {size} items at once; try a smaller "
                            "--batch-size or --length") from error
        if not np.isfinite(scores.nll).all():
            place = int(np.argmin(np.isfinite(scores.nll)))
            raise DataError(f"{name}: its loss on item {place + 1} of {file.path} is not finite; the model is broken")
        self.note(f"{name}: {file.name}, {len(scores.nll)} items, {time.monotonic() - start:.1f} s")
        return FileScores(scores.nll, scores.exact if file.tokens.have_responses else ())
