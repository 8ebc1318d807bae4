"""Writes a GGUF file's weights, no longer quantized, as the folder that the peers' converters read.

transformers reads the file, so a peer's weights have not passed through any code of ours.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    source = {"pretrained_model_name_or_path": given.gguf.parent, "gguf_file": given.gguf.name}
    AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).save_pretrained(given.folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(given.folder)


if __name__ == "__main__":
    main()
