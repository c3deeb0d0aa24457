"""A worker is built: it joins the run, then loads the model."""

from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.errors import ConfigError
from pipeline.logs.context import Context, current
from pipeline.logs.records import level
from pipeline.run.ledger import Ledger
from pipeline.worker.device_check import DeviceCheck
from pipeline.worker.device_errors import loading_errors
from pipeline.worker.window import WorkerObserver
from pipeline.worker.worker import Worker

Observe = Callable[[Ledger], WorkerObserver]


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a process needs to become a worker of a run."""

    output: str
    model: str
    batch_size: int | None = None
    create_only: bool = True  # whether the store keeps the first of two writers, as the driver found out
    quarantine_bytes: bool = True
    gpu: bool = False  # it has one GPU, which no other process uses
    context: Context = field(default_factory=current)  # of the driver's log: its run, model and owner
    log_level: int = field(default_factory=level)  # the least that the driver's log takes

    def open_ledger(self) -> Ledger:
        """The run, through this machine's own storage. Raises ConfigError where it cannot be seen from here."""
        return Ledger.open(self.output, create_only=self.create_only)


def build_worker(settings: WorkerSettings, observe: Observe | None = None) -> Worker:
    """Join a run and load its model.

    The run is read first: a machine that cannot see it must not label. observe: makes what is told of the windows.
    Raises ConfigError where the run, the model or the device is not the one the driver meant, DeviceMismatch where the
    model's labels are not those of the run.
    """
    ledger = settings.open_ledger()
    import torch

    from diffseg.models.load import load
    from diffseg.segmenter import DiffSeg

    if settings.gpu:
        _expect_one_gpu()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # workers share the cores, and the sums of one thread are the same everywhere
    with loading_errors():
        backend = load(settings.model, ledger.run.segment)
        segmenter = DiffSeg(backend, settings.batch_size)
    if backend.files.sha256 != ledger.run.weights_sha256:
        raise ConfigError(f"{settings.model}: other weights on this machine than on the driver's")
    worker = Worker(
        ledger,
        segmenter,
        device=str(torch.cuda.get_device_properties(0).uuid) if settings.gpu else "",
        device_check=DeviceCheck(ledger),
        observer=observe(ledger) if observe else None,
    )
    worker.committer.quarantine_bytes = settings.quarantine_bytes
    worker.check_device()
    return worker


def _expect_one_gpu() -> None:
    """A driver that torch cannot use shows its GPU and does not let it be used: labelling would go to the processor."""
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # the latter: a build without CUDA
        raise ConfigError(
            f"a worker was given a GPU that torch {torch.__version__} cannot use: {error}; install a torch that fits "
            "GPU and driver, or give `--device cpu`"
        ) from error
    if torch.cuda.device_count() != 1:
        raise ConfigError(f"a worker was given one GPU and torch sees {torch.cuda.device_count()}: {torch.__version__}")
