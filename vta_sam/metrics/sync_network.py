"""A network that tells whether a sound is in step with pictures, and by how much it is not.

Pictures and sound become two tracks of vectors at 100 Hz. The sum of their products at a lag, over the time, is how
well they agree at that lag; a softmax over all lags and over "out of step at any" gives probabilities. Both tracks are
convolutions, so that a shifted sound has the same track, shifted.

In order: the network, what it answers, the draws and losses of its training (stage ``sync``), its figures on held-out
clips.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..clip import ClipFeatures, FrameClock
from ..media.audio import resample
from ..mel import FIGURES, FRAME_RATE_HZ, HOP_SAMPLES, LOG_FLOOR, N_MELS, SAMPLE_RATE_HZ, LogMel, normalise
from ..runtime.randomness import SampleDraws
from .intervals import wilson_interval
from .signal import Level

STEP_S = 1 / FRAME_RATE_HZ
MAX_LAG_STEPS = 60  # lags of 0.6 s either way
LAGS = 2 * MAX_LAG_STEPS + 1
IN_STEP_STEPS = 4  # a lag of 40 ms, half a frame of 12.5 a second, counts as in step
LEAST_STEPS = 2 * MAX_LAG_STEPS + 100  # a sound of which less than a second counts is not judged
MAX_SHIFT_STEPS = 52  # of sounds in training; the softmax's outer lags see no edge of them
RANGE_NATS = 6.9  # 60 dB; quieter bins count as silence, measured from a clip's loudest bin


class SyncNetwork(nn.Module):
    """Features of pictures, and log-mels of a sound ⇒ tracks, whose products tell how well they agree at each lag.

    Args:
        frame_dim: Dv of a frame's embedding.
        object_dim: De of an object's embedding.
        fps: frames a second.
        width: channels of the convolutions.
        dim: of the tracks' vectors.
        layers: convolutions over frames.
    """

    def __init__(self, frame_dim: int, object_dim: int, fps: float, width: int = 64, dim: int = 16, layers: int = 3):
        super().__init__()
        self.clock, self.dim = FrameClock(fps), dim
        self.frame_norm, self.object_norm = nn.LayerNorm(frame_dim), nn.LayerNorm(object_dim)
        self.enter = nn.Linear(frame_dim + object_dim, width)
        self.frames = nn.ModuleList([nn.Conv1d(width, width, 3, padding=1) for _ in range(layers)])
        self.frame_norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(layers)])
        self.sides = nn.Linear(width, 2 * width)  # of a step, the frame before it and the one after
        self.between = nn.Linear(4, width)  # of where between them it lies
        self.steps = nn.Sequential(nn.GELU(), nn.Conv1d(width, width, 5, padding=2), nn.GELU(),
                                   nn.Conv1d(width, dim, 5, padding=2))
        self.sounds = nn.Sequential(nn.Conv1d(N_MELS, width, 5, padding=2), nn.GELU(),
                                    nn.Conv1d(width, width, 5, padding=2), nn.GELU(),
                                    nn.Conv1d(width, dim, 5, padding=2))

    def pictures(self, frame_embedding: Tensor, probs: Tensor, object_embedding: Tensor, steps: int) -> Tensor:
        """⇒ the pictures' track (B, steps, dim).

        Args:
            frame_embedding: (B, T, Dv).
            probs: (B, T, K), 0 for padded objects.
            object_embedding: (B, K, De).
            steps: of the track, from time 0; step j is at j · 10 ms.
        """
        objects = probs @ self.object_norm(object_embedding)
        x = self.enter(torch.cat([self.frame_norm(frame_embedding), objects], dim=2))
        for norm, conv in zip(self.frame_norms, self.frames):
            x = x + F.gelu(conv(norm(x).transpose(1, 2))).transpose(1, 2)
        place = torch.arange(steps, device=x.device) * STEP_S * self.clock.fps - 0.5
        left = place.floor().clamp(0, max(x.shape[1] - 2, 0)).long()
        share = (place - left).clamp(0, 1)[:, None]
        before, after = self.sides(x).chunk(2, dim=2)
        right = (left + 1).clamp(max=x.shape[1] - 1)
        turns = torch.cat([f(turn * torch.pi * share) for turn in (1, 2) for f in (torch.sin, torch.cos)], dim=1)
        x = (1 - share) * before[:, left] + share * after[:, right] + self.between(turns)
        return self.steps(x.transpose(1, 2)).transpose(1, 2)

    def pictures_of(self, frame_embedding: np.ndarray, probs: np.ndarray, object_embedding: np.ndarray, steps: int,
                    ) -> Tensor:
        """⇒ the track (1, steps, dim) of one record's features (T, Dv), (T, K), (K, De)."""
        frames, present, objects = (torch.from_numpy(np.asarray(array, np.float32))[None].to(self.enter.weight.device)
                                    for array in (frame_embedding, probs, object_embedding))
        return self.pictures(frames, present, objects, steps)

    def sound(self, mel: Tensor) -> Tensor:
        """Log-mels (B, steps, 64) of normalised sounds ⇒ the sound's track (B, steps, dim)."""
        loudest = mel.amax((1, 2), keepdim=True).clamp_min(LOG_FLOOR + RANGE_NATS)
        level = ((mel - loudest) / RANGE_NATS + 1).clamp_min(0)
        return self.sounds(level.transpose(1, 2)).transpose(1, 2)


