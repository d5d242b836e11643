"""Model cards: what a folder of weights holds, how it is loaded, and how it came about."""

from pathlib import Path

CARD = "README.md"


def write(folder: Path, *, library: str, task: str, origin: str, loading: str, story: str) -> None:
    """Write a model card: fields that the hub reads, then `story` and `loading`, both in Markdown.

    `origin` is the hub name or folder of the model that the training began with, "" where it has none.
    """
    head = [f"library_name: {library}", f"pipeline_tag: {task}", "tags:", "- smoothlab"]
    if origin and not Path(origin).is_absolute():  # the hub looks it up
        head.append(f"base_model: {origin}")
    title = "# Model fine-tuned with smoothlab"
    if library == "peft":
        title = title.replace("Model", "Adapter")
    parts = ["---", *head, "---", "", title, "", story.strip(), "", "## Loading", ""]
    if origin:
        parts += [f"The training began with `{origin}`.", ""]
    (folder / CARD).write_text("\n".join([*parts, loading.strip(), ""]), encoding="utf-8")


def _code(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```", ""])


def of_model(kind: str, module: str) -> str:
    """Instructions to load the base model alone; `module`: PEFT method that was trained beside it, or ""."""
    text = _code(f"from transformers import {kind}", "", f'model = {kind}.from_pretrained("model")  # this folder')
    if module:
        text += f"\nThis is the base model as it was trained beside a {module} module, which is in `../adapter`.\n"
    return text


def of_adapter(
    kind: str, *, base: bool, holds_weights: bool, base_folder: Path, classes: int | None, padded: bool,
    own_method: bool = False, prefixed: bool = False,
) -> str:  # fmt: skip
    """Instructions to load an adapter with its base model.

    Args:
        kind: transformers' class of the base model.
        base: whether that was trained, too.
        holds_weights: whether the adapter's folder has its weights.
        base_folder: where the base model's folder was written; adapter_config.json holds it as an absolute path.
        classes: number of classes, where the base model's files have no head for as many; else None.
        padded: whether the loaded model distinguishes padding from text.
        own_method: whether the method is smoothlab's own, which peft knows after one call.
        prefixed: whether it is a classifier whose module is keys and values before the text.
    """
    auto, arguments = kind.replace("AutoModel", "AutoPeftModel"), ""
    register_lines: list[str] = []
    if own_method:
        call = "register()  # peft then knows this method"
        register_lines = ["from smoothlab.llm.own_methods import register", "", call]
    if classes:
        arguments = f", num_labels={classes}"
    text = _code(
        f"from peft import {auto}",
        *register_lines,
        "",
        f'model = {auto}.from_pretrained("adapter"{arguments})  # this folder',
    )
    load_both = f'model = PeftModel.from_pretrained({kind}.from_pretrained("model"), "adapter")'
    two_folders = _code(
        "from peft import PeftModel", f"from transformers import {kind}", *register_lines, "", load_both
    )
    if base and holds_weights:
        text += (
            "\nThe base model was trained, too. Its weights are in this folder beside the module's, and are loaded "
            f"with them.\nThey are in `../model` as well:\n\n{two_folders}"
        )
    elif base:
        text += (
            "\nThe base model was trained, too, and is in `../model`; `adapter_config.json` names it as "
            f"`{base_folder}`.\n"
            f"When that is moved, name its new place there, or load the two folders by\n\n{two_folders}"
        )
    if not padded:
        text += (
            "\nUnder this method, transformers' classifier reads the last position of a row, padding or not: score\n"
            "rows one by one, or call `smoothlab.llm.adapters.pool_at_last_token(model)` first.\n"
        )
    if prefixed:
        text += (
            "\nUnder transformers 5.24 or newer, peft 0.21.2 gives this classifier no prefix and raises ValueError:\n"
            "call `smoothlab.llm.caches.accept_past_key_values(model)` first.\n"
        )
    return text
