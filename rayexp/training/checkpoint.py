"""Checkpoints: tensors by name in a folder. All ranks write and read it together, each its own shards of tensors.

Files are safetensors, so that reading them can't run code; torch's usual format keeps an index that can. The number of
ranks that read may differ from the number that wrote. It is an argument, not taken from the process group, because a
learner may share that with its samplers, which take no part in checkpoints. ``export`` turns such a folder into one
that stock tools load.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed
from transformers import PreTrainedModel

from rayexp.errors import PermanentError
from rayexp.models import io
from rayexp.tasks import Vocabulary
from rayexp.training.trainer import WEIGHTS

# torch warns at each call if there is one process, as is usual here.
warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)

#: Folder with the state of a trainer, in a checkpoint or in an artifact that another stage continues.
TRAINER = "trainer"
#: Largest file of a model that is exported; the usual one.
FILE_SIZE = "5GB"


def save(tensors: Mapping[str, Tensor], folder: Path, ranks: int = 1) -> None:
    """Write this rank's shards of the tensors to a folder of its own. All ranks have to call this. File names differ by
    rank, so that all files go together in one folder."""
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    save_distributed(dict(tensors), storage_writer=writer, no_dist=ranks == 1)


def load(tensors: Mapping[str, Tensor], folder: Path, ranks: int = 1) -> None:
    """Fill the tensors, in place, from a folder with the files of all ranks that wrote it. All ranks have to call this.
    Raises PermanentError if there is no such folder."""
    if not folder.is_dir():
        raise PermanentError(
            f"the stage to continue from has no folder {folder.name}/, because an earlier version of rayexp wrote it; "
            "--force STAGE makes it again"
        )
    load_distributed(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=ranks == 1)


def export(
    shapes: Mapping[str, torch.Size], source: Path, prefix: str, folder: Path, file_size: str = FILE_SIZE
) -> None:
    """Write the tensors of ``source`` whose names begin with ``prefix``, in fp32, as stock tools load a model: files of
    at most ``file_size``, and an index if there are several. Holds one file at a time. For one rank alone."""
    empty = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    split = split_torch_state_dict_into_shards(empty, max_shard_size=file_size)
    for file, names in split.filename_to_tensors.items():
        tensors = {name: torch.empty(shapes[name]) for name in names}
        named = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
        load_distributed(named, storage_reader=HuggingFaceStorageReader(str(source)), no_dist=True)
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        _write_index(folder, split.metadata, split.tensor_to_filename)


def export_model(model: PreTrainedModel, vocabulary: Vocabulary, source: Path, folder: Path) -> None:
    """Write a sharded decoder, as ``io.save`` does, from the files of a trainer's state."""
    io.save_without_weights(model, vocabulary, folder)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    export(shapes, source, WEIGHTS, folder)


def _write_index(folder: Path, metadata: Mapping[str, Any], files: Mapping[str, str]) -> None:
    index = {"metadata": metadata, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
