"""Tiny zero-shot detectors with random weights, in folders as transformers saves them."""

from pathlib import Path

import torch
import transformers
from models import SMALL

WORDS = ["a", "dog", "cat", "the", "red", "left", "on", "square", "blue"]


def grounding_dino(folder: Path) -> Path:
    """Save a Grounding DINO whose tokens have the ids of BERT, which its code contains."""
    vocabulary = [f"[unused{i}]" for i in range(1100)]
    vocabulary[0], vocabulary[100:104] = "[PAD]", ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary[1012], vocabulary[1029] = ".", "?"
    vocabulary[1030 : 1030 + len(WORDS)] = WORDS
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = transformers.BertTokenizerFast.from_pretrained(folder)
    sizes = {"height": 160, "width": 160}
    processor = transformers.GroundingDinoProcessor(
        transformers.GroundingDinoImageProcessor(size=sizes, do_pad=False), tokenizer
    )
    torch.manual_seed(0)
    config = transformers.GroundingDinoConfig(
        backbone_config=transformers.SwinConfig(
            image_size=160, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=2,
            out_indices=[2, 3, 4],
        ),
        text_config=transformers.BertConfig(
            vocab_size=1100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16,
        ),
        d_model=32, num_queries=5, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2, max_text_len=32,
        disable_custom_kernels=True,
    )  # fmt: skip
    transformers.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def owlv2(folder: Path) -> Path:
    """Save an OWLv2 whose boxes are the cells of a grid, 4 x 4 in the padded square image."""
    tokenizer = transformers.CLIPTokenizer.from_pretrained(SMALL / "tokenizer")
    tokenizer.model_max_length = 32
    sizes = {"height": 64, "width": 64}
    processor = transformers.Owlv2Processor(transformers.Owlv2ImageProcessor(size=sizes), tokenizer)
    torch.manual_seed(0)
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = transformers.Owlv2Config(
        text_config={
            "vocab_size": len(tokenizer), "num_attention_heads": 2, "max_position_embeddings": 32,
            "bos_token_id": None, "eos_token_id": None, **tiny,
        },
        vision_config={"image_size": 64, "patch_size": 16, "num_attention_heads": 2, **tiny},
        projection_dim=16,
    )  # fmt: skip
    model = transformers.Owlv2ForObjectDetection(config)
    with torch.no_grad():
        for parameter in (model.box_head.dense2.weight, model.box_head.dense2.bias):
            parameter.zero_()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
