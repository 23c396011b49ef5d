"""What a machine, its processes and a run's files must be before training starts, as checks that return values.

Each check gives `CheckResult`s and prints nothing. Ranges of versions come from the metadata of the installed slmkit,
so they stand in `setup.py` alone. The last two checks, `check_all_reduce` and `check_parity`, take all processes.

Not done: the speed of the network between nodes beyond one all-reduce; whether the model fits into memory.

Example:
    for result in examine(World.from_env(), run_dir="RUN"):
        print(result.status, result.name, result.what)
"""

import importlib.metadata
import math
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from slmkit.codec.open import open_codec
from slmkit.config import run_dir as runs
from slmkit.config.load import to_dict
from slmkit.config.train import TrainConfig
from slmkit.data.index import Corpus
from slmkit.data.remote import is_url
from slmkit.data.sources import Source, common_codec
from slmkit.data.text import TextTokenizer
from slmkit.data.vocab import VocabLayout
from slmkit.errors import UserError
from slmkit.files import disk_error, nearest_existing, read_json
from slmkit.group import sum_over_ranks
from slmkit.log import get_logger
from slmkit.model import kernels
from slmkit.model.pretrained import LAYOUT_FILE, base_layout, check_export, config_on_base
from slmkit.train.engine import process_group
from slmkit.train.parity import ACCUMULATION, StepComparison, compare_steps
from slmkit.train.run import check_facts, known_facts, open_sources, parameters, speech_samples
from slmkit.train.settings import Attempts, deepspeed_settings, precision, zero_stage
from slmkit.world import BatchSplit, World

