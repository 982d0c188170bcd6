# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that survive a crash at any moment and are read without running code.

A checkpoint holds `model` (the weights to use: the average where SOLVER.EMA is on), with EMA also
`training_model` (the raw weights) and `ema_updates`, then one entry a checkpointable, and
`iteration`. `model` alone is what Detectron2 and the tools read.
"""

import argparse
import logging
import os
import pickle
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from vastdet.engine.ema import WeightAverage
from vastdet.engine.safe_pickle import load_array_pickle, refusal
from vastdet.files import write_atomically

logger = logging.getLogger(__name__)

# A backbone file matches the detector it was made for nearly in full; a file of something else
# matches, by chance, a few names such as "fc.weight".
MIN_MATCHED_FRACTION = 0.1
# What torch refuses by itself and is no more than data: many trainings save their arguments.
INERT_CLASSES = [argparse.Namespace]
# Where Detectron2's detectors have their backbone, and the network below a feature pyramid.
BACKBONE, BELOW_PYRAMID = "backbone.", "backbone.bottom_up."


def read_weights(path: str) -> dict[str, Any]:
    """Read a weights file: .safetensors, .pkl of arrays, or .pth / .pyth / .bin of tensors.

    Returns a dict with "model" (name -> tensor or array) and whatever else the file holds. Raises
    ValueError when the file is damaged or holds objects that only an unsafe load could make.
    """
    try:
        if path.endswith(".safetensors"):
            return {"model": load_file(path)}
        if path.endswith(".pkl"):
            content = load_array_pickle(path)
        else:
            with torch.serialization.safe_globals(INERT_CLASSES):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        raise ValueError(refusal(path, error)) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a dict of weights.")
    return named_weights(path, content)


def named_weights(path: str, content: dict[str, Any]) -> dict[str, Any]:
    """Put the weights of a file under "model", whichever way its program names them."""
    if path.endswith(".pkl") and not ("model" in content and "__author__" in content):
        # Caffe2 and Detectron1: blobs, with the momentum of their optimiser.
        blobs = content.get("blobs", content)
        model = {k: v for k, v in blobs.items() if not k.endswith("_momentum")}
        return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}
    if path.endswith(".pyth") and "model_state" in content:
        # pycls.
        model = dict(content["model_state"])
        return {"model": model, "__author__": "pycls", "matching_heuristics": True}
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), dict):
            return {**content, "model": content[key]}
    return {"model": content}


def fit_pyramid(weights: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Rename a backbone's weights where the model has it below a feature pyramid, or no longer has.

    Args:
        weights: name -> tensor or array of a file.
        names: of the weights of the model.

    Returns the weights, with "backbone.X" as "backbone.bottom_up.X" or the other way round where
    the model lacks the first name and has the second.
    """
    renamed = {}
    for name in weights:
        if name in names or not name.startswith(BACKBONE):
            continue
        if name.startswith(BELOW_PYRAMID):
            other = BACKBONE + name.removeprefix(BELOW_PYRAMID)
        else:
            other = BELOW_PYRAMID + name.removeprefix(BACKBONE)
        if other in names and other not in weights:
            renamed[name] = other
    if renamed:
        name, other = next(iter(renamed.items()))
        logger.info("%d weights of the backbone renamed, as %s to %s", len(renamed), name, other)
    return {renamed.get(name, name): value for name, value in weights.items()}


