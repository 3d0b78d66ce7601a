"""A tokenizer small enough to make in every test: bytes, some words, five special tokens."""

from pathlib import Path

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

WORDS = [
    "the",
    "heart",
    "is",
    "a",
    "muscle",
    "that",
    "pumps",
    "blood",
    "through",
    "vessels",
    "mind",
]


def make_tokenizer(folder: Path, *, ends: bool = True, seed_text: str = "") -> Path:
    """Write a byte-level BPE tokenizer into `folder`: any text comes back from its ids.

    `ends=False` leaves out the post-processor, so the tokenizer puts nothing around a document.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS), seed_text], trainer)
    tokenizer.decoder = decoders.ByteLevel()
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("[CLS]", "[SEP]")],
        )
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