logger = get_logger(__name__)
Status = Literal["ok", "warn", "FAIL"]
OPTIONAL = ("flash", "flash4", "liger", "eval")  # extras of setup.py that a run may use
PROBE_BYTES = 64 * 2**20  # written to the run directory
PROBE_FLOATS = 4 * 2**20  # summed over all processes
SLOW_MB_PER_SEC = 50.0  # a checkpoint of a 0.5 B model, about 6 GB, would take two minutes
LOW_FREE_GB = 20.0  # three such checkpoints
DEFAULT_STAGE = 2  # of ZeRO, where no run says another
TOLERANCE = 1e-3  # of gradients: float32 rounding stays below 1e-4, the known defects are above 0.1
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
FLASH_PACKAGES = {"flash-attn-4": kernels.FLASH_4, "flash-attn": kernels.FLASH_2}
# What DeepSpeed and torch raise when a compiler, a library, a device or a connection fails them.
BROKEN = (ImportError, OSError, RuntimeError, AttributeError, subprocess.SubprocessError)


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What one check found. `got`, `expected` and `next_step` stand where the status is not "ok"."""

    name: str
    status: Status
    what: str
    got: str = ""
    expected: str = ""
    next_step: str = ""

    @staticmethod
    def failed(name: str, error: UserError) -> "CheckResult":
        """A failure in the words of the error."""
        got, expected = ("" if value is None else str(value) for value in (error.got, error.expected))
        return CheckResult(
            name=name, status="FAIL", what=error.what, got=got, expected=expected, next_step=error.next_step
        )


def examine(
    world: World, *, run_dir: str | Path | None = None, config: TrainConfig | None = None
) -> Iterator[CheckResult]:
    """Every check in turn. All processes must take it to its end; one process of a machine looks at files.

    Raises UserError when the processes cannot work together, or DeepSpeed cannot start.
    """
    yield from check_versions()
    yield check_accelerator(world)
    if world.local_rank == 0:
        directory = run_dir or (config.run_dir if config else None)
        if directory is not None:
            yield check_run_dir(directory)
        if config is not None:
            yield from check_data(config, world)
    try:
        with process_group(world) as device:
            yield check_all_reduce(world, device)
            yield check_parity(world, device, stage_of(config))
    except BROKEN as error:
        raise UserError(
            "DeepSpeed cannot run a training step here",
            got=f"{type(error).__name__}: {error}",
            next_step="fix what it names; a missing compiler (g++, ninja) and a blocked port are common",
        ) from error


def check_versions() -> list[CheckResult]:
    """Python and every package against the tested ranges: one result per package outside, or one for all."""
    try:
        words = importlib.metadata.requires("slmkit") or []
        python = SpecifierSet(importlib.metadata.metadata("slmkit")["Requires-Python"] or "")
    except importlib.metadata.PackageNotFoundError:
        what = "slmkit is not installed, so the tested ranges are not known"
        return [CheckResult(name="versions", status="FAIL", what=what, next_step="pip install .")]
    problems = [_version_problem("python", python, platform.python_version())]
    found = [f"python {platform.python_version()}"]
    for requirement in map(Requirement, words):
        is_needed = _belongs(requirement, "")
        version = _installed(requirement.name)
        if is_needed or (version is not None and any(_belongs(requirement, extra) for extra in OPTIONAL)):
            tested = requirement.specifier
            problems.append(_version_problem(requirement.name, tested, version, is_needed=is_needed))
            found.append(f"{requirement.name} {version}")
    wrong = [problem for problem in problems if problem is not None]
    return wrong or [CheckResult(name="versions", status="ok", what=", ".join(found))]


def warn_at_start(world: World, run_dir: str | Path) -> None:
    """Log what the quick checks find wrong, from the first process: versions, accelerator, free space."""
    results = [*check_versions(), check_accelerator(world), check_free_space(run_dir)] if world.is_first else []
    for result in results:
        if result.status != "ok":
            logger.warning("%s: got %s, expected %s; %s", result.what, result.got, result.expected, result.next_step)


def check_accelerator(world: World) -> CheckResult:
    """The device of this process, and which attention implementation training uses on it."""
    name = "accelerator"
    if not torch.cuda.is_available():
        if NVIDIA_DRIVER.exists():
            return CheckResult(
                name=name,
                status="FAIL",
                what="there is an NVIDIA driver, but torch cannot use a GPU",
                got=f"torch {torch.__version__}, CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')}",
                expected="a CUDA build of torch that the driver can run",
                next_step="install torch for the CUDA version that nvidia-smi shows",
            )
        return CheckResult(name=name, status="ok", what=f"cpu; attention: {kernels.attention_kernel(on_cuda=False)}")
    found = f"attention in bf16: {kernels.attention_kernel(on_cuda=True)}"
    device = torch.cuda.get_device_name(world.local_rank % torch.cuda.device_count())
    usable = [kernel.name for kernel in kernels.installed()]
    for package, kernel in FLASH_PACKAGES.items():
        if kernel not in usable and _installed(package) is not None:
            return CheckResult(
                name=name,
                status="warn",
                what=f"{package} is installed but cannot be used",
                got=f"{found}, on {device}",
                expected=kernel,
                next_step=f"build {package} again for this torch; flash-attn 4 is for Hopper and later GPUs",
            )
    return CheckResult(name=name, status="ok", what=f"{device}; {found}")


def check_run_dir(run_dir: str | Path) -> CheckResult:
    """Write speed and free space where `run_dir` is or would be. What it writes is removed again."""
    path = Path(run_dir).absolute()
    place = nearest_existing(path)
    block = os.urandom(2**20)
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".slmkit-doctor-") as file:
            began = time.perf_counter()
            for _ in range(PROBE_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            mb_per_sec = PROBE_BYTES / 1e6 / (time.perf_counter() - began)
    except OSError as error:
        return CheckResult.failed("run directory", disk_error(path, error))
    return judge_disk(path, mb_per_sec, shutil.disk_usage(place).free / 1e9)


def check_free_space(run_dir: str | Path) -> CheckResult:
    """Free space where `run_dir` is or would be."""
    path = Path(run_dir).absolute()
    return judge_disk(path, math.inf, shutil.disk_usage(nearest_existing(path)).free / 1e9)


def judge_disk(path: Path, mb_per_sec: float, free_gb: float) -> CheckResult:
    """Whether a disk is fast (infinitely so if that was not measured) and empty enough for a 0.5 B model."""
    speed = f"{mb_per_sec:.0f} MB/s, " if math.isfinite(mb_per_sec) else ""
    name, got = "run directory", f"{speed}{free_gb:.1f} GB free"
    if mb_per_sec >= SLOW_MB_PER_SEC and free_gb >= LOW_FREE_GB:
        return CheckResult(name=name, status="ok", what=f"{path}: {got}")
    return CheckResult(
        name=name,
        status="warn",
        what=f"{path} is slow or nearly full for checkpoints of a 0.5 B model",
        got=got,
        expected=f"{SLOW_MB_PER_SEC:.0f} MB/s, {LOW_FREE_GB:.0f} GB free",
        next_step="choose another run_dir, or save less often (save_every_steps) and keep less (keep_last)",
    )


def check_data(config: TrainConfig, world: World) -> list[CheckResult]:
    """Batch, corpus, vocabulary, codec, model, newest checkpoint: one result each, as far as they go."""
    results: list[CheckResult] = []

    @contextmanager
    def check(name: str) -> Iterator[list[str]]:
        """Adds what the block says, or the UserError it raises."""
        said: list[str] = []
        try:
            yield said
        except UserError as error:
            results.append(CheckResult.failed(name, error))
        else:
            results.append(CheckResult(name=name, status="ok", what=said[0]))

    settings, sources, layout = None, list[Source](), None
    with check("batch") as said:
        split = BatchSplit(global_rows=config.global_rows, micro_rows=config.micro_rows, world_size=world.size)
        settings = deepspeed_settings(config, split)
        rows = f"{split.micro_rows} rows * {split.accumulation} micro-batches * {world.size} processes"
        said.append(f"{rows} = {split.global_rows}, {precision(settings)}")
    with check("corpus") as said:
        tried = Attempts()
        opened, eval_source = open_sources(config, tried)
        tried.finish()
        codec = common_codec(opened)
        for source in [*opened, eval_source]:
            if source is not None and isinstance(source.samples, Corpus):
                source.samples.check(with_tars=not is_url(source.path))  # looks at every shard
        for source in opened:
            hours = f", {source.samples.seconds / 3600:.2f} h" if isinstance(source.samples, Corpus) else ""
            said.append(f"{source.path}: {len(source)} samples{hours}, sha256 {_short(source.fingerprint)}")
        said[:] = ["; ".join(said)]
        sources = opened
    if not sources:
        return results
    with check("vocabulary") as said:
        layout = base_layout(TextTokenizer.load(config.base_path), codec, config.model.group)
        saved = Path(config.run_dir) / runs.MODEL / LAYOUT_FILE
        if os.path.isfile(saved):  # of the model that the run has begun
            begun = VocabLayout.from_dict(read_json(saved))
            begun.check_equal(layout, this=str(saved), that=f"{config.base} with {sources[0].path}")
        said.append(f"{layout.kind}, {layout.size} tokens, sha256 {_short(layout.sha256)}")
    if config.codec is not None:
        with check("codec") as said:
            speech = speech_samples(config, world, sources)
            spec = speech.codec.spec if speech is not None else open_codec(config.codec_path).spec
            codec.check_compatible(spec, this=sources[0].path, that=config.codec)
            weights = f"weights sha256 {_short(spec.weights_sha256)}"
            said.append(f"{config.codec}: {spec.name}, {weights}, made the corpus")
    if layout is not None:
        with check("model") as said:
            model = config_on_base(config.base_path, codec=codec, **to_dict(config.model))
            if config.init_from is not None:
                check_export(config.init_path, model, base_dir=config.base_path)
            said.append(f"{sum(parameters(model).values()):,} parameters, on {config.init_from or config.base}")
    if layout is not None and settings is not None:
        with check("checkpoint") as said:
            found = runs.newest(config.run_dir, skip_damaged=config.on_damaged_checkpoint == "previous")
            if found is None:
                said.append(f"{config.run_dir} has none: the run would start at step 0")
            else:
                facts = known_facts(config, settings, sources, layout)
                check_facts(facts, found.state["facts"], found.path)
                said.append(f"{found.path} fits: the run would continue at step {found.step}")
    return results


def check_all_reduce(world: World, device: torch.device) -> CheckResult:
    """Sum a tensor over all processes, and time it."""
    values = torch.full((PROBE_FLOATS,), float(world.rank + 1), device=device)
    sum_over_ranks(values[:1].clone())  # connections are made now, outside the measured time
    began = time.perf_counter()
    lowest, highest = (float(value) for value in sum_over_ranks(values).aminmax())
    seconds = time.perf_counter() - began
    expected = world.size * (world.size + 1) / 2
    if lowest == highest == expected:
        what = f"{world.size} processes, {values.nbytes / 1e6:.0f} MB in {1000 * seconds:.1f} ms on {device.type}"
        return CheckResult(name="all-reduce", status="ok", what=what)
    return CheckResult(
        name="all-reduce",
        status="FAIL",
        what=f"the sum over {world.size} processes is wrong",
        got=f"{lowest} to {highest}",
        expected=str(expected),
        next_step="try NCCL_P2P_DISABLE=1 and another torch; such a machine cannot train",
    )


def check_parity(world: World, device: torch.device, stage: int = DEFAULT_STAGE) -> CheckResult:
    """Gradients of the installed DeepSpeed with this ZeRO stage against plain ones. See `train.parity`."""
    return judge_parity(compare_steps(world, device, stage), world, stage)


def stage_of(config: TrainConfig | None) -> int:
    """ZeRO stage of the run; ZeRO-2 where there is none, or its file is refused: another check has said so."""
    if config is None:
        return DEFAULT_STAGE
    try:
        return zero_stage(deepspeed_settings(config, None))
    except UserError:
        return DEFAULT_STAGE


def judge_parity(steps: list[StepComparison], world: World, stage: int = DEFAULT_STAGE) -> CheckResult:
    """Whether DeepSpeed's steps are the plain ones. The parameter named is the worst of the first step that differs."""
    version = importlib.metadata.version("deepspeed")
    for step in steps:
        wrong, (worst, difference) = step.above(TOLERANCE), step.worst()
        norm_fits = step.norm_difference <= TOLERANCE
        if norm_fits and not wrong:
            continue
        parts = [f"{worst} by {difference:.1%}, {len(wrong)} of {len(step.differences)} parameters"] if wrong else []
        parts += [] if norm_fits else [f"gradient norm {step.norm:.4g} in place of {step.plain_norm:.4g}"]
        return CheckResult(
            name="gradient parity",
            status="FAIL",
            what=f"steps of DeepSpeed {version} differ from plain ones",
            got=f"{'; '.join(parts)} ({_setting(world, stage)}, {'clipped' if step.is_clipped else 'not clipped'})",
            expected=f"at most {TOLERANCE:.1%}",
            next_step="install a DeepSpeed inside the range of setup.py; models trained with this one are wrong",
        )
    largest = max(max(step.norm_difference, step.worst()[1]) for step in steps)
    what = f"DeepSpeed {version} equals plain steps to {largest:.0e} ({_setting(world, stage)}, clipped and not)"
    return CheckResult(name="gradient parity", status="ok", what=what)


def _setting(world: World, stage: int) -> str:
    return f"ZeRO-{stage}, accumulation {ACCUMULATION}, {world.size} processes, tied embeddings"


def _belongs(requirement: Requirement, extra: str) -> bool:
    """Whether `pip install slmkit[extra]` would ask for it here."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _version_problem(
    package: str, tested: SpecifierSet, version: str | None, *, is_needed: bool = True
) -> CheckResult | None:
    if version is not None and tested.contains(version, prereleases=True):
        return None
    return CheckResult(
        name="versions",
        status="FAIL" if is_needed else "warn",
        what=f"{package} is not installed" if version is None else f"{package} is outside the tested range",
        got=version or "nothing",
        expected=f"{package} {','.join(sorted(map(str, tested), reverse=True))}",
        next_step="pip install . in the source tree of slmkit",
    )


def _installed(package: str) -> str | None:
    """Version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _short(sha256: str) -> str:
    return sha256[:12] or "unknown"
