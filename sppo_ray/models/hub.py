"""Models of the Hugging Face hub: `org/name` or `org/name@revision`.

The driver downloads a model once into the hub's cache, before any actor starts; actors get the
directory. HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE work as everywhere. huggingface_hub is
imported only when such a model is used.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sppo_ray.errors import UserError
from sppo_ray.formatting import format_seconds
from sppo_ray.redaction import redact

_NAME = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[A-Za-z0-9][\w./-]*))?"
)
# What Transformers and vLLM read: no pickles, no copies in other formats, nothing in folders.
_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
_UNWANTED = ["*/*", "consolidated*"]

Report = Callable[[str], None]
_FOUND: dict[HubModel, Path] = {}


@dataclass(frozen=True, slots=True)
class HubModel:
    repository: str
    revision: str | None  # a branch, tag or commit; None = the newest of the main branch

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"


def hub_model(model: str) -> HubModel | None:
    """Return what a model setting names on the hub; None for a directory that exists, any other
    path, or a built-in model.
    """
    return None if Path(model).exists() else parse_name(model)


def parse_name(text: str) -> HubModel | None:
    """Read org/name[@revision]; None for anything else."""
    named = _NAME.fullmatch(text)
    return None if named is None else HubModel(named["repository"], named["revision"])


def download(model: HubModel, report: Report) -> Path:
    """Return the directory of the model in the hub's cache; fetch what is missing there. Asks the
    hub once in a process. Raises UserError with the remedy.
    """
    if model not in _FOUND:
        _FOUND[model] = _snapshot(model, report)
    return _FOUND[model]


def upload(directory: Path, repository: str, *, private: bool, report: Report) -> str:
    """Upload a directory as one commit to a repository, which is made when it is missing. Returns
    its address. Raises UserError with the remedy.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()) / 1e6
    report(f"uploading {directory} ({size:,.1f} MB) to {repository}")
    with explained(f"repository {repository}"):
        address = api.create_repo(repository, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=directory,
            commit_message="Upload from sppo-ray",
            ignore_patterns=["*.tmp", "*.lock"],
        )
    return str(address)


def commit_of(directory: Path) -> str | None:
    """Return the commit of a directory in the hub's cache; None elsewhere."""
    return directory.name if directory.parent.name == "snapshots" else None


def cached_file(model: HubModel, name: str) -> Path | None:
    """Return a file of the model if the cache has it, without asking the hub."""
    if find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model.repository, name, revision=model.revision)
    return Path(found) if isinstance(found, str) else None


def _snapshot(model: HubModel, report: Report) -> Path:
    if find_spec("huggingface_hub") is None:
        raise UserError(f"model {model}: needs a package that is not installed: pip install huggingface_hub")
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import DryRunError, LocalEntryNotFoundError

    files = {"allow_patterns": _WANTED, "ignore_patterns": _UNWANTED}
    here = f"neither a directory here nor (whole) in the cache {constants.HF_HUB_CACHE}, and "
    away = "fetch it where there is a network with `hf download NAME --local-dir DIR`, and give DIR"
    if model.revision is not None and re.fullmatch("[0-9a-f]{40}", model.revision):
        with suppress(LocalEntryNotFoundError):  # a commit never changes, so the hub is not asked
            local = {"revision": model.revision, "local_files_only": True}
            return Path(snapshot_download(model.repository, **local, **files))
    with explained(f"model {model}", here=here, away=away):
        try:
            listed = snapshot_download(model.repository, revision=model.revision, dry_run=True, **files)
            missing = [file for file in listed if file.will_download]
        except DryRunError:  # the hub cannot be reached: what is cached counts
            missing = []
        if missing:
            size = sum(file.file_size for file in missing) / 1e6
            what = f"{len(missing)} files, {size:,.1f} MB"
            report(f"fetching model {model} from the hub ({what}; kept in {constants.HF_HUB_CACHE})")
        began = time.monotonic()
        directory = Path(snapshot_download(model.repository, revision=model.revision, **files))
    if missing:
        took = format_seconds(time.monotonic() - began)
        report(f"fetched model {model}, commit {directory.name}, in {took}")
    return directory


@contextmanager
def explained(what: str, *, here: str = "", away: str = "try again later") -> Iterator[None]:
    """Turn the errors of huggingface_hub into a UserError that begins with `what`. `here` says what
    this machine does not have, `away` what to do when the hub cannot be reached.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        yield
    except GatedRepoError:
        raise UserError(
            f"{what}: the repository is gated: ask for access on its page on the hub, then {log_in}"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{what}: {here}the hub shows no such repository: correct the name; if it is private, {log_in}"
        ) from None
    except RevisionNotFoundError:
        raise UserError(
            f"{what}: the repository has no such revision: name a branch, tag or commit"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise UserError(f"{what}: {here}{_away(error)}: {away}") from None
    except (LocalTokenNotFoundError, HFValidationError) as error:
        raise UserError(f"{what}: {_first_line(error)}: {log_in}") from None
    except HfHubHTTPError as error:
        denied = error.response.status_code in (401, 403)
        remedy = f"the token may not do that: {log_in}" if denied else "try again later"
        raise UserError(f"{what}: the hub refused ({_first_line(error)}): {remedy}") from None
    except (HTTPError, ConnectionError, TimeoutError) as error:
        raise UserError(f"{what}: {here}{_away(error)}: {away}") from None


def _away(error: Exception) -> str:
    from huggingface_hub import constants

    cause = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _first_line(error.__cause__ or error)
    return f"the hub cannot be asked ({cause})"


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return redact(f"{type(error).__name__}: {text[0]}" if text else type(error).__name__)
