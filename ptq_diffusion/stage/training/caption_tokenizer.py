"""A CLIP tokenizer of a few captions."""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import CLIPTokenizer

END_OF_WORD = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"


def caption_tokenizer(captions: Sequence[str], merges: int, length: int) -> CLIPTokenizer:
    """Learn byte-pair merges from captions; any other text can be tokenized too, into more tokens.

    Args:
        captions: the texts.
        merges: at most so many are learnt.
        length: of every prompt in tokens, start and end included.
    """
    backend = CLIPTokenizer().backend_tokenizer
    backend.model = BPE(end_of_word_suffix=END_OF_WORD)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = [*alphabet, *(letter + END_OF_WORD for letter in alphabet)]
    trainer = trainers.BpeTrainer(
        vocab_size=merges + len(symbols), show_progress=False, initial_alphabet=alphabet, end_of_word_suffix=END_OF_WORD
    )
    backend.train_from_iterator(captions, trainer)
    pairs = [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]][:merges]
    # Whatever the captions hold, every byte is a token, within a word and at its end.
    tokens = [*symbols, *dict.fromkeys(first + second for first, second in pairs), START, END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    # Pairs, as its backend wants them, where the annotation says lines of a file.
    return CLIPTokenizer(vocabulary, pairs, model_max_length=length)  # type: ignore[arg-type]


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write `vocab.json` and `merges.txt` beside the files of `save_pretrained`, for readers of either layout."""
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))