def lag_logits(pictures: Tensor, sound: Tensor, real: Tensor | None = None) -> Tensor:
    """Logits of every lag and, last, of none of them, of every pair ⇒ (B, C, 122). Lag −0.6 s comes first; a positive
    one is a late sound's.

    The first and the last 0.6 s of the pictures don't count, so that every lag is judged by the same pictures, and none
    by what lies beyond the sound's ends.

    Args:
        pictures: tracks (B, steps, dim).
        sound: tracks (C, steps, dim).
        real: (B,) steps before the padding; None: all.
    """
    steps = pictures.shape[1]
    places = torch.arange(steps, device=pictures.device)
    ends = torch.full((len(pictures),), steps, device=pictures.device) if real is None else real
    counted = (places >= MAX_LAG_STEPS) & (places < ends[:, None] - MAX_LAG_STEPS)
    size = steps + MAX_LAG_STEPS  # no lag wraps around then
    with torch.autocast(pictures.device.type, enabled=False):  # sums over hundreds of steps, and no FFT in bf16
        spectra = [torch.fft.rfft(track.float(), size, dim=1) for track in (pictures * counted[..., None], sound)]
        products = torch.einsum("bfd,cfd->bcf", spectra[0].conj(), spectra[1])
        agreement = torch.fft.irfft(products, size, dim=2).roll(MAX_LAG_STEPS, 2)[..., :LAGS] * STEP_S
        return F.pad(agreement, (0, 1))


@dataclass(frozen=True)
class SyncAnswer:
    """What a network says of a sound under pictures. log_probability: that it is in step within 40 ms. offset_s: the
    likeliest lag, positive where the sound is late."""

    log_probability: float
    offset_s: float

    @property
    def probability(self) -> float:
        return float(np.exp(self.log_probability))

    @property
    def distance_s(self) -> float:
        """The offset without its sign."""
        return abs(self.offset_s)


SILENCE = SyncAnswer(-np.inf, MAX_LAG_STEPS * STEP_S)  # it wins nothing


def answers(logits: Tensor) -> list[SyncAnswer]:
    """Logits (N, 122) ⇒ an answer of each row."""
    log = logits.log_softmax(dim=1)
    near = log[:, MAX_LAG_STEPS - IN_STEP_STEPS:MAX_LAG_STEPS + IN_STEP_STEPS + 1].logsumexp(dim=1)
    lags = log[:, :LAGS].argmax(dim=1) - MAX_LAG_STEPS
    return [SyncAnswer(p, lag * STEP_S) for p, lag in zip(near.tolist(), lags.tolist())]


