"""A tiny CLIP network of random weights in a folder, as transformers saves it."""

import pytest
import torch

from tests.model.pipelines import tokenizer


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """The folder; its images are of 16x16 pixels, its prompts of at most 12 tokens, letter by letter."""
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("clip")
    letters = tokenizer(tmp_path_factory.mktemp("letters"))
    width = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": letters.bos_token_id, "eos_token_id": letters.eos_token_id, "pad_token_id": 0}
    text = width | ends | {"vocab_size": len(letters), "max_position_embeddings": 12}
    config = CLIPConfig(text_config=text, vision_config=width | {"image_size": 16, "patch_size": 8}, projection_dim=6)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(images, letters).save_pretrained(folder)
    return folder
