"""A tokenizer small enough to make in every test (bytes, some words, five special tokens); stores of given texts."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from cptjax.data.store import STORE_VERSION, Duplicates, Manifest, file_hashes, write_shard
from cptjax.data.tokenizer import Encoder
from cptjax.files import copy_tokenizer

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


def make_bert_tokenizer(folder: Path) -> Path:
    """Write one as a BERT's into `folder`: words in pieces, small letters, pairs with token types. Its vocabulary is
    written down: a trainer of word pieces makes another in each process."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789@#-.$é"
    pieces = [piece for word in WORDS for piece in (word[:4], "##" + word[4:]) if piece.strip("#")]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = dict.fromkeys([*special, *letters, *("##" + letter for letter in letters), *pieces])
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(special)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ids)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def make_store(
    folder: Path, tokenizer_folder: Path, texts: Sequence[str], weights: Sequence[float] | None = None, shards: int = 1
) -> Path:
    """Write a token store of these texts as they are, in this order, into `folder`."""
    encoder = Encoder(tokenizer_folder)
    documents = encoder.encode(texts)
    folder.mkdir(parents=True)
    bounds = np.linspace(0, len(documents), shards + 1).astype(int)
    files = tuple(
        write_shard(folder / f"tokens-{i:05}.array_record", documents[first:last])
        for i, (first, last) in enumerate(zip(bounds, bounds[1:], strict=False))
    )
    np.save(folder / "length_N.npy", np.array([len(token_L) for token_L in documents], np.int64))
    np.save(folder / "crc32_N.npy", np.array([zlib.crc32(token_L.tobytes()) for token_L in documents], np.uint32))
    if weights is not None:
        np.save(folder / "weight_N.npy", np.array(weights, np.float32))
    copy_tokenizer(tokenizer_folder, folder / "tokenizer")
    manifest = Manifest(
        version=STORE_VERSION,
        documents=len(documents),
        tokens=sum(map(len, documents)),
        text_bytes=sum(len(text.encode()) for text in texts),
        words=sum(len(text.split()) for text in texts),
        unknown_tokens=0,
        dtype=encoder.dtype.name,
        **encoder.vocabulary,
        sources=(),
        dropped={},
        duplicates=Duplicates(0, None),
        contamination=None,
        sha256=file_hashes(folder),
        fields={},
        settings={},
        shards=files,
        written_specials=0,
    )
    manifest.write(folder)
    return folder
