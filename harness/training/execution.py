"""Training runs: the text is prepared, and then every curve is trained, skipped or failed, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from harness import provenance
from harness.case import AskedDevice, Device
from harness.progress import console
from harness.record import Provenance
from harness.running.run_directory import UnusableRun
from harness.running.runs import InvalidOptions, UnfitEnvironment, device_name, interrupted
from harness.training.batches import check_lengths, encode, token_files
from harness.training.config import Curve, TrainingConfig
from harness.training.corpus import Corpus, InvalidCorpus, read_corpus
from harness.training.curve_log import Outcome, Step
from harness.training.progress import TrainingProgress
from harness.training.tokenizer import cache_key, tokenizer_of
from harness.training.trainer import Text, train_curve
from harness.training.training_run import TrainingPlan, TrainingRun
from harness.worker.environment import describe_environment
from harness.worker.failure import Unavailable, classify
from harness.worker.session import build
from implementations.registry import load


def choose_device(asked: AskedDevice) -> Device:
    """Raises UnfitEnvironment for a GPU that is not there."""
    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        raise UnfitEnvironment("--device cuda needs a CUDA GPU and torch sees none here")
    return "cpu" if asked == "cpu" or not available else "cuda"


def start(run: TrainingRun, config: TrainingConfig, device: Device, revision: str | None = None) -> Text:
    """Prepares the text and writes the plan; `revision` is the commit, where git does not know.

    Raises InvalidCorpus, InvalidOptions, UnusableRun, UnfitEnvironment.
    """
    reasons = refusals(config, device)
    if all(reasons.values()):
        listed = "; ".join(f"{curve}: {reason}" for curve, reason in reasons.items())
        raise UnfitEnvironment(f"no loss of the configuration can train here ({listed})")
    run.check_free()
    corpus = _read(config)
    text = _encoded(config, corpus)
    machine = describe_environment()
    run.create(_plan(config, device, corpus, machine, revision))
    return text


def reopen(run: TrainingRun) -> Text:
    """The text of a run that was begun, from the cache, or made once more if it is not there.

    Raises UnusableRun if the same text is not to be had, UnfitEnvironment on a machine without the run's device.
    """
    plan = run.plan()
    if plan.device == "cuda" and not torch.cuda.is_available():
        raise UnfitEnvironment(f"{run.path} is trained on {plan.provenance.device_name}; torch sees no GPU here")
    config = plan.config
    key = cache_key(plan.corpus_digest, config.model.vocab_size, config.tokenizer.max_bytes)
    files = token_files(Path(config.data.cache), key)
    tokenizer_path = Path(config.data.cache) / f"tokenizer-{key}.json"
    if files.exist() and tokenizer_path.is_file():
        return Text(files, Tokenizer.from_file(str(tokenizer_path)))
    corpus = _read(config)
    if corpus.digest != plan.corpus_digest:
        raise UnusableRun(
            f"{run.path} was begun on another text ({plan.corpus_description}) than there is now "
            f"({corpus.description}), and {config.data.cache} no longer holds it"
        )
    return _encoded(config, corpus)


def execute(run: TrainingRun, text: Text) -> list[Curve]:
    """Trains every curve that has not ended; failed ones are tried again. Returns those that failed.

    Raises KeyboardInterrupt when the command line was told to stop.
    """
    plan = run.plan()
    config = plan.config
    _settle_cpu()
    reasons = refusals(config, plan.device)
    curves = config.curves()
    failed: list[Curve] = []
    progress = TrainingProgress(len(curves), config.training.steps)

    def note(step: Step) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        progress.note(step)

    with progress.shown():
        for number, curve in enumerate(curves, start=1):
            log = run.log(curve)
            ended = log.outcome()
            if ended is not None and ended.status == "finished":
                continue
            log.reopen()
            progress.start_curve(number, curve.id)
            began = time.monotonic()
            reason = reasons[curve.id]
            if reason is not None:
                outcome = Outcome(status="skipped", reason=reason)
            else:
                outcome = _train(curve, plan, text, run, note)
            log.conclude(outcome)
            progress.finish_curve(curve.id, outcome, time.monotonic() - began)
            if outcome.status == "failed":
                failed.append(curve)
    return failed


def refusals(config: TrainingConfig, device: Device) -> dict[str, str | None]:
    """For every curve None, or why it is skipped: not supported, not installed, or interpreted here.

    Raises InvalidOptions if a loss does not have the options that it is given, or is not where its path says.
    """
    return {curve.id: _refusal(curve, config, device) for curve in config.curves()}


def _refusal(curve: Curve, config: TrainingConfig, device: Device) -> str | None:
    try:
        implementation = load(curve.loss.location)
    except (ImportError, AttributeError, TypeError) as error:  # a path of one's own
        raise InvalidOptions(f"loss '{curve.loss.name}': {error}") from error
    reason = implementation.supports(config.case(curve, device), device)
    if reason is not None:
        return f"unsupported: {reason}"
    if device == "cpu" and implementation.uses_triton:
        return "unsupported: on a CPU it runs in Triton's interpreter, too slow to train with"
    try:
        build(implementation, curve.loss.options)
    except Unavailable as error:
        return f"unavailable: {error}"
    except (TypeError, ValueError) as error:
        raise InvalidOptions(f"loss '{curve.loss.name}': {error}") from error
    return None


def _train(curve: Curve, plan: TrainingPlan, text: Text, run: TrainingRun, note: Callable[[Step], None]) -> Outcome:
    """One curve; the boundary at which whatever a loss raises becomes an outcome, and the next curve goes on."""
    device = torch.device("cuda", 0) if plan.device == "cuda" else torch.device("cpu")
    try:
        loss_function = build(load(curve.loss.location), curve.loss.options)  # anew: torch-compile forgets old shapes
        train_curve(curve, plan.config, loss_function, text, device, run.log(curve), note)
    except Exception as error:  # noqa: BLE001  (any library may raise anything)
        status, reason = classify(error)
        outcome = Outcome(status="failed", reason=f"{status}: {reason}")
    else:
        outcome = Outcome(status="finished")
    if plan.device == "cuda":
        torch.cuda.empty_cache()  # the next curve's peak is its own anyway, but not the memory it finds
    return outcome


def _read(config: TrainingConfig) -> Corpus:
    console.print("reading the corpus", soft_wrap=True)
    corpus = read_corpus(config.data)
    console.print(f"corpus: {corpus.description}", soft_wrap=True)
    return corpus


def _encoded(config: TrainingConfig, corpus: Corpus) -> Text:
    """The corpus as tokens, from the cache if it is there. Raises InvalidCorpus."""
    cache = Path(config.data.cache)
    if cache.exists() and not cache.is_dir():
        raise InvalidCorpus(f"data.cache {cache} is no directory")
    size, most = config.model.vocab_size, config.tokenizer.max_bytes
    tokenizer = tokenizer_of(corpus, size, most, cache)
    files = token_files(cache, cache_key(corpus.digest, size, most))
    encode(corpus, tokenizer, files)
    check_lengths(files, config.model.context)
    console.print(f"tokens: {len(files.training())}, held out: {len(files.held_out())}", soft_wrap=True)
    return Text(files, tokenizer)


def _plan(
    config: TrainingConfig, device: Device, corpus: Corpus, machine: dict[str, Any], revision: str | None
) -> TrainingPlan:
    commit, dirty = provenance.revision(given=revision)
    return TrainingPlan(
        config=config,
        device=device,
        corpus_digest=corpus.digest,
        corpus_description=corpus.description,
        provenance=Provenance(
            commit=commit,
            dirty=dirty,
            argv=provenance.command_line(),
            started=provenance.now(),
            device=device,
            device_name=device_name(device, machine),
            environment=machine,
        ),
    )


def _settle_cpu() -> None:
    """The first call in a process may race within oneMKL and be wrong (pytorch issue 188792): let that be this one."""
    torch.tanh(torch.zeros(1))
