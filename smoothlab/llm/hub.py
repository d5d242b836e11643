"""The Hugging Face hub: whether it answers, asked once and briefly, so that a missing network costs no retries.

The hub's own client waits for as long as its retries last: without network, version 2.4 took 24 s for a configuration
that is not in its cache and 47 s for a tokenizer, with a line on stderr for each retry, whatever its time-outs are.
"""

import contextlib
import threading
from pathlib import Path

from smoothlab.errors import BadInput

PATIENCE = 4.0
"""Seconds to wait for the hub's first answer."""


def kept_offline() -> bool:
    """Whether the hub's client is in offline mode (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return bool(constants.is_offline_mode())


def reachable(patience: float = PATIENCE) -> bool:
    """Whether the hub answers; False at once where its client is kept offline."""
    from huggingface_hub import constants, get_session

    if kept_offline():
        return False
    answers: list[bool] = []

    def ask() -> None:
        with contextlib.suppress(Exception):  # whatever goes wrong here, the hub did not answer
            answers.append(get_session().head(constants.ENDPOINT, timeout=patience).status_code < 500)

    # In a thread that is left behind: looking up a host name obeys no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience)
    return any(answers)


def broke_off(error: BaseException | None) -> str | None:
    """The network's failure behind an error of the libraries that read models, in words; None if there is none."""
    while error is not None:
        names = {kind.__name__ for kind in type(error).__mro__}  # of the hub's client, which changes its library
        if names & {"TransportError", "ChunkedEncodingError", "ConnectionError", "TimeoutError", "IncompleteRead"}:
            return " ".join(str(error).split())[:120]
        error = error.__cause__ or error.__context__
    return None


def is_name(name: str) -> bool:
    """Whether the hub could have a repository of that name; "./folder" is none."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def cached(name: str) -> str:
    """The folder where the hub's client keeps a model it has fetched before.

    Raises:
        BadInput: the model is not in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return str(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        raise BadInput(
            f"cannot load model '{name}': there is no such directory here, the hub cannot be reached, and its cache "
            "has no such model; check the path, or connect, or use micro or random:opt-125m"
        ) from None


def files(name: str) -> list[str]:
    """Names of the files of a repository on the hub; none where it cannot be asked: whoever loads the model says so."""
    from huggingface_hub import HfApi

    try:
        return list(HfApi().list_repo_files(name))
    except Exception:
        return []


def file(name: str, path: str) -> Path:
    """One file of a repository, downloaded where the cache lacks it.

    Raises:
        BadInput: there is no such file, or the download broke off.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, path))
    except Exception as error:
        words = broke_off(error) or f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise BadInput(
            f"cannot load {path} of '{name}' from the hub ({words}): check both names and try again"
        ) from None


def fetch(name: str, file: str) -> Path:
    """One file of a repository on the hub, from the client's cache where it is there.

    Raises:
        BadInput: the file cannot be downloaded and is not in the cache.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file, local_files_only=not reachable()))
    except Exception as error:  # whichever of the client's it is, there is no file
        reason = " ".join(str(error).split())[:120]
        raise BadInput(f"cannot fetch {file} of {name} ({reason}): connect, or name a file or folder") from None
