"""One quantization: from a configuration to a checkpoint, its record and its card."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from q2n import __version__
from q2n.config import QuantizeConfig
from q2n.data.corpora import load_corpus
from q2n.data.tokenizer import load_tokenizer
from q2n.data.windows import TokenWindows, calibration_windows
from q2n.errors import InputError, Q2NError
from q2n.evaluation.evaluate import evaluate
from q2n.evaluation.perplexity import PerplexityResult
from q2n.formats import FORMATS
from q2n.formats.card import CardFacts, Perplexity, render_card
from q2n.formats.checkpoint import write_card, write_checkpoint
from q2n.formats.format import Format
from q2n.grids.affine import AffineLinear
from q2n.logging import Reporter
from q2n.methods.problem import Method
from q2n.models.blocks import BlockwiseModel
from q2n.models.source import open_source, parse_device, resolve_checkpoint
from q2n.pipeline.sequential import LoopOptions, SequentialLoop
from q2n.pipeline.store import RunStore, partial_folder
from q2n.report.record import RECORD_FILE, TIMINGS_FILE, build_record, build_timings

REPRESENTATIONS = {kind.kind: kind for kind in (AffineLinear,)}
"""How stored layers are rebuilt, by kind."""

NOT_IN_FINGERPRINT = ("model", "output", "corpus", "activations", "ppl", "ppl_windows")
"""Settings that a hash of the content stands for, or that do not touch the result."""


@dataclass(frozen=True)
class Quantized:
    """A finished checkpoint and what it cost."""

    directory: Path
    record: dict[str, Any]
    """What `q2n.json` in the folder holds."""
    timings: dict[str, Any]
    bytes_before: int
    bytes_after: int
    loading_example: str
    """Python lines that load the checkpoint."""
    perplexities: dict[str, PerplexityResult]
    """"original" and "quantized", if `ppl` was asked for."""


class Run:
    """One call of `quantize`."""

    def __init__(self, config: QuantizeConfig, model: Any, tokenizer: Any, reporter: Reporter):
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.reporter = reporter
        for needed in ("model", "output"):
            if not getattr(config, needed):
                raise InputError(f"no {needed} given")
        self.target = Path(config.output)
        if self.target.exists():
            raise InputError(f"output {self.target} exists; choose another folder or delete it")
        self.method: Method = config.build_method()
        self.format = parse_format(config.format)
        self.device = parse_device(config.device)
        self.source = open_source(
            model,
            dtype=config.dtype,
            trust_remote_code=config.trust_remote_code,
            revision=config.revision,
        )
        self.windows = self._calibration() if self.method.needs else None
        self.fingerprint = self._fingerprint()
        self.store = RunStore(partial_folder(self.target), REPRESENTATIONS)

    def quantize_blocks(self, resume: bool) -> None:
        """Every block, or those that an interrupted run left."""
        loop = self._loop()
        finished = self.store.start(self.fingerprint, resume=resume)
        try:
            loop.run(self.windows, finished)
        except Q2NError:
            if not self.store.finished():
                self.store.remove()
            raise

    def _loop(self) -> SequentialLoop:
        """The block loop, after a look at every shape: what does not fit is said before work."""
        config, settings = self.config, self.config.settings()
        options = LoopOptions(
            true_sequential=config.true_sequential,
            batch_size=config.batch_size,
            activations=config.activations,
            seed=config.seed,
        )
        blocks = BlockwiseModel(self.source, self.device)
        for name, shape in blocks.linears():
            self.method.check(name, shape)
            self.format.check(name, shape, bits=settings["bits"], group_size=settings["group_size"])
        return SequentialLoop(
            blocks,
            self.method,
            self.store,
            options,
            scale_dtype=self.format.scale_dtype(self.source.dtype),
            reporter=self.reporter,
        )

    def write(self) -> Quantized:
        """The checkpoint from the stored blocks, what was measured, and the card."""
        facts = self.store.finished()
        record, timings = build_record(self.fingerprint, facts), build_timings(facts)
        summary = write_checkpoint(
            self.target, self.source, self.store.layers(), self.format, record
        )
        self.store.remove()
        done = Quantized(
            directory=self.target,
            record=record,
            timings=timings,
            bytes_before=self.source.size_bytes(),
            bytes_after=summary.bytes,
            loading_example=self.format.loading_example(self.target),
            perplexities=self._perplexities(),
        )
        done.record["perplexity"] = {
            which: _without_time(result) for which, result in done.perplexities.items()
        }
        _write_json(self.target / RECORD_FILE, done.record)
        _write_json(self.target / TIMINGS_FILE, timings)
        write_card(self.target, render_card(self._card(done)))
        return done

    def _calibration(self) -> TokenWindows:
        config, label = self.config, self.source.label
        limit = getattr(self.source.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and config.length > limit:
            raise InputError(
                f"length {config.length} is more than the {limit} positions of {label}; "
                f"give --length {limit} or less"
            )
        return calibration_windows(
            load_corpus(config.corpus, "train"),
            self._tokenizer(),
            count=config.windows,
            length=config.length,
            seed=config.seed,
        )

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            folder = resolve_checkpoint(self.config.model, self.config.revision)
            self.tokenizer = load_tokenizer(folder)
        return self.tokenizer

    def _fingerprint(self) -> dict[str, Any]:
        """Everything that the bytes of the result depend on."""
        settings = self.config.settings()
        kept = {key: value for key, value in settings.items() if key not in NOT_IN_FINGERPRINT}
        return {
            "q2n_version": __version__,
            "model_sha256": self.source.digest(),
            "text_sha256": self.windows.sha256 if self.windows is not None else None,
            **json.loads(json.dumps(kept)),
        }

    def _perplexities(self) -> dict[str, PerplexityResult]:
        if self.config.ppl is None:
            return {}
        return {
            which: evaluate(
                model,
                ppl=self.config.ppl,
                length=self.config.length,
                windows=self.config.ppl_windows,
                device=self.config.device,
                tokenizer=self._tokenizer(),
                reporter=self.reporter,
            )
            for which, model in (("original", self.model), ("quantized", self.target))
        }

    def _card(self, done: Quantized) -> CardFacts:
        step = " followed by the null-space step Q2N" if self.config.nullspace else ""
        return CardFacts(
            base_model=self.source.label,
            title=self.target.name,
            format=self.format,
            directory=Path(self.target.name),
            method=f"{self.config.method}{step}",
            settings=done.record["settings"],
            bits_per_weight=done.record["bits_per_weight"],
            bytes_before=done.bytes_before,
            bytes_after=done.bytes_after,
            perplexities=[
                Perplexity(
                    model=which,
                    corpus=result.label,
                    value=result.perplexity,
                    standard_error=result.standard_error,
                    context=result.length,
                    windows=result.windows,
                )
                for which, result in done.perplexities.items()
            ],
            version=__version__,
        )


def parse_format(name: str) -> Format:
    """A checkpoint format by name."""
    if name not in FORMATS:
        raise InputError(f"unknown format {name!r}; there are: {', '.join(FORMATS)}")
    return FORMATS[name]


def _without_time(result: PerplexityResult) -> dict[str, Any]:
    return {key: value for key, value in asdict(result).items() if key != "seconds"}


def _write_json(file: Path, value: Any) -> None:
    fresh = file.with_suffix(".tmp")
    fresh.write_text(json.dumps(value, indent=1) + "\n")
    fresh.replace(file)
