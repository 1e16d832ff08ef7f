"""Settings of the programs with verbs and options: data_prep/manifest.py and weights.py,
experiments/listening_test.py and sweep.py. One class a verb, one field an option; its docstring is the verb's help."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from ..runtime.cli import Options
from ..runtime.typed_settings import Count, Keys, LocalPath, Number, Positive, Seed, Share, Switch, Text, setting

PLAN = setting("say what would be written, and stop", False)


def _pair(value: str) -> str:
    if "=" not in value:
        raise ValueError("expected KEY=NAME")
    return value


def needed(meaning: str) -> Any:
    """An option that must be given."""
    return Field(description=meaning)


# ---------------------------------------------------------------------- data_prep/manifest.py

class _Manifest(Options):
    METAVARS: ClassVar[Mapping[str, str]] = {"videos": "DIR", "out": "CSV", "csv": "CSV", "captions": "TABLE"}

    videos: LocalPath = needed("the folder of the videos")
    out: LocalPath = needed("the manifest to write")
    overwrite: Switch = setting("also where there is one already", False)
    val: Count = setting("move N clips of train to val", 0)
    cut: Literal["auto", "yes", "no"] = setting(
        "are files the clips themselves (yes), or the whole videos that they were taken from (no)? auto: a name with "
        "the start (ID_000030.mp4, ID_30.mp4) is the clip, a bare ID.mp4 the whole video", "auto")
    plan: Switch = PLAN


class VggsoundSettings(_Manifest):
    """VGGSound's csv and a folder of its clips"""

    csv: LocalPath = needed("as published: YouTube id, start, label, split")


class FolderSettings(_Manifest):
    """any folder of videos: AudioCaps, AVSync15, one's own"""

    test: Count = setting("move N clips of train to test", 0)
    recursive: Switch = setting("look into folders inside it", False)
    split: Text | None = setting(
        "of all clips, in letters, digits and _; default: what the captions say, or a folder named train, val or test, "
        "else train")
    captions: LocalPath | None = setting(
        ".csv or .tsv (cells parted by comma, semicolon or tab), .json (a list) or .jsonl, with the columns caption "
        "and file (or path, name, id, …), in capitals or not, or AudioCaps' csv; objects (a;b), label and split are "
        "read too")
    caption_from: Literal["folder", "name"] | None = setting(
        "the folder's name is label and caption (dog_barking: dog barking), or the file's name is the caption")
    same_content: Switch = setting("read files of equal size, and leave out copies", False)

    @classmethod
    def further_faults(cls, values: Mapping[str, Any]) -> Iterator[str]:
        if {"captions", "caption_from"} <= set(values):
            yield "--captions and --caption-from exclude each other: give the one that the captions are in"


MANIFEST: dict[str, type[Options]] = {"vggsound": VggsoundSettings, "folder": FolderSettings}


# ---------------------------------------------------------------------- data_prep/weights.py

class _Weights(Options):
    METAVARS: ClassVar[Mapping[str, str]] = {"names": "NAME", "parts": "FOLDER", "set": "KEY=NAME"}

    folder: LocalPath | None = setting("where they lie; default: $VTA_SAM_WEIGHTS, else weights/")


class ListSettings(_Weights):
    """what there is, and what of it lies in the folder"""


class FetchSettings(_Weights):
    """get what is missing; goes on where it broke off"""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("names",)
    names: Keys = needed("names and groups, as `list` shows them")
    again: Switch = setting("replace files that are wrong", False)
    plan: Switch = PLAN


class CheckWeightsSettings(_Weights):
    """compare sizes and checksums"""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("names",)
    names: Keys = setting("default: all that are there", ())


class RandomSettings(_Weights):
    """networks of random numbers in the same layout: they see nothing"""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("names",)
    names: Keys = needed("names and groups, as `list` shows them")
    folder: LocalPath = needed("where to write them; never the folder of released weights")
    narrow: Switch = setting("language models and CLIP of two thin layers", False)
    plan: Switch = PLAN


