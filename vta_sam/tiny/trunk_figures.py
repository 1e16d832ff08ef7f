"""Held-out figures of a trunk: how well it finds, outlines, and describes what is in pictures it never saw."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import average_precision_score, r2_score

from ..scenes.classes import LOOK_ALIKES, WORDS
from .pictures import LOOK_ALIKE_WORDS, Pictures
from .trunk import Trunk

CALIBRATION_BINS = 10
PROBE_FOLDS = 5
PROBE_PENALTY = 10.0  # of the ridge


def trunk_figures(trunk: Trunk, pictures: Pictures) -> dict:
    """Figures by name, plain numbers and dicts of them by word.

    presence_ap: average precision over all (picture, word) pairs, for all ten words asked of every picture.
    presence_ap_beside_look_alike: the same over the pairs in whose picture the word's look-alike stands.
    presence_calibration_error: mean of |predicted - true share| over ten bins of probability, weighted by size.
    mask_iou: mean intersection over union of the mask (heat above one half) and the true one on 24 × 32 cells, over
    visible things. pose_r2, acting_ap: linear probes of the picture's vector, each clip told by a probe that was fitted
    on other clips: R² of the pose where the word is visible, average precision of "pose > 0.5" over all pictures. The
    few dozen clips that hold a word are few for 64 dimensions, so these are lower bounds.
    """
    probs, iou, vectors = _look(trunk, pictures)
    visible = pictures.visible.numpy()
    doubles = pictures.look_alikes.numpy()
    doubled = np.zeros_like(visible)
    for column, word in enumerate(LOOK_ALIKE_WORDS):
        doubled[:, WORDS.index(LOOK_ALIKES[word])] = doubles[:, column]
    pose = _probe_pose(vectors, pictures)
    shown = [row for row in range(len(WORDS)) if visible[:, row].any()]
    return {
        "pictures": len(pictures),
        "clips": int(pictures.clip.unique().numel()),
        "pictures_with_look_alike": round(float(doubles.any(1).mean()), 4),
        "presence_ap": _rounded(average_precision_score(visible.ravel(), probs.ravel())),
        "presence_ap_beside_look_alike": _rounded(average_precision_score(visible[doubled], probs[doubled])),
        "presence_calibration_error": _rounded(calibration_error(probs, visible)),
        "mask_iou": _rounded(np.nanmean(iou)),
        "pose_r2": _rounded(np.mean(list(pose["r2"].values()))),
        "acting_ap": _rounded(np.mean(list(pose["ap"].values()))),
        "presence_ap_by_word": {
            WORDS[r]: _rounded(average_precision_score(visible[:, r], probs[:, r])) for r in shown
        },
        "mask_iou_by_word": {WORDS[r]: _rounded(np.nanmean(iou[:, r])) for r in shown},
        "pose_r2_by_word": pose["r2"],
        "acting_ap_by_word": pose["ap"],
    }


@torch.inference_mode()
def _look(trunk: Trunk, pictures: Pictures) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """⇒ probs (N, W), IoU (N, W) with NaN where nothing is visible, vectors (N, Dv)."""
    probs, overlaps, vectors = [], [], []
    for start in range(0, len(pictures), 64):
        part = pictures[torch.arange(start, min(start + 64, len(pictures)))]
        sight = trunk(part.frames)
        masks, found = part.unpacked_masks().bool(), sight.heat > 0
        union = (masks | found).sum((2, 3))
        overlap = (masks & found).sum((2, 3)) / union.clamp_min(1)
        overlap[~part.visible | (masks.sum((2, 3)) == 0)] = torch.nan
        probs.append(sight.presence.sigmoid())
        overlaps.append(overlap)
        vectors.append(sight.embedding)
    return torch.cat(probs).numpy(), torch.cat(overlaps).numpy(), torch.cat(vectors).numpy()


def calibration_error(probs: np.ndarray, truth: np.ndarray) -> float:
    """Expected calibration error (Guo et al., 2017) of probabilities against truth, both of any one shape."""
    probs, truth = probs.ravel(), truth.ravel().astype(float)
    bins = np.minimum((probs * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    sizes = np.bincount(bins, minlength=CALIBRATION_BINS)
    gaps = np.abs(np.bincount(bins, probs - truth, minlength=CALIBRATION_BINS))
    return float(gaps.sum() / sizes.sum())


def _probe_pose(vectors: np.ndarray, pictures: Pictures) -> dict[str, dict[str, float]]:
    fold = pictures.clip.numpy() % PROBE_FOLDS
    visible, pose = pictures.visible.numpy(), pictures.pose.numpy()
    r2, ap = {}, {}
    for row, word in enumerate(WORDS):
        acting = pose[:, row] > 0.5
        if min(acting[fold != held].sum() for held in range(PROBE_FOLDS)) < 2:
            continue  # too few clips of this word to say anything
        told, score = np.zeros(len(vectors)), np.zeros(len(vectors))
        for held in range(PROBE_FOLDS):
            fit, there = fold != held, visible[:, row]
            line = Ridge(PROBE_PENALTY).fit(vectors[fit & there], pose[fit & there, row])
            told[~fit] = line.predict(vectors[~fit])
            score[~fit] = Ridge(PROBE_PENALTY).fit(vectors[fit], acting[fit]).predict(vectors[~fit])
        r2[word] = _rounded(r2_score(pose[visible[:, row], row], told[visible[:, row]]))
        ap[word] = _rounded(average_precision_score(acting, score))
    return {"r2": r2, "ap": ap}


def _rounded(x: float | np.floating) -> float:
    return round(float(x), 4)
