"""A fine-tuned model as a folder that transformers' classifiers load as it is."""

from collections.abc import Sequence
from pathlib import Path

from convert import table, to_hf
from cptjax.files import read_json
from eval.finetune import Outcome
from eval.heads import TextHead
from eval.tagging import tag_names

PROBLEMS = {"one": "single_label_classification", "any": "multi_label_classification"}


def keep_model(
    outcome: Outcome, labels: Sequence[str], source: Path, out: Path, *, overwrite: bool = False
) -> list[str]:
    """Write the model of a run that kept its parameters, with its tokenizer and the names of its labels; returns notes
    for its reader. A head of choices gives one score for a question with a choice.

    `source` is the folder of the model that was trained. Raises ValueError where transformers has no such class.
    """
    config, head = outcome.config, outcome.head
    if config is None or outcome.params is None:
        raise ValueError("this run kept no parameters")
    classes = [
        name
        for name, form in table.ARCHITECTURES.items()
        if (form.shape_type, form.stands, form.mask_mode) == (config.model_type, head.stands, "bidirectional")
    ]
    if not classes:
        raise ValueError("transformers has no class with a span scorer: its answers are kept, not the model")
    hf_config = read_json(source / "config.json")
    for name in ("id2label", "label2id", "problem_type"):
        hf_config.pop(name, None)
    if isinstance(head, TextHead):
        names = [] if head.of_choices else labels
        hf_config |= {"problem_type": PROBLEMS[head.right]} if names else {}
    else:
        names = tag_names(labels)
    if names:
        hf_config |= {"id2label": {str(i): name for i, name in enumerate(names)}}
        hf_config |= {"label2id": {name: i for i, name in enumerate(names)}}
    tokenizer = source if (source / "tokenizer.json").is_file() else None
    return to_hf.save(
        config,
        outcome.params,
        out,
        architecture=classes[0],
        hf_config=hf_config,
        tokenizer=tokenizer,
        overwrite=overwrite,
    )