def sync_answer(sound: np.ndarray, pictures: np.ndarray, level: Level) -> SyncAnswer | None:
    """⇒ the answer, over the steps that both tracks have; None where these are fewer than 2.2 s, of which 1.2 s don't
    count.

    Args:
        sound: its track (steps, dim).
        pictures: their track (steps, dim).
        level: of the sound; a silent one is never in step, and as far from it as can be.
    """
    steps = min(len(sound), len(pictures))
    if steps < LEAST_STEPS:
        return None
    if level.silent:
        return SILENCE
    tracks = (torch.from_numpy(track[None, :steps].astype(np.float32)) for track in (pictures, sound))
    with torch.inference_mode():
        return answers(lag_logits(*tracks)[0])[0]


def figures_mels(waveforms: Tensor, sample_rate_hz: int = SAMPLE_RATE_HZ) -> Tensor:
    """Waveforms (B, samples) of a rate ⇒ log-mels (B, steps, 64) of the normalised sounds, at 100 Hz."""
    if sample_rate_hz != SAMPLE_RATE_HZ:
        brought = [resample(waveform.cpu().numpy(), sample_rate_hz, SAMPLE_RATE_HZ) for waveform in waveforms]
        waveforms = torch.from_numpy(np.stack(brought)).to(waveforms.device)
    return LogMel(FIGURES).to(waveforms.device)(normalise(waveforms))[:, :-1]


# ---------------------------------------------------------------------- training

@dataclass(frozen=True)
class SyncDraws:
    """The random draws of a step.

    ``shift`` (B,): steps by which a sound is made late. ``filling`` (B,): what comes into the gap, 0 silence, 1 the
    sound's other end, 2 another clip's sound. And what generators and codecs do to a sound: ``tilt`` (B,) of its
    spectrum and ``grain`` (B, steps, 64), in nats; ``blurred`` (B,), whether it is.
    """

    def __call__(self, batch: Any) -> dict[str, Any]:
        draws, steps = SampleDraws(batch.seeds, "sync"), round(batch.spec.duration_s / STEP_S)
        return {"shift": draws.integer(2 * MAX_SHIFT_STEPS + 1) - MAX_SHIFT_STEPS, "filling": draws.integer(3),
                "tilt": draws.uniform() * 1.4 - 0.7, "blurred": draws.integer(4) == 0,
                "grain": draws.uniform(1, 1) * 0.5 * draws.normal(steps, N_MELS)}


def shifted(mels: Tensor, shift: Tensor, filling: Tensor) -> Tensor:
    """Log-mels (B, steps, 64), each as many steps later as ``shift`` (B,) says. filling: see :class:`SyncDraws`; the
    other clip is the one before in the batch.

    What fills the gap varies, since a network could else know a shifted sound by its edge.
    """
    steps = mels.shape[1]
    places = torch.arange(steps, device=mels.device) - shift[:, None]
    inside, wrapped = (places >= 0) & (places < steps), (places % steps)[..., None].expand_as(mels)
    rolled, others = mels.gather(1, wrapped), mels.roll(1, 0).gather(1, wrapped)
    kind = filling[:, None, None]
    gap = torch.where(kind == 0, LOG_FLOOR, torch.where(kind == 1, rolled, others))
    return torch.where(inside[..., None], rolled, gap)


