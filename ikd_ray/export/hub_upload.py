"""Upload an exported student to a repository of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id

from ikd_ray.data.sources import hub_reachable
from ikd_ray.errors import UsageError, first_line
from ikd_ray.export.model_card import INT8, ONNX
from ikd_ray.redaction import REDACTED, redact_text, redact_uri

FLAG = "--push-to-hub"
MAX_REASON = 200  # characters of an error


class PushError(Exception):
    """The hub did not take a student; the message has no token in it."""


def require_hub(repository: str) -> str:
    """Check that a student can be pushed to a repository of the hub, before anything is computed.

    Returns:
        The repository's full name: that of a user's own one begins with the user's.

    Raises:
        UsageError: it is no repository's name, there is no token, or the hub is not asked, out of reach, or refuses
            the token.
    """
    try:
        validate_repo_id(repository)
    except ValueError:
        raise UsageError(
            f"{FLAG} {repository!r}: not a repository's name; give NAME or ORGANIZATION/NAME, as in ann/my-student"
        ) from None
    try:
        token = get_token()
    except Exception as error:  # a trusted publisher's exchange of tokens, and the token's file
        raise UsageError(f"{FLAG} {repository}: no token: {_describe(error, None)}") from None
    if not token:
        raise UsageError(
            f"{FLAG} {repository}: no token of the Hugging Face hub; run `hf auth login`, or set HF_TOKEN"
        )
    if constants.HF_HUB_OFFLINE:
        raise UsageError(
            f"{FLAG} {repository}: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE keeps the hub from being asked; unset it"
        )
    if not hub_reachable():
        raise UsageError(
            f"{FLAG} {repository}: {constants.ENDPOINT} is out of reach; try again when it answers"
        )
    try:
        user = HfApi().whoami()["name"]
    except HfHubHTTPError as error:
        if error.response.status_code == 401:
            raise UsageError(
                f"{FLAG} {repository}: {constants.ENDPOINT} does not know the token; run `hf auth login` again, or "
                "set HF_TOKEN to a valid one"
            ) from None
        return repository  # a token of a trusted publisher may push, and not ask whose it is
    except Exception as error:  # every transport raises its own
        raise UsageError(f"{FLAG} {repository}: {_describe(error, token)}") from None
    return repository if "/" in repository else f"{user}/{repository}"


def push_student(folder: Path, repository: str) -> str:
    """Upload an exported student's folder; return the repository's URL.

    As with `push_to_hub` of transformers, a repository that does not exist is created, and is public unless the
    organization's default is private. ONNX models that an earlier student left in the repository are deleted.

    Raises:
        PushError: the hub refuses it, or cannot be reached any more.
    """
    api, token = HfApi(), get_token()
    try:
        url = api.create_repo(repository, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id,
            folder_path=folder,
            commit_message=f"Upload {folder.name}",
            delete_patterns=[ONNX, INT8],
        )
    except Exception as error:  # every transport raises its own
        raise PushError(
            f"{FLAG} {repository}: {_describe(error, token)}; {folder} is complete, and "
            f"`hf upload {repository} {folder}` uploads it"
        ) from None
    return redact_uri(str(url))


def _describe(error: Exception, token: str | None) -> str:
    """Return what the hub answered, or else the first line of an exception, without the token."""
    text = str(getattr(error, "server_message", None) or first_line(error))
    if token:
        text = text.replace(token, REDACTED)
    return redact_text(text.splitlines()[0])[:MAX_REASON]
