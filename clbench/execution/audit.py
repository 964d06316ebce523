"""Audit what adapters and models have forgotten: score the base and each model on files, and compare the scores.

The scores of a model on a file are written to the output folder as soon as they are computed, and then reused. Their
file name is a hash of the model's files and of the tokens that are scored.
"""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import astuple, dataclass, field
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clbench.core.device import out_of_memory, pick_device
from clbench.core.errors import DataError, SpecError, StoreError
from clbench.core.files import write_atomically
from clbench.core.objective import CAUSAL_LM
from clbench.data.own.instruction_tokens import ItemTokenizer, Tokenized, fitting_length
from clbench.data.own.instructions import read_content
from clbench.models.causal_lm import Base, LoraScale, check_plain, load_model, load_tokenizer, longest
from clbench.models.hf_candidates import BASE, Candidate, base_folder, find_candidates
from clbench.models.hf_files import fingerprint, read_config
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

FORMAT = 3  # version of the stored scores; a new number invalidates old files
SCORES = "scores"  # the folder of stored scores
Note = Callable[[str], None]


@dataclass(frozen=True)
class AuditRequest:
    """The base, models and files of an audit, and its settings."""

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
        self.candidates = find_candidates(request.models)
        self.length = self._fitting_length()
        for candidate in self.candidates:
            self.base.check(candidate, request.any_base)
        if request.scales:
            self._check_dial()
        self.files = list(self._read())
        self.stored: list[tuple[str, str, str]] = []  # model, file and path of each file of scores

    @cached_property
    def hashes(self) -> dict[Path, str]:
        """Return the hash of each model's files, by its folder."""
        return {folder: fingerprint(folder) for folder in (self.base.folder, *(c.folder for c in self.candidates))}

    def _fitting_length(self) -> int:
        """Return the largest number of tokens of an item that the base takes, after all virtual tokens of adapters."""
        adapters = (read_config(c.folder, "adapter") for c in self.candidates if c.kind == "adapter")
        virtual_count = max((int(config.get("num_virtual_tokens") or 0) for config in adapters), default=0)
        max_length = longest(self.base.folder)
        name = self.request.base + (f" after {virtual_count} virtual tokens of an adapter" if virtual_count else "")
        return fitting_length(self.request.length, max_length and max_length - virtual_count, name)

    def _check_dial(self) -> None:
        """Check that there is exactly one plain LoRA adapter, a file of the new task and another file."""
        if len(self.candidates) != 1:
            raise SpecError(f"--scale takes one adapter, found {len(self.candidates)} models")
        check_plain(self.candidates[0])
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
        tokenizer = ItemTokenizer(self.tokenizer, self.length, self.request.cut_responses)
        names = [path.name for path in paths]
        for wanted_role in ("new", "task", "general"):
            for role, path in self.request.files:
                if role == wanted_role:
                    name, content = path.name if names.count(path.name) == 1 else str(path), read_content(path)
                    yield ReadFile(name, role, path, content.sha256, tokenizer.tokenize(content.items))

    def run(self) -> Audit:
        """Score the base and all models, and return the comparison."""
        base_hash = self.hashes[self.base.folder]
        base_scores = self._scores(BASE, [base_hash], self._load_base)
        repeated_scores = self._scores(f"{BASE} in bfloat16", [base_hash], self._load_base, "bf16")
        floors: dict[tuple[str, str], float] = {}
        for file in self.files:
            scored = [metric for metric in CAUSAL_LM.metrics if base_scores[file.name].values(metric)]
            floors |= {(file.name, metric.name): noise_floor(base_scores[file.name], repeated_scores[file.name], metric)
                       for metric in scored}
        scores: dict[str, dict[str, FileScores]] = {}
        dial: list[DialPoint] = []
        for candidate in sorted(self.candidates, key=lambda c: c.kind == "model"):
            hashes = [base_hash, self.hashes[candidate.folder]]
            if candidate.kind == "model":
                self.base.release()  # memory may not suffice for both
            load = self._load_candidate if candidate.kind == "model" else self._load_adapter
            scores[candidate.label] = self._scores(candidate.label, hashes, partial(load, candidate))
            if self.request.scales:
                dial = self._dial(candidate, hashes, base_scores, scores[candidate.label], floors)
        comparisons = judge([comparison for candidate in self.candidates for comparison in
                             self._comparisons(candidate.label, base_scores, scores[candidate.label], floors)])
        files = tuple(AuditedFile(f.name, f.role, len(f.tokens.items), f.tokens.notes()) for f in self.files)
        return Audit(self.request.base, files, tuple(c.label for c in self.candidates), tuple(comparisons), tuple(dial),
                     tuple(self._settings()), tuple(self.stored))

    def _settings(self) -> Iterator[tuple[str, str]]:
        yield "base", f"{self.request.base} ({self.hashes[self.base.folder][:12]})"
        for candidate in self.candidates:
            yield candidate.label, f"{candidate.kind} {candidate.folder} ({self.hashes[candidate.folder][:12]})"
        for file in self.files:
            yield file.name, f"{file.path} ({file.sha256[:12]})"
        yield "length", f"{self.length} tokens"
        yield "batch size, device", f"{self.request.batch_size}, {self.device}"
        yield "torch", torch.__version__

    def _comparisons(self, model: str, base_scores: Mapping[str, FileScores], scores: Mapping[str, FileScores],
                     floors: Mapping[tuple[str, str], float]) -> Iterator[Comparison]:
        """Yield a comparison for each metric of each file."""
        for file in self.files:
            for metric in CAUSAL_LM.metrics:
                if (floor := floors.get((file.name, metric.name))) is not None:
                    yield compare(model, file.name, metric, base_scores[file.name], scores[file.name], floor,
                                  self.request.margins)

    def _dial(self, candidate: Candidate, hashes: Sequence[str], base_scores: Mapping[str, FileScores],
              full: Mapping[str, FileScores], floors: Mapping[tuple[str, str], float]) -> list[DialPoint]:
        """Return the adapter's effect at each scale; 0 is the base, and 1 the unscaled adapter."""
        points: dict[float, list[Comparison]] = {}
        for scale in sorted(set(self.request.scales)):
            name = f"scale {scale:g}"
            scaled = base_scores if scale == 0 else full if scale == 1 else self._scores(
                name, [*hashes, f"{scale!r}"], partial(self._load_adapter, candidate, scale))
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
    def _load_base(self) -> Iterator[Any]:
        yield self.base.model

    @contextmanager
    def _load_candidate(self, candidate: Candidate) -> Iterator[Any]:
        yield load_model(candidate.folder, self.device)

    @contextmanager
    def _load_adapter(self, candidate: Candidate, scale: float = 1.0) -> Iterator[Any]:
        with self.base.adapted(candidate) as model:
            if scale != 1:
                LoraScale(model).set(scale)
            yield model

    def _scores(self, name: str, hashes: Sequence[str], load: Callable[[], AbstractContextManager[Any]],
                precision: Precision = "fp32") -> dict[str, FileScores]:
        """Return the scores of a model on all files. The model is loaded only if scores are missing."""
        scores_by_file = {file.name: self._read_stored(self._key(hashes, file, precision)) for file in self.files}
        missing = [file for file in self.files if scores_by_file[file.name] is None]
        if missing:
            with load() as model:
                scorer = Scorer(model, self.device, precision)
                for file in missing:
                    scores_by_file[file.name] = self._score(scorer, file, name)
                    self._store(self._key(hashes, file, precision), scores_by_file[file.name])
        if self.request.out is not None:
            self.stored += [(name, file.name, f"{SCORES}/{self._key(hashes, file, precision)}.npz")
                            for file in self.files]
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

    def _key(self, hashes: Iterable[str], file: ReadFile, precision: Precision) -> str:
        """Return the name under which scores are stored."""
        return sha256(json.dumps([FORMAT, *hashes, file.tokens_hash, precision]).encode()).hexdigest()[:32]

    def _read_stored(self, key: str) -> FileScores | None:
        """Return scores from the output folder, or None if they are not there."""
        if self.request.out is None or not (path := self._path(key)).is_file():
            return None
        try:
            with np.load(path) as arrays:
                return FileScores(tuple(arrays["nll"].tolist()), tuple(arrays["exact"].tolist()))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise StoreError(f"{path} cannot be read ({error}); delete it, and it is computed again") from error

    def _store(self, key: str, scores: FileScores | None) -> None:
        """Write scores to the output folder."""
        if self.request.out is None or scores is None:
            return
        content = io.BytesIO()
        np.savez_compressed(content, nll=np.array(scores.nll), exact=np.array(scores.exact, dtype=bool))
        try:
            self._path(key).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path(key), content.getvalue())
        except OSError as error:
            raise StoreError(f"cannot write {self._path(key)}: {error.strerror or error}") from error

    def _path(self, key: str) -> Path:
        assert self.request.out is not None
        return self.request.out / SCORES / f"{key}.npz"

