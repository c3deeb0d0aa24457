"""A worker is built: it joins the run, then loads the model."""

from dataclasses import dataclass, field

from pipeline.errors import ConfigError
from pipeline.logs.context import Context, current
from pipeline.logs.records import level
from pipeline.run.ledger import Ledger
from pipeline.worker.device_check import DeviceCheck
from pipeline.worker.device_errors import device_errors
from pipeline.worker.worker import Worker, _expect_one_gpu


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a process needs to become a worker of a run."""

    output: str
    model: str
    batch_size: int | None = None
    create_only: bool = True  # what the driver found out of the store
    gpu: bool = False  # one of its own was given to it
    context: Context = field(default_factory=current)  # of the driver's log: its run, model and owner
    log_level: int = field(default_factory=level)  # the least that the driver's log takes


def build_worker(settings: WorkerSettings, kind: type[Worker] = Worker) -> Worker:
    """Join a run and load its model.

    The run is read first, through this machine's own storage: who cannot see it must not label.
    Raises ConfigError where the run, the model or the device is not the one the driver meant, DeviceMismatch where the
    model's labels are not those of the run.
    """
    ledger = Ledger.open(settings.output)
    ledger.store.create_only = settings.create_only
    import torch

    from diffseg.models.unet.loading import Backend
    from diffseg.segmenter import DiffSeg

    if settings.gpu:
        _expect_one_gpu()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # workers share the cores, and the sums of one thread are the same everywhere
    try:
        with device_errors():
            backend = Backend.load(settings.model, ledger.run.config)
            segmenter = DiffSeg(backend, settings.batch_size)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    if backend.files.sha256 != ledger.run.weights_sha256:
        raise ConfigError(f"{settings.model}: other weights on this machine than on the driver's")
    worker = kind(ledger, segmenter)
    if settings.gpu:
        worker.device = str(torch.cuda.get_device_properties(0).uuid)
    worker.device_check = DeviceCheck(ledger, worker.segmenter)
    return worker