class ImportSettings(_Weights):
    """a released checkpoint into a model folder of ours"""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("checkpoint", "out")
    checkpoint: LocalPath = needed("audioldm-s-full.ckpt, or a folder of AudioLDM (diffusers), Tango or VTA-LDM")
    out: LocalPath = needed("the model folder to write")
    parts: list[LocalPath] = setting("where parts that it names may lie (a scheduler's numbers, an encoder), beside "
                                     "its own folder and that of released weights", [])
    set: list[Annotated[Text, AfterValidator(_pair)]] = setting(
        "a part under another name than the checkpoint gives it", [])
    plan: Switch = PLAN


WEIGHTS: dict[str, type[Options]] = {"list": ListSettings, "fetch": FetchSettings, "check": CheckWeightsSettings,
                                     "random": RandomSettings, "import": ImportSettings}


# ---------------------------------------------------------------------- experiments/listening_test.py

class MakeTestSettings(Options):
    """write the page for raters"""

    METAVARS: ClassVar[Mapping[str, str]] = {"systems": "DIR", "reference": "NAME", "out": "DIR", "videos": "DIR"}

    systems: LocalPath = needed("a folder of clips per system")
    reference: Text = setting("the true sounds: one of them, or any folder", "gt")
    out: LocalPath = needed("a new folder")
    videos: LocalPath | None = setting("the pictures; default: those of the reference")
    clips: Positive = setting("clips to be judged, evenly from all", 12)
    raters: Positive = setting("how many raters there may be", 20)
    per_rater: Positive | None = setting("systems' sounds for each rater; default: all")
    seed: Seed = setting("of orders and names", 0)
    title: Text = setting("heads the page; must not name the systems", "Listening test")
    keep_level: Switch = setting("don't bring sounds to one loudness", False)
    plan: Switch = PLAN


class AnalyseSettings(Options):
    """mean opinion scores of what raters sent"""

    METAVARS: ClassVar[Mapping[str, str]] = {"test": "DIR", "answers": "DIR", "out": "DIR", "most_reversed": "SHARE"}

    test: LocalPath = needed("the folder that `make` wrote")
    answers: LocalPath = needed("the folder of the raters' files")
    out: LocalPath = needed("results.json, scores.csv, scores.png")
    least_reference: Number = setting("leave out raters whose mean of the hidden reference is below this", 3.5)
    most_reversed: Share = setting("and those who put it below the anchor more often than this", 0.15)
    seed: Seed = setting("of the bootstrap", 0)
    plan: Switch = PLAN


LISTENING_TEST: dict[str, type[Options]] = {"make": MakeTestSettings, "analyse": AnalyseSettings}


# ---------------------------------------------------------------------- experiments/sweep.py

class MultirunSettings(Options):
    """a sweep's grid as a Hydra multirun; printed, and with --run started"""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("name",)
    name: Text = needed("of conf/sweep/<name>.yaml")
    runs: LocalPath | None = setting("folder of the runs; default: runs/<name>")
    run: Switch = setting("start it", False)


class ArraySettings(Options):
    """a sweep's grid as an array of jobs: SLURM's, or launcher=NAME's (docs/cluster.md)"""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("name",)
    REST: ClassVar[str | None] = "launcher.KEY=…"
    name: Text = needed("of conf/sweep/<name>.yaml")
    runs: LocalPath | None = setting("folder of the runs; default: runs/<name>")


class AgentsSettings(Options):
    """agents of a wandb sweep as an array of jobs, likewise"""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("sweep_id",)
    REST: ClassVar[str | None] = "launcher.KEY=…"
    sweep_id: Text = needed("as `wandb sweep` printed it: entity/project/id")
    count: Positive = needed("how many agents")
    runs_each: Positive = setting("runs after which an agent ends", 1)


class CollectSettings(Options):
    """finished runs as runs.csv and runs.png"""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("runs",)
    METAVARS: ClassVar[Mapping[str, str]] = {"out": "DIR"}
    runs: LocalPath = needed("folder of the runs")
    out: LocalPath | None = setting("folder to write to; default: the runs' own")
    plan: Switch = PLAN


SWEEP: dict[str, type[Options]] = {"multirun": MultirunSettings, "array": ArraySettings, "agents": AgentsSettings,
                                   "collect": CollectSettings}
