"""The Hugging Face layout: `config.json` and `model.safetensors` in float32, which transformers loads."""

from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from regard.bundle import Bundle
from regard.pretrained.folder import save_pretrained
from regard.storage import new_folder, write_text
from regard.text.pretrained import Nothing, Pieces


def write(bundle: Bundle, into: Path) -> None:
    """Write a model in this layout, with its tokenizer and its rules on generated tokens if it has them.

    Raises:
        BundleError: no family of the layout has the model's parts.
    """
    tokenizer = bundle.tokenizer
    named = {"pad": "pad", "bos": "bos", "eos": "eos"} | ({"start": "bos"} if bundle.task == "translate" else {})
    ids = {name: getattr(tokenizer, attribute) for name, attribute in named.items()}
    known = {name: i for name, i in ids.items() if i is not None}
    config: Any = bundle.model_config
    with new_folder(into) as folder:
        save_pretrained(folder, bundle.model, config, known, bundle.rules)
        if isinstance(tokenizer, Pieces):
            tokenizer.save(folder)
        elif not isinstance(tokenizer, Nothing):
            tokenizer.save(folder / "tokenizer.json")
            if bundle.decoding.get("begins", False):
                _begin_texts(folder / "tokenizer.json", tokenizer)


def _begin_texts(path: Path, tokenizer: Any) -> None:
    """Have a saved tokenizer put BOS before every text, as the model was trained."""
    inner = tokenizers.Tokenizer.from_file(str(path))
    first: Any = {"id": "BOS", "ids": [tokenizer.bos], "tokens": tokenizer.tokens([tokenizer.bos])}
    if inner.encode("a").ids[:1] != [tokenizer.bos]:
        inner.post_processor = processors.TemplateProcessing("BOS $A", special_tokens=[first])
        write_text(path, inner.to_str(pretty=True))
