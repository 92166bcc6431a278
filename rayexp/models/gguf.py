"""Conversion of a GGUF file into a folder of safetensors: ``python -m rayexp.models.gguf FILE FOLDER``."""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel


def convert(file: Path, folder: Path) -> None:
    """Write the weights (in fp32), configuration and tokenizer of a GGUF file into a new folder."""
    where = {"gguf_file": file.name, "local_files_only": True}
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(file.parent, **where, dtype=torch.float32)
    # The weights are dequantised now, but transformers refuses to save a model that is still marked as quantised.
    vars(model).pop("hf_quantizer", None)
    vars(model.config).pop("quantization_config", None)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, **where).save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
