"""Settings of every program, one class a program and one field a setting: type, range, default, meaning.

conf/<program>.yaml holds the same keys with the same defaults (a test compares them). Checks, ``--help`` and the JSON
schemas follow from the fields (:mod:`vta_sam.runtime.typed_settings`). Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from ..runtime.typed_settings import (
    Count, Folders, Keys, LocalPath, Name, Number, Place, Places, Positive, Seconds, Section, Seed, Settings, Share,
    Switch, Text, Whole, Words, setting,
)
from .blocks import (
    AugmentBlock, ClipBlock, CodecPart, ConditionerPart, DenoiserPart, FiguresBlock, LoggerPart, NetworksBlock,
    OverfitBlock, Part, StageBlock, StudyBlock, ValidationBlock, as_given, train_faults,
)

MAX_WORDS = 8
RUN_FOLDER = ("runs", "exp", "seed", "name")  # the settings that name a training run's folder

_DEVICE = "cpu, cuda, cuda:1, …; auto: cuda where there is one"
_SOUND = "which of a video's sounds, by its language as tagged (ger) or its number from 0; null: what players play"
_THREADS = "processor threads of torch; null: torch's choice"


PLAN = setting("say what would be written, and stop", False)


def require(settings: Settings, **meanings: str) -> None:
    """Raise ValueError, with all of them, where a setting is None that has to be given."""
    missing = [f"{name}= is missing; it names {meaning}" for name, meaning in meanings.items()
               if getattr(settings, name) is None]
    if missing:
        raise ValueError("; ".join(missing) + ". --help shows all keys")


class GroupSettings(Settings):
    """Programs whose config has groups, such as grounder=NAME."""

    @classmethod
    def help_sections(cls, conf: Path, config_name: str, topic: str) -> Iterator[Section]:
        from .pages import Configs, help_sections

        return help_sections(cls, Configs(conf, config_name), topic)


class SharedWork(GroupSettings):
    """Programs that part their work among processes."""

    rank: Count | None = setting("this process's share, from 0; null: as torchrun or srun started it")
    world: Positive | None = setting("processes that part the work; null: likewise")
    consecutive: Switch = setting("the share is a run of shards (of clips, in generate); false: every world-th", False)

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.rank is None) != (self.world is None):
            raise ValueError(f"rank={self.rank} world={self.world}: give both, or neither where torchrun or srun "
                             "starts the program")
        if self.rank is not None and self.world is not None and self.rank >= self.world:
            raise ValueError(f"rank={self.rank} of world={self.world}: ranks go from 0 to world - 1")
        return self


class GenerateSettings(SharedWork):
    """experiments/generate.py"""

    plan: Switch = PLAN
    model: LocalPath | None = setting("model folder, or a released model by name: vta_ldm, tango; null: the newest one "
                                      "under runs/")
    out: LocalPath = setting("folder to write to; what is finished there is kept", "generated")
    device: Text = setting(_DEVICE, "auto")
    threads: Positive | None = setting(_THREADS)
    video: LocalPath | None = setting("a video file, or a folder of them")
    caption: Text | None = setting("its nouns are looked for in the pictures")
    objects: Words | None = setting("up to 8 words in place of the caption's nouns; []: the pictures alone")
    negative_caption: Text | None = setting("what it should not sound like")
    negative_objects: Words | None = setting("likewise, as words")
    mix: Annotated[Number, Field(ge=0, le=1)] = setting("gain of the video's own sound beside the generated one", 0.0)
    sound: Text | None = setting(_SOUND)
    keep_location: Switch = setting("keep where the video was filmed, which is left out else", False)
    wav: Switch = setting("also write the generated sound alone", False)
    picture: Switch = setting("also draw frames, object probabilities and spectrogram", True)
    overwrite: Switch = setting("make again what is there", False)
    limit_s: Annotated[Number, Field(ge=0.1)] = setting(
        "seconds after which reading or writing a video is given up; a video gets as many again for each 10 s of it",
        60)
    memory_mb: Annotated[Whole, Field(ge=256)] = setting("MB of memory that reading or writing a video may take", 4096)
    shards: Place | None = setting("folder or address of a dataset that data_prep/extract.py made")
    split: Text = setting("of that dataset", "test")
    samples: Positive = setting("sounds a clip of the dataset", 1)
    batch_size: Positive = setting("clips at once", 16)
    seed: Seed = setting("same seed, same sound", 0)
    guidance: Annotated[Number, Field(ge=0, le=100)] | None = setting("classifier-free guidance scale; null: the "
                                                                      "model's")
    steps: Annotated[Whole, Field(ge=1, le=1000)] | None = setting("of the sampler; null: the model's")
    solver: Text | None = setting("dpm or ddpm; null: the model's")
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "number format of the networks; auto: bf16 on a GPU, but for released models, else fp32", "auto")
    overlap: Annotated[Number, Field(ge=0, le=0.95)] | None = setting(
        "of neighbouring windows of a long video, as a share of a window; null: the model's (0.25)")

    @property
    def caption_alone(self) -> bool:
        """Whether a sound is asked for that follows a caption, without pictures."""
        return bool(self.caption) and self.video is None and self.shards is None

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if (self.video is None) == (self.shards is None) and not self.caption_alone:
            raise ValueError("name what to generate for: video=FILE, video=FOLDER, shards=FOLDER of a dataset, or with "
                             "a model that reads captions alone caption=WORDS")
        words = ("caption", "objects", "negative_caption", "negative_objects")
        if self.shards is not None and any(getattr(self, name) is not None for name in words):
            raise ValueError(f"{', '.join(words)} go with video=; a dataset has captions and objects of its own")
        for name in ("objects", "negative_objects"):
            if len(found := getattr(self, name) or ()) > MAX_WORDS:
                raise ValueError(f"{name}: {len(found)} are named, at most {MAX_WORDS} can be; leave some out")
        if self.sound is not None and not self.mix:
            raise ValueError("sound= names the sound that mix= adds; give mix= too")
        if self.model is not None and self.model.suffix == ".yaml":
            raise ValueError(f"model={self.model}: name its folder")
        return self


class ExtractSettings(SharedWork):
    """data_prep/extract.py"""

    NESTED_TEXT: ClassVar[tuple[str, ...]] = ("grounder.weights", "encoder.weights", "encoder.folder")

    plan: Switch = PLAN
    grounder: Part = setting("finds objects in frames: tiny, oracle, grounded_sam, grounded_sam2, owlv2, none; its "
                             "settings: grounder.KEY=")
    encoder: Part = setting("embeds frames, words and captions: tiny, oracle, clip, siglip; its settings: encoder.KEY=")
    videos: LocalPath | None = setting("folder of the videos")
    manifest: LocalPath | None = setting("csv of the clips; by default manifest.csv in videos=")
    out: LocalPath | None = setting("folder of the shards")
    features: Part = setting("further features per frame, by name: recipes of their extractors", {})
    fps: Annotated[Number, Field(ge=0.01, le=1000)] = setting("frames a second that are extracted", 12.5)
    sample_rate_hz: Annotated[Whole, Field(ge=1000, le=384_000)] = setting("of the sound", 16_000)
    sound: Text | None = setting(_SOUND)
    shard_size: Positive = setting("clips a shard: at most so many are lost by a kill", 64)
    workers: Positive | None = setting("decoding processes; null: one for each core of this process, 8 at most")
    chunk_frames: Positive = setting("frames that travel, and that the extractors get, at once", 32)
    limit_s: Annotated[Number, Field(ge=0.1)] = setting("seconds after which a clip's decoding is given up", 60)
    memory_mb: Annotated[Whole, Field(ge=256)] = setting("MB of memory that a clip's decoding may take", 4096)
    retry_failed: Switch = setting("try again what earlier runs listed as failed", False)
    most_faults: Positive = setting("unexpected faults of so many clips in a row end the run", 20)
    commit_mostly_failed: Switch = setting("write a shard although more than half of its clips failed", False)
    hwaccel: Text | None = setting("null: software; or a kind of device that decodes, by FFmpeg's name: cuda, vaapi, …")

    @model_validator(mode="after")
    def _folders(self) -> Self:
        require(self, videos="the folder of the videos", out="the folder of the shards")
        return self


class EncodeSettings(SharedWork):
    """data_prep/encode_latents.py"""

    plan: Switch = PLAN
    vae: LocalPath | None = setting("model folder of stage 1 or 3")
    shards: Place | None = setting("folder with dataset.json, or its address")
    out: LocalPath | None = setting("local folder for latent shards; null: beside the shards")
    device: Text = setting(_DEVICE, "auto")
    threads: Positive | None = setting(_THREADS)

    @model_validator(mode="after")
    def _folders(self) -> Self:
        require(self, vae="the model folder of a VAE", shards="a dataset's folder or URL")
        return self


class CheckSettings(GroupSettings):
    """data_prep/check.py"""

    plan: Switch = PLAN
    shards: Places | None = setting("folder or address of the shards; several are also compared: [a, b]")
    out: LocalPath | None = setting("folder of statistics.json, statistics.png, faults.jsonl and overlays/; null: "
                                    "check/ in a local folder of shards, else check/ here")
    seen: Share = setting("an object whose probability is never above this in a clip was not seen there", 0.3)
    videos: LocalPath | None = setting("folder of the videos, for overlays")
    overlay: Count = setting("films of the first so many clips with their grounding drawn over them", 0)
    keys: Keys | None = setting("ids of the clips to make films of, in place of the first")
    shown: Annotated[Number, Field(ge=0, le=1)] = setting("probability from which on boxes and masks are drawn", 0.3)
    grounder: Part = setting("for masks=true: the one that the shards were made with")
    masks: Switch = setting("ask the grounder for the masks again, since shards hold their areas alone", False)

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        require(self, shards="a folder that data_prep/extract.py wrote")
        if (self.overlay or self.keys or self.masks) and len(self.shards or ()) > 1:
            raise ValueError("films are drawn of one dataset: name one in shards=")
        if (self.overlay or self.keys) and self.videos is None:
            raise ValueError("videos= is missing; overlays are drawn over the videos that the shards were made from")
        if self.masks and self.grounder is None:
            raise ValueError("masks=true needs a grounder, the one that the shards were made with: grounder=tiny, …")
        return self


class SynthesizeSettings(Settings):
    """data_prep/synthesize.py"""

    plan: Switch = PLAN
    out: LocalPath = setting("folder of the world", "data/embedded")
    train: Count = setting("clips; those already there are kept", 1024)
    val: Count = setting("likewise", 64)
    test: Count = setting("likewise", 128)
    seed: Seed = setting("same seed, same bytes", 0)
    workers: Positive = setting("processes; about 0.15 s a clip each", 2)
    statistics: Switch = setting("write nothing, print the statistics of the world in out", False)


class MeasureSettings(Settings):
    """What evaluate.py and compare.py share: conf/evaluation/default.yaml."""

    plan: Switch = PLAN
    videos: LocalPath | None = setting("folder of the pictures, for AV-Align; null: the reference's own")
    ids: LocalPath | None = setting("csv with a column id: the clips, in place of all of the reference")
    split: Text | None = setting("of the csv in ids=: the rows whose column split says this")
    captions: LocalPath | None = setting("csv with id, label, caption, objects; null: captions.csv beside reference")
    skip_bad: Switch = setting("leave out, list and count what can't be used", False)
    clip_s: Seconds | None = setting("seconds from the start that count; null: all of the true sound")
    lowest_rate_hz: Annotated[Number, Field(ge=1)] = setting("files sampled below this are refused", 16_000)
    shortest_s: Seconds = setting("seconds", 0.5)
    longest_s: Seconds = setting("seconds", 600)
    backbones: Keys = setting("networks behind figures of sets and classes", ("tiny", "vggish", "panns_16k", "clap"))
    weights: LocalPath | None = setting("folder of their weights; null: $VTA_SAM_WEIGHTS, else weights/")
    metrics: Literal["standard", "all"] = setting("all: also slow or misleading published forms", "standard")
    flow: Literal["none", "full", "fast", "both"] = setting("optical flow of AV-Align", "full")
    shards: LocalPath | None = setting("dataset of the clips: features for the sync network, timelines for compare")
    sync: LocalPath | None = setting("model folder of a sync network; null: the shipped one, of the embedded world")
    ceiling: LocalPath | None = setting("model folder: the true sound through its VAE and vocoder is scored too")
    seed: Seed = setting("of bootstrap and control", 0)
    resamples: Annotated[Whole, Field(ge=100)] = setting("bootstrap over clips", 2000)
    set_resamples: Annotated[Whole, Field(ge=20)] = setting("of figures about whole sets", 200)
    cache: LocalPath | None = setting("measured features by content; null: none", "out/evaluation_cache")
    workers: Count = setting("processes that decode and measure; 0: this one, unguarded", 2)
    limit_s: Annotated[Number, Field(ge=1)] = setting("seconds a sound file may take", 60)
    flow_limit_s: Annotated[Number, Field(ge=1)] = setting("seconds a video's optical flow may take", 900)
    memory_mb: Annotated[Whole, Field(ge=512)] = setting("MiB a process may use", 4096)
    batch_size: Positive = setting("sounds at once in a backbone", 16)
    device: Text = setting(_DEVICE, "auto")
    threads: Positive | None = setting(_THREADS)


class EvaluateSettings(MeasureSettings):
    """experiments/evaluate.py"""

    generated: Folders | None = setting("folder of sounds or videos, or several")
    reference: LocalPath | None = setting("folder of the true sounds, or of the videos that have them")
    sound: Text | None = setting(f"of the true videos: {_SOUND}")
    out: LocalPath = setting("folder of evaluation.json, clips.csv and figures.png", "evaluation")

    @model_validator(mode="after")
    def _folders(self) -> Self:
        require(self, generated="a folder of sounds", reference="a folder of sounds")
        return self


class CompareSettings(MeasureSettings):
    """experiments/compare.py"""

    systems: Folders | None = setting("a folder with one folder of clips per system, or {name: folder, …}")
    reference: LocalPath = setting("of the true sounds: a folder in systems=, or any other", "gt")
    out: LocalPath = setting("folder of page/index.html, evaluation.json, clips.csv and figures.png", "comparison")
    title: Text = setting("heads the page", "Video-to-audio generation")
    note: Text = setting("a sentence under it", "")

    @model_validator(mode="after")
    def _folders(self) -> Self:
        require(self, systems="a folder with one folder of clips per system, or is {name: folder, …}")
        return self


class MetersSettings(MeasureSettings):
    """experiments/meters.py"""

    reference: LocalPath = setting("true videos or sounds; embedded: the embedded world, made by seed=", "embedded")
    clips: Annotated[Whole, Field(ge=2)] = setting("of the embedded world", 128)
    faults: Keys = setting("shift, jitter, speed, removed, added, exchanged, low-passed, noisy; []: all", ())
    carrier: Literal["griffin_lim", "none"] = setting(
        "both sides go through mel and vocoder; none: the sound in step is the true file itself", "griffin_lim")
    sound: Text | None = setting(f"of the true videos: {_SOUND}")
    out: LocalPath = setting("folder of meters.json, meters.png and the sounds, which are kept", "meters")
    docs: Switch = setting("write the table into docs/evaluation.md too", False)


class StudySettings(GroupSettings):
    """experiments/study.py"""

    plan: Switch = PLAN
    study: StudyBlock | None = setting("rows and tables: conf/study/<name>.yaml")
    only: Keys = setting("rows (row or table/row) to run; []: all", ())
    seeds: list[Seed] | None = setting("in place of the study's own")
    records: LocalPath = setting("folder of one json per row and seed", "docs/results")
    cache: LocalPath | None = setting("measured features by content; null: none", "out/evaluation_cache")
    jobs: Positive = setting("rows at a time, which share the processor's cores", 1)
    beside: Count = setting("for the record: other rows that run at the same time", 0)


class TrainSettings(GroupSettings):
    """experiments/train.py and overfit.py. Further keys of a file of one's own are for its ``${…}`` to refer to, or
    stand in place of a stage of one's own."""

    model_config = {**Settings.model_config, "extra": "allow"}

    plan: Switch = PLAN
    exp: Name = setting("first word of the run's name; +exp=NAME sets it", "vta_sam")
    stages: Keys = setting("what is trained, in this order", ("vae", "condition", "diffusion", "figures"))
    seed: Seed = setting("of weights, order and every draw", 0)
    runs: Place = setting("a run is written to <runs>/<exp>-<seed>[-<name>]", "runs")
    name: Text | None = setting("tells runs of one experiment and seed apart")
    overwrite: Switch = setting("make again what changed, and what was built on it", False)
    threads: Positive | None = setting(_THREADS)
    freeze: Switch = setting("keep the pretrained parts of the conditioner as they are in stage diffusion", False)
    vae: Place | None = setting("a trained VAE in place of stage vae; audioldm: the released one")
    condition: Place | None = setting("VTA-SAM, VTA-LDM: a pretrained condition encoder")
    contrastive: Place | None = setting("Diff-Foley: a contrastive audio-visual encoder")
    classifier: Place | None = setting("Diff-Foley: an alignment classifier")
    onsets: Place | None = setting("FoleyCrafter: an onset predictor")
    init: Place | None = setting("denoiser and conditioner to start stage diffusion from; vta_ldm, tango")
    vocoder_from: Place | None = setting("a vocoder with weights; null: that of vae=")
    model: Place | None = setting("a finished model to measure (with stages=[figures])")
    dropout: Share = setting("share of samples that train the null", 0.1)

    data: Part = setting("where clips come from: embedded, shards; its settings: data.KEY=")
    denoiser: DenoiserPart = setting("another network than the size's UNet, networks.unet")
    conditioner: ConditionerPart = setting("the denoiser's condition")
    objective: Part = setting("the denoiser's target: v_prediction, epsilon_prediction, x0_prediction")
    sampler: Part = setting("how validation and the model folder sample: dpm")
    vocoder: CodecPart = setting("another than the size's: griffin_lim, hifigan")
    grounder: Part = setting("finds objects in frames: tiny, oracle, grounded_sam, grounded_sam2, owlv2, none; null: "
                             "data= chooses")
    encoder: Part = setting("embeds frames, words and captions: tiny, oracle, clip, siglip; null: data= chooses")
    logger: LoggerPart = setting("where the curves of training are kept; always as csv too")
    clip: ClipBlock | None = setting("rates and durations of a clip")
    networks: NetworksBlock | None = setting("sizes of the networks")
    fit: dict[str, StageBlock] = setting("numbers of each stage", {})
    augment: AugmentBlock | None = setting("what training hides from the condition")
    validation: ValidationBlock | None = setting("what is sampled while stage diffusion trains")
    figures: FiguresBlock | None = setting("what stage figures measures")
    embedded_clips: dict[Literal["train", "val", "test"], Count] | None = setting("clips of data=embedded, by split")
    embedded_expected_s: Annotated[Number, Field(ge=0)] | None = setting(
        "seconds that making them took elsewhere: their share of a job; 0: not known")
    overfit: OverfitBlock | None = setting("clips of overfit.py; +exp=overfit has it")
    _given: dict[str, Any] = PrivateAttr(default_factory=dict)

    GROUPS: ClassVar[Mapping[str, str]] = {
        "+exp": "the experiment: what is trained, with which condition",
        "size": "numbers of every stage",
        "+ablation": "one thing changed: +ablation/GROUP=NAME",
        "+strategy": "how several processes share stage diffusion",
    }
    INTERPOLATED: ClassVar[tuple[str, ...]] = ("name",)  # such as ${hydra:job.override_dirname}
    # paths inside groups, which leave the command line as typed too
    NESTED_TEXT: ClassVar[tuple[str, ...]] = (
        "data.root", "data.videos", "data.latents", "data.cache", "grounder.weights", "encoder.weights",
        "encoder.folder", "overfit.videos", "overfit.captions", "overfit.out")
    SWEPT_TEXT: ClassVar[tuple[str, ...]] = (
        "runs", "name", "vae", "condition", "contrastive", "classifier", "onsets", "init", "vocoder_from", "model",
        *NESTED_TEXT)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """See :meth:`Settings.of`; :meth:`plain` has nested values as ``values`` has them."""
        found = super().of(values)
        found._given.update(values)
        return found

    @classmethod
    def further_faults(cls, values: Mapping[str, Any]) -> Iterator[str]:
        return train_faults(values, cls.model_fields)

    def plain(self) -> dict[str, Any]:
        """All values as a config has them: paths are texts, names are lists, and blocks have no keys but the given
        ones, since a run's folder keeps them and refuses others."""
        right = self.model_dump(exclude_unset=True)
        values = {key: value for key, value in self.model_dump().items() if value is not None or key in right}
        values |= {key: as_given(value, right[key]) for key, value in self._given.items() if key in right}
        return {key: str(value) if isinstance(value, PurePath) else list(value) if isinstance(value, tuple) else value
                for key, value in values.items()}


class TrainTinySettings(GroupSettings):
    """experiments/train_tiny.py"""

    plan: Switch = PLAN
    model: Literal["trunk", "tagger", "detector"] = setting(
        "trunk: image trunk with words; tagger: sound classes; detector: sound events", "trunk")
    figures: Switch = setting("measure the weights that are there, train nothing", False)
    threads: Positive = setting("processor threads of torch", 2)
    trunk: Part = setting("the trunk's recipe: trunk.KEY=")
    tagger: Part = setting("the tagger's recipe: tagger.KEY=")
    detector: Part = setting("the detector's recipe: detector.KEY=")