def find_damage(path: str | Path) -> str | None:
    """What is wrong with a .pth file by its own checksums; None if nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        return str(error)
    return None if broken is None else f"wrong checksum of {broken}"


def check_exists(path: str) -> None:
    """Raise FileNotFoundError when a path of weights (empty: none) leads nowhere."""
    url = urlparse(path)
    if not path:
        return
    try:
        local = PathManager.get_local_path(url._replace(query="").geturl())
    except OSError as error:
        raise FileNotFoundError(
            f"The weights {path} could not be fetched ({error}). Download the file where there is "
            "a connection and set MODEL.WEIGHTS to its path, or to '' for random weights."
        ) from error
    if not os.path.isfile(local):
        raise FileNotFoundError(
            f"There are no weights at {path}; set MODEL.WEIGHTS to an existing file, or to '' for "
            "random weights."
        )


class VastdetCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with atomic writes, safe reads and recovery from damaged files."""

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        ema: WeightAverage | None = None,
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.ema = ema
        self.missing_keys: list[str] = []
        self._resuming = False

    def save(self, name: str, **kwargs: Any) -> None:
        """Write `name`.pth into the folder, then note it in `last_checkpoint`."""
        if not self.save_dir or not self.save_to_disk:
            return
        data: dict[str, Any] = {"model": self.model.state_dict()}
        if self.ema is not None:
            data["training_model"] = data["model"]
            data["model"] = self.ema.weights
            data["ema_updates"] = self.ema.num_updates
        for key, checkpointable in self.checkpointables.items():
            data[key] = checkpointable.state_dict()
        data.update(kwargs)
        path = Path(self.save_dir) / f"{name}.pth"
        # What a killed process left of this file.
        for partial in path.parent.glob(f".{path.name}.*"):
            partial.unlink()
        logger.info("Saving checkpoint to %s", path)
        write_atomically(path, lambda file: torch.save(data, file))
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note the newest checkpoint, atomically."""
        path = Path(self.save_dir) / "last_checkpoint"
        write_atomically(path, last_filename_basename.encode())

    def load(
        self, path: str, checkpointables: list[str] | None = None, *, complete: bool = False
    ) -> dict[str, Any]:
        """Load weights and, by default, every checkpointable that the file has.

        An empty path loads nothing. With `complete`, weights that the file lacks are an error.
        Raises FileNotFoundError for a missing file and ValueError for one that is damaged, unsafe
        or of another architecture. Returns what the file holds besides.
        """
        check_exists(path)
        self.missing_keys = []
        self._resuming = checkpointables is None and bool(self.checkpointables)
        try:
            rest = super().load(path, checkpointables)
        finally:
            self._parsed_url_during_load = None
        if complete and self.missing_keys:
            raise ValueError(
                f"{path} lacks {len(self.missing_keys)} of the weights of this "
                f"{type(self.model).__name__}, such as {self.missing_keys[0]}. Was it trained with "
                "the same config (--config-file) and the same number of classes?"
            )
        return rest

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resume from the newest good checkpoint of the folder, or load weights from `path`.

        Without `resume`, or with no checkpoint there, only weights are loaded. Raises ValueError
        when there are checkpoints but all are damaged.
        """
        if not (resume and self.has_checkpoint()):
            self._forget_earlier_run()
            return self.load(path, checkpointables=[])
        return self.load(self.newest_good_checkpoint(), complete=True)

    def _forget_earlier_run(self) -> None:
        """Keep a run that dies before its first checkpoint from resuming another's."""
        note = Path(self.save_dir) / "last_checkpoint"
        if self.save_dir and self.save_to_disk and note.exists():
            logger.warning(
                "%s holds checkpoints of an earlier run, which are not used.", note.parent
            )
            note.unlink()

    def has_checkpoint(self) -> bool:
        """Whether the folder holds any checkpoint, damaged or not."""
        return bool(self.checkpoints())

    def checkpoints(self) -> list[Path]:
        """The checkpoint files of the folder: the noted one first, the others newest first.

        Without a note there are none: files may be left from an earlier run.
        """
        noted = self.get_checkpoint_file() if self.save_dir else ""
        if not noted:
            return []
        files = list(Path(self.save_dir).glob("model_*.pth"))
        files.sort(key=lambda f: (str(f) == noted, f.stat().st_mtime, f.name), reverse=True)
        return files

    def newest_good_checkpoint(self) -> str:
        """The first undamaged file of `checkpoints`, the same for all processes."""
        chosen = comm.all_gather(self._first_undamaged() if comm.is_main_process() else None)[0]
        if chosen is None:
            raise ValueError(
                f"All checkpoints in {self.save_dir} are damaged. Start again without --resume, or "
                "from other weights with MODEL.WEIGHTS."
            )
        return chosen

    def _first_undamaged(self) -> str | None:
        for path in self.checkpoints():
            damage = find_damage(path)
            if damage is None:
                return str(path)
            logger.warning("Checkpoint %s is damaged (%s); trying an older one.", path, damage)
        return None

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = read_weights(filename)
        url = self._parsed_url_during_load
        if url is not None and "matching_heuristics=True" in url.query:
            content["matching_heuristics"] = True
        return content

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        weights = checkpoint["model"]
        num_in_file = len(weights)
        raw = checkpoint.pop("training_model", None)
        num_updates = checkpoint.pop("ema_updates", 0)
        resume_average = self._resuming and raw is not None
        if resume_average:
            checkpoint["model"] = raw
        checkpoint["model"] = fit_pyramid(checkpoint["model"], self.model.state_dict().keys())
        incompatible = super()._load_model(checkpoint)
        self.missing_keys = list(incompatible.missing_keys)
        self._check_architecture(num_in_file, incompatible)
        if self.ema is not None:
            self.ema.reset()
            if resume_average and not self.missing_keys:
                self.ema.load_state_dict({"weights": weights, "num_updates": num_updates})
        return incompatible

    def _check_architecture(self, num_in_file: int, incompatible: Any) -> None:
        # Old files lack the counters of batch normalisations, which torch forgives in silence.
        names = [k for k in self.model.state_dict() if not k.endswith("num_batches_tracked")]
        num_in_model = len(names)
        matched = len(set(names) - set(incompatible.missing_keys))
        if matched >= MIN_MATCHED_FRACTION * min(num_in_file, num_in_model):
            return
        examples = [*incompatible.unexpected_keys, *(k for k, *_ in incompatible.incorrect_shapes)]
        raise ValueError(
            f"These weights are not of this architecture: {matched} of the {num_in_model} weights "
            f"of the {type(self.model).__name__} were found in the file, which has "
            f"{', '.join(examples[:3])}, where the model has "
            f"{', '.join(incompatible.missing_keys[:3])}. Use the config that the weights were "
            "made with, or other weights (MODEL.WEIGHTS)."
        )