def sync_losses(logits: Tensor, shift: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of a clip's own sound with its true lag, and of other clips' with "at no lag" ⇒ two scalars.

    Args:
        logits: (B, B, 122), of each clip's pictures with each clip's sound.
        shift: (B,) true lags in steps.
        others: (B, B), where a sound is another clip's.
    """
    log = logits.log_softmax(dim=2)
    lags = torch.arange(-MAX_LAG_STEPS, MAX_LAG_STEPS + 1, device=log.device)
    near = (-0.5 * (lags - shift[:, None]) ** 2).softmax(dim=1)  # a step either way is not wrong
    own = -(log.diagonal().T[:, :LAGS] * near).sum(dim=1).mean()
    return own, -(log[..., LAGS] * others).sum() / others.sum().clamp(min=1)


def degraded(mels: Tensor, draws: dict[str, Tensor]) -> Tensor:
    """Log-mels (B, steps, 64) with a tilted spectrum, grain and, some of them, blur. draws: see :class:`SyncDraws`."""
    across = torch.linspace(0, torch.pi, mels.shape[2], device=mels.device).cos()
    blurred = F.avg_pool2d(mels[:, None], 3, 1, 1, count_include_pad=False)[:, 0]
    mels = torch.where(draws["blurred"][:, None, None], blurred, mels) + draws["tilt"][:, None, None] * across
    return mels + draws["grain"][:, :mels.shape[1]]


# ---------------------------------------------------------------------- figures

SHIFTS_S = (0.02, 0.05, 0.1, 0.2, 0.5)


def pair_figures(network: SyncNetwork, clips: Iterable[ClipFeatures], shifts_s: Sequence[float] = SHIFTS_S,
                 ) -> dict[str, Any]:
    """Accuracies on held-out clips, by name, each with n and Wilson's 95 % interval.

    ``right_<ms>``: share of pairs of sounds, one in step and one shifted either way, of which the one in step has the
    higher probability. ``lag_found``: share of all these sounds whose lag is found within 40 ms. ``others_rejected``:
    share of other clips' sounds that are less likely than not in step. Sounds are cut out of the clip's, so that each
    is real from end to end; clips of less than 3.2 s are left out.

    Args:
        network: trained.
        clips: with sound.
        shifts_s: seconds.
    """
    right: dict[str, list[bool]] = {f"right_{round(shift * 1000)}_ms": [] for shift in shifts_s}
    found: list[bool] = []
    rejected: list[bool] = []
    lags = [0.0, *(turn * shift for shift in shifts_s for turn in (1, -1))]
    before: Tensor | None = None
    for clip in clips:
        cut = _cut(network, clip, lags)
        if cut is None:
            continue
        pictures, sounds = cut
        in_step, *others = answers(lag_logits(pictures, sounds)[0])
        for i, name in enumerate(right):
            right[name] += [in_step.log_probability > other.log_probability for other in others[2 * i:2 * i + 2]]
        found += [abs(answer.offset_s - lag) < (IN_STEP_STEPS + 0.5) * STEP_S
                  for answer, lag in zip([in_step, *others], lags)]
        if before is not None and before.shape[1] == pictures.shape[1]:
            rejected += [answer.probability < 0.5 for answer in answers(lag_logits(pictures, before)[0])]
        before = sounds[:1]
    return {name: share_figure(values) for name, values in
            {**right, "lag_found": found, "others_rejected": rejected}.items()}


@torch.inference_mode()
def _cut(network: SyncNetwork, clip: ClipFeatures, lags: Sequence[float]) -> tuple[Tensor, Tensor] | None:
    """⇒ tracks (1, steps, dim) of the inner pictures of a clip and (lags, steps, dim) of the clip's sound, made so many
    seconds late; None of a clip that is too short."""
    edge = int(np.ceil(max(lags) * network.clock.fps))
    frames, begin_s = len(clip.frame_embedding) - 2 * edge, edge / network.clock.fps
    waveform = resample(clip.waveform, clip.sample_rate_hz, SAMPLE_RATE_HZ)
    end_s = min(begin_s + frames / network.clock.fps, len(waveform) / SAMPLE_RATE_HZ + min(lags))
    steps = int((end_s - begin_s) / STEP_S + 1e-6)
    if steps < LEAST_STEPS:
        return None
    starts = [round((begin_s - lag) * SAMPLE_RATE_HZ) for lag in lags]
    sounds = np.stack([waveform[start:start + steps * HOP_SAMPLES] for start in starts])
    inner = slice(edge, edge + frames)
    pictures = network.pictures_of(clip.frame_embedding[inner], clip.probs[inner], clip.object_embedding, steps)
    return pictures, network.sound(figures_mels(torch.from_numpy(sounds)))


def share_figure(values: Sequence[bool]) -> dict[str, Any]:
    """⇒ a share, its Wilson 95 % interval and n, in JSON's types."""
    if not len(values):
        return {"share": None, "low": None, "high": None, "n": 0}
    share = float(np.mean(values))
    low, high = wilson_interval(share, len(values))
    return {"share": round(share, 4), "low": round(low, 4), "high": round(high, 4), "n": len(values)}
