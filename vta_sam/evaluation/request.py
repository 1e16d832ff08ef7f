"""The request of an evaluation: its settings, checked before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..metrics.alignment import VARIANTS
from ..runtime.cli import check_number
from ..runtime.distributed import choose_device
from ..runtime.errors import InputError
from .pairing import CAPTIONS_NAME, Words, find_systems, read_ids, read_words
from .sounds import LoadingPolicy

TRUE_SOUND = "true sound"
METRIC_SETS = ("standard", "all")
FLOWS: dict[str, tuple[str, ...]] = {"none": (), "full": ("full",), "fast": ("fast",), "both": ("full", "fast")}


@dataclass
class Request:
    """Settings of an evaluation.

    Args:
        systems: {name: folder of sounds}.
        reference: folder of true sounds.
        videos, ids, skip_bad: see :func:`~.pairing.make_plan`.
        words: {id: Words}, for labels.
        policy: of reading sounds.
        sound: which of a true video's sounds, by number or language; None: the one that a player plays.
        backbones: names; backbones without weights are reported as missing.
        weights: folder of their weights; None: the usual one.
        flows: variants of optical flow for AV-Align; () for none.
        ceiling: model folder through whose VAE and vocoder the true sound is sent, or None.
        cache: folder, or None.
        seed, resamples: of bootstrap and control.
        set_resamples: of figures of whole sets, which cost more.
        workers: processes; 0 measures here, unguarded.
        limit_s: seconds for one file.
        flow_limit_s: seconds for one video's flow.
        memory_mb: MiB of one process.
        batch_size: sounds at once in a backbone.
        device: of torch.
        metrics: "standard", or "all": slow and misleading metrics too.
    """

    systems: Mapping[str, Path]
    reference: Path
    videos: Path | None = None
    ids: Sequence[str] | None = None
    words: Mapping[str, Words] = field(default_factory=dict)
    policy: LoadingPolicy = LoadingPolicy()
    backbones: Sequence[str] = ("tiny",)
    weights: Path | None = None
    flows: Sequence[str] = ()
    ceiling: Path | None = None
    cache: Path | None = None
    skip_bad: bool = False
    seed: int = 0
    resamples: int = 2000
    set_resamples: int = 200
    workers: int = 0
    limit_s: float = 60.0
    flow_limit_s: float = 900.0
    memory_mb: int = 4096
    batch_size: int = 16
    device: str = "cpu"
    metrics: str = "standard"
    sound: str | None = None

    def __post_init__(self):
        for name, low in (("seed", 0), ("resamples", 100), ("set_resamples", 20), ("workers", 0), ("memory_mb", 512),
                          ("batch_size", 1)):
            check_number(name, getattr(self, name), low, whole=True)
        for name in ("limit_s", "flow_limit_s"):
            check_number(name, getattr(self, name), 1)
        if self.metrics not in METRIC_SETS:
            raise InputError(f"metrics={self.metrics}: expected one of {', '.join(METRIC_SETS)}")
        unknown = [flow for flow in self.flows if flow not in VARIANTS]
        if unknown:
            raise InputError(f"flow: {', '.join(unknown)} is no variant of optical flow; there are "
                             f"{', '.join(VARIANTS)}")


def request_of(settings: Mapping[str, Any], systems: Mapping[str, Path], reference: Path) -> Request:
    """The settings of conf/evaluate.yaml or conf/compare.yaml ⇒ Request.

    Raises:
        InputError: a setting is wrong; the message names its key.
    """
    flow = settings["flow"]
    if flow not in FLOWS:
        raise InputError(f"flow={flow}: expected one of {', '.join(FLOWS)}")
    for name in ("clip_s", "lowest_rate_hz", "shortest_s", "longest_s"):
        if settings[name] is not None:
            check_number(name, settings[name], 1e-3)
    captions = settings["captions"]
    if captions is not None and not Path(captions).is_file():
        raise InputError(f"captions={captions} is no file; name a csv with a column id")
    candidates = [folder / CAPTIONS_NAME for folder in (reference, reference.parent)]
    table = Path(captions) if captions else next((path for path in candidates if path.is_file()), candidates[0])
    videos, weights, ceiling, cache = (None if settings[name] is None else Path(settings[name])
                                       for name in ("videos", "weights", "ceiling", "cache"))
    policy = LoadingPolicy(settings["clip_s"], settings["lowest_rate_hz"], settings["shortest_s"],
                           settings["longest_s"])
    unchanged: dict[str, Any] = {name: settings[name] for name in (
        "metrics", "skip_bad", "seed", "resamples", "set_resamples", "workers", "limit_s", "flow_limit_s", "memory_mb",
        "batch_size")}
    backbones = settings["backbones"]
    backbones = [backbones] if isinstance(backbones, str) else list(backbones or ())
    ids = None if settings["ids"] is None else read_ids(Path(settings["ids"]), settings["split"])
    device = str(choose_device(settings["device"], settings["threads"]))
    return Request(systems, reference, videos, ids, read_words(table), policy, backbones, weights, FLOWS[flow], ceiling,
                   cache, device=device, sound=settings.get("sound"), **unchanged)


def named_folders(given: str | Sequence[str] | Mapping[str, str]) -> dict[str, Path]:
    """One folder, several, or {name: folder} ⇒ {name: folder}. Unnamed folders go by their own name, with their
    parent's where two are alike.

    Raises:
        InputError: two folders have one name, or there is none.
    """
    if isinstance(given, Mapping):
        return {str(name): Path(folder) for name, folder in given.items()}
    folders = [Path(folder) for folder in ([given] if isinstance(given, (str, int)) else given)]
    names = [folder.name or str(folder.absolute().name) for folder in folders]
    if len(set(names)) < len(names):
        names = ["/".join(folder.absolute().parts[-2:]) for folder in folders]
    if len(set(names)) < len(names) or not names:
        raise InputError(f"generated={given}: name one folder or several different ones, or {{name: folder, …}}")
    return dict(zip(names, folders))


def systems_and_reference(systems: str | Mapping[str, str], reference: str) -> tuple[dict[str, Path], Path]:
    """⇒ (systems, reference). The true sound comes first among the systems, under its own name or as "true sound".

    Args:
        systems: a folder of folders, or {name: folder}.
        reference: a system's name, or a folder.

    Raises:
        InputError: the reference is neither.
    """
    folders = named_folders(systems) if isinstance(systems, Mapping) else find_systems(Path(systems))
    if reference in folders:
        return {reference: folders[reference], **folders}, folders[reference]
    if not Path(reference).is_dir():
        raise InputError(f"reference={reference} is no folder, and none of the systems {', '.join(folders)}; name the "
                         "true sounds")
    return {TRUE_SOUND: Path(reference), **folders}, Path(reference)
